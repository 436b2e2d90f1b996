"""A JSONL file worked through in constant memory: rows out in the order of the lines in, and a stop at any moment survived.

Both `tts score` and `tts label` are this, with other work done on a chunk of lines.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Generic, Protocol, TypeVar

from tts.data.store import ESCAPE
from tts.data.traces import BadRowError, Trace, parse_line, read_lines
from tts.errors import InputError

CHUNK = 128
"""Traces worked on together; two such chunks are under way at a time, so that one is prepared while the other is computed."""

T = TypeVar("T")


@dataclass
class Tally:
    """What a live view looks at, and what is said in the end."""

    stage: str = "starting"
    running: bool = False
    """Whether it is past loading."""
    done: int = 0
    rejected: int = 0
    resumed: int = 0
    tokens: int = 0
    bytes: int = 0
    total_bytes: int = 0


@dataclass(frozen=True)
class Done(Generic[T]):
    """A trace with what became of it, and the line that it stands in."""

    trace: Trace
    value: T
    line: int


@dataclass(frozen=True)
class Rejected:
    """A line, or one of its traces, that cannot be worked on."""

    line: int
    error: str
    text: str


class Sink(Protocol):
    """Where rows go."""

    first_line: int
    """Where to begin; what is before it was done earlier."""
    done: int
    """Rows done earlier."""

    def add(self, rows: Sequence[dict[str, Any]], refused: Sequence[Rejected]) -> None:
        """Keep the rows of a chunk."""
        ...

    def close(self) -> None:
        """No more comes."""
        ...


async def work_through(
    source: Path,
    work: Callable[[Sequence[Trace]], Awaitable[Sequence[T]]],
    *,
    names: dict[str, str],
    first_line: int,
    limit: int | None,
    tally: Tally,
    chunk: int = CHUNK,
) -> AsyncIterator[list[Done[T] | Rejected]]:
    """The traces of a file, worked on by chunks, in its order. Where a chunk is an InputError, its traces go one by one."""
    under_way: deque[tuple[asyncio.Task[list[Done[T] | Rejected]], int]] = deque()
    pending: list[tuple[int, str, list[Trace] | str]] = []
    read, count = 0, 0

    async def next_done() -> list[Done[T] | Rejected]:
        task, reached = under_way.popleft()
        finished = await task
        tally.bytes = reached
        return finished

    for number, line, read in read_lines(source, start=first_line):
        if limit is not None and count >= limit:
            break
        try:
            traces: list[Trace] | str = parse_line(line, number, names)[: None if limit is None else limit - count]
            count += len(traces)
        except BadRowError as error:
            traces = str(error)
        pending.append((number, line, traces))
        if sum(len(found) for _, _, found in pending if not isinstance(found, str)) >= chunk or len(pending) >= 8 * chunk:
            under_way.append((asyncio.create_task(_work(work, pending)), read))
            pending = []
            if len(under_way) == 2:
                yield await next_done()
    under_way.append((asyncio.create_task(_work(work, pending)), read))
    while under_way:
        yield await next_done()


async def _work(
    work: Callable[[Sequence[Trace]], Awaitable[Sequence[T]]], lines: Sequence[tuple[int, str, list[Trace] | str]]
) -> list[Done[T] | Rejected]:
    traces = [trace for _, _, found in lines if not isinstance(found, str) for trace in found]
    values: list[T | InputError] = []
    try:
        values += await work(traces)
    except InputError:
        for trace in traces:
            try:
                values += await work([trace])
            except InputError as error:
                values.append(error)
    each = iter(values)
    finished: list[Done[T] | Rejected] = []
    for number, line, found in lines:
        if isinstance(found, str):
            finished.append(Rejected(number, found, line))
            continue
        for trace in found:
            value = next(each)
            if isinstance(value, InputError):
                finished.append(Rejected(number, str(value), line))
            else:
                finished.append(Done(trace, value, number))
    return finished


class Lines:
    """Rows to a function, and what is wrong with other lines to another."""

    first_line, done = 1, 0

    def __init__(self, write: Callable[[str], object] | None, complain: Callable[[str], object] | None) -> None:
        self.write, self.complain = write, complain

    def add(self, rows: Sequence[dict[str, Any]], refused: Sequence[Rejected]) -> None:
        if self.write is not None:
            for row in rows:
                self.write(to_line(row))
        if self.complain is not None:
            for item in refused:
                self.complain(f"line {item.line}: {item.error}")

    def close(self) -> None:
        """Nothing is open."""


class Files:
    """Rows to a file, rejected lines to another, and the settings beside them.

    Every row has its `line`. Both files are in the order of the input, so that going on means: drop what the last line left,
    and begin with that line.
    """

    def __init__(self, out: Path, first_line: int, done: int) -> None:
        self.out, self.rejected, self.first_line, self.done = out, rejected_of(out), first_line, done
        self._out: IO[str] = out.open("a", encoding="utf-8", errors=ESCAPE)
        self._rejected: IO[str] | None = None

    @classmethod
    def open(cls, out: Path, settings: dict[str, Any], *, resume: bool, command: str) -> Files:
        """A new file, or one to go on with under the settings that it was begun with. Raises InputError."""
        meta = out.with_name(out.name + ".settings.json")
        try:
            if resume:
                if not meta.is_file():
                    raise InputError(f"{out} was not begun by {command} (no {meta.name} beside it); leave --resume away")
                begun = json.loads(meta.read_text())
                if begun != settings:
                    different = next(name for name, value in settings.items() if begun.get(name) != value)
                    raise InputError(
                        f"{out} was begun with {different} = {begun.get(different)!r}, not {settings[different]!r};"
                        " go on with that, or choose another --out"
                    )
                return cls(out, *_recover(out))
            if out.exists():
                raise InputError(f"{out} exists; go on with it by --resume, or choose another --out")
            out.parent.mkdir(parents=True, exist_ok=True)
            rejected_of(out).unlink(missing_ok=True)
            meta.write_text(json.dumps(settings, indent=2) + "\n")
            return cls(out, 1, 0)
        except OSError as error:
            raise InputError(f"cannot write to {out}: {error.strerror or error}; choose another --out") from error

    def add(self, rows: Sequence[dict[str, Any]], refused: Sequence[Rejected]) -> None:
        """Write a chunk; rejected lines first, so that what a crash leaves is found by the rows."""
        if refused:
            if self._rejected is None:
                self._rejected = self.rejected.open("a", encoding="utf-8", errors=ESCAPE)
            for item in refused:
                row = {"line": item.line, "error": item.error, "row": item.text.rstrip("\r\n")}
                self._rejected.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._rejected.flush()
        self._out.writelines(to_line(row) + "\n" for row in rows)
        self._out.flush()

    def close(self) -> None:
        for file in (self._out, self._rejected):
            if file is not None:
                file.close()


def how_to_resume(tally: Tally, done: str, out: Path | None) -> str:
    """The line for an interrupted command, `done` being "scored" or "labelled"."""
    if out is None:
        return f"interrupted with {tally.done} traces {done}"
    if not out.exists():
        return f"interrupted before anything was {done}; nothing was written"
    return f"interrupted with {tally.done} traces {done}; resume with the same command and --resume ({out})"


def to_line(row: dict[str, Any]) -> str:
    """A row as JSON."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def rejected_of(out: Path) -> Path:
    """scores.jsonl's scores.rejected.jsonl."""
    return out.with_name(f"{out.stem}.rejected.jsonl")


def _recover(out: Path) -> tuple[int, int]:
    """Drop what was written of the last line and of later ones; the line to begin with, and how many rows are left."""
    last, done = 1, 0
    if out.exists():
        kept_until, at = 0, 0
        with out.open("rb") as file:
            for raw in file:
                at += len(raw)
                try:
                    line = int(json.loads(raw)["line"]) if raw.endswith(b"\n") else None
                except (ValueError, KeyError, TypeError):
                    line = None
                if line is None:
                    break
                if line != last:  # all rows of the line before are whole
                    last, kept_until = line, at - len(raw)
        os.truncate(out, kept_until)
        with out.open("rb") as file:
            done = sum(1 for _ in file)
    rejected = rejected_of(out)
    if rejected.exists():
        rows = rejected.read_bytes().split(b"\n")[:-1]
        rejected.write_bytes(b"".join(row + b"\n" for row in rows if json.loads(row)["line"] < last))
    return last, done
