"""Processing of a JSONL file of traces in constant memory, with rows in the order of the lines, resumable at any moment.

`tts score` and `tts label` are both built on this, and differ in what they compute for a chunk of traces.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from tts.data.files import BLANK, append_lines, parse_row, without_carriage_returns, write_whole, writing
from tts.data.identity import check_content, content_of
from tts.data.lock import Lock
from tts.data.traces import BadRowError, Trace, parse_json, parse_line, read_lines
from tts.errors import InputError
from tts.options import check_resumable, kept

CHUNK = 128
"""Traces per chunk. Two chunks are in progress at a time, so that one is read while the other is computed."""

T = TypeVar("T")


@dataclass
class Tally:
    """Counts for the live view and the closing message."""

    stage: str = "starting"
    """What is being loaded, while `running` is False."""
    running: bool = False
    """Whether loading has finished."""
    done: int = 0
    """Traces processed in this session."""
    rejected: int = 0
    """Lines and traces set aside in this session."""
    resumed: int = 0
    """Rows written in earlier sessions."""
    missing: int = 0
    """Verdicts that the scorer was asked for in this session and did not give."""
    unrated: int = 0
    """Traces of this session without any verdict."""
    windowed: int = 0
    """Traces of this session that were longer than the model's context, and so were read in windows."""
    tokens: int = 0
    bytes: int = 0
    """Bytes of the input that have been processed."""
    total_bytes: int = 0

    def to_json(self, out: Path | None) -> dict[str, Any]:
        """The object that `--json` prints at the end."""
        return {"out": str(out), "done": self.done, "rejected": self.rejected, "resumed": self.resumed, "tokens": self.tokens}

    def summary(self, done: str, out: Path) -> str:
        """The closing line of a command; `done` is "scored" or "labelled"."""
        before = f", {self.resumed} before" if self.resumed else ""
        return f"{self.done} {'trace' if self.done == 1 else 'traces'} {done}{before}: {out}"


@dataclass(frozen=True)
class Processed(Generic[T]):
    """A trace with the value computed for it."""

    trace: Trace
    value: T
    line: int
    """Number of its line in the input, from 1."""


@dataclass(frozen=True)
class Rejected:
    """A line, or one of its traces, that cannot be processed."""

    line: int
    """Its number in the input, from 1."""
    error: str
    text: str
    """The whole line."""


class Sink(Protocol):
    """Destination of rows."""

    first_line: int
    """Line of the input to start with, from 1; earlier lines were processed in earlier sessions."""
    done: int
    """Rows written in earlier sessions."""

    def add(self, rows: Sequence[dict[str, Any]], refused: Sequence[Rejected]) -> None:
        """Write the rows of a chunk, and the lines that were rejected."""
        ...

    def close(self) -> None:
        """Close the destination; nothing is added after this."""
        ...


async def work_through(
    source: Path,
    work: Callable[[Sequence[Trace]], Awaitable[Sequence[T]]],
    *,
    names: dict[str, str],
    first_line: int,
    limit: int | None,
    tally: Tally,
    step_delimiter: str | None = None,
    chunk: int = CHUNK,
) -> AsyncIterator[list[Processed[T] | Rejected]]:
    """Process the traces of a JSONL file chunk by chunk and yield the results in the order of the file.

    Args:
        source: File to read.
        work: Computes one value per trace of a chunk. If it raises InputError, the traces of the chunk are processed one by one
            and those that fail are rejected.
        names: Names in the file for entries of `tts.data.traces.FIELDS`.
        first_line: Number of the line to start with, from 1.
        limit: Maximum number of traces; None for all.
        tally: Counts of which `bytes` is updated here.
        step_delimiter: What ends a step of all traces. Default: each trace's own.
        chunk: Traces per call of `work`. Default 128.
    """
    under_way: deque[tuple[asyncio.Task[list[Processed[T] | Rejected]], int]] = deque()
    pending: list[tuple[int, str, list[Trace] | str]] = []
    read, count = 0, 0

    async def next_done() -> list[Processed[T] | Rejected]:
        task, reached = under_way.popleft()
        finished = await task
        tally.bytes = reached
        return finished

    for number, line, read in read_lines(source, start=first_line):
        if limit is not None and count >= limit:
            break
        try:
            found = parse_line(line, number, names)[: None if limit is None else limit - count]
            traces: list[Trace] | str = [trace.divided(step_delimiter) for trace in found]
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
) -> list[Processed[T] | Rejected]:
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
    finished: list[Processed[T] | Rejected] = []
    for number, line, found in lines:
        if isinstance(found, str):
            finished.append(Rejected(number, found, line))
            continue
        for trace in found:
            value = next(each)
            if isinstance(value, InputError):
                finished.append(Rejected(number, str(value), line))
            else:
                finished.append(Processed(trace, value, number))
    return finished


class CallbackSink:
    """Passes each row as a line of JSON to `write`, and a message for each rejected line to `complain`; both may be None."""

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
        """Do nothing; no file is open."""


class FileSink:
    """Writes rows to one JSONL file and rejected lines to a second one, next to a file of settings.

    Every row has the number of its `line`, and both files are in the order of the input. To resume, the rows of the last line
    are dropped, as they may be incomplete, and processing starts with that line again.
    """

    def __init__(self, out: Path, first_line: int, done: int, lock: Lock) -> None:
        self.out, self.rejected, self.first_line, self.done = out, rejected_of(out), first_line, done
        self._lock = lock

    @classmethod
    def open(cls, out: Path, settings: Any, *, resume: bool, command: str) -> FileSink:
        """Create `out`, or open it to resume under the settings (a dataclass) it was started with.

        `command` names the program in messages. Raises InputError if the file exists, if one to resume was not written by
        `command` with the same settings and content, or if another process writes it.
        """
        with ExitStack() as stack, writing(out, "choose another --out"):
            if resume and not settings_of(out).is_file():
                raise InputError(f"{out} was not started by {command} (there is no {settings_of(out).name}); omit --resume")
            out.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(Lock(out))
            if resume:
                check_begun(out, settings)
                first_line, done = _recover(out)
            else:
                if out.exists():
                    raise InputError(f"{out} exists; continue it with --resume, or choose another --out")
                rejected_of(out).unlink(missing_ok=True)
                begin(out, settings)
                first_line, done = 1, 0
            out.touch()
            stack.pop_all()
        return cls(out, first_line, done, lock)

    def add(self, rows: Sequence[dict[str, Any]], refused: Sequence[Rejected]) -> None:
        """Write a chunk. Rejected lines are written first: if a crash loses the rows, resuming drops these lines as well."""
        if refused:
            about = ({"line": item.line, "error": item.error, "row": item.text.rstrip("\r\n")} for item in refused)
            append_lines(self.rejected, (json.dumps(row, ensure_ascii=False) for row in about))
        append_lines(self.out, map(to_line, rows))

    def close(self) -> None:
        """Let others write."""
        self._lock.release()


def settings_of(out: Path) -> Path:
    """The file beside an output that holds what it was started with."""
    return out.with_name(out.name + ".settings.json")


def begin(out: Path, settings: Any) -> None:
    """Write down the settings (a dataclass) of an output, and fingerprints of what they name. Raises OSError."""
    write_whole(settings_of(out), json.dumps({**kept(settings), "content": content_of(settings)}, indent=2) + "\n")


def check_begun(out: Path, settings: Any) -> None:
    """Raise InputError unless an output was started with these settings, and with data and models as they are now."""
    path = settings_of(out)
    try:
        begun = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(begun, dict):
            raise BadRowError("not a JSON object")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot resume {out}: {path.name} is {error}; choose another --out") from error
    check_resumable(out, begun, settings)
    now = content_of(settings, begun.get("content"))
    if changes := check_content(out, begun, now, accept=settings.accept_changes):
        write_whole(path, json.dumps({**begun, **changes}, indent=2) + "\n")


def how_to_resume(tally: Tally, done: str, out: Path | None) -> str:
    """The line that an interrupted command prints; `done` is "scored" or "labelled"."""
    if out is None:
        return f"interrupted with {tally.done} traces {done}"
    if not out.exists():
        return f"interrupted before anything was {done}; nothing was written"
    return f"interrupted with {tally.done} traces {done}; resume with the same command and --resume ({out})"


def to_line(row: dict[str, Any]) -> str:
    """A row as one line of JSON. Raises ValueError for NaN and infinities, which JSON does not have."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def rejected_of(out: Path) -> Path:
    """The file of rejected lines: scores.rejected.jsonl for scores.jsonl."""
    return out.with_name(f"{out.stem}.rejected.jsonl")


def _recover(out: Path) -> tuple[int, int]:
    """Drop the rows of the last line, and all from a damaged row on; return the number of the line to start with, and how many
    rows are left.

    A row of the rejected lines that is damaged takes back the start as well, as it cannot be known which line it was.
    """
    rejected = rejected_of(out)
    for path in (out, rejected):
        without_carriage_returns(path)
    start = max((line for line, _ in _sound_rows(out)), default=1)
    refused = list(_sound_rows(rejected))
    if sum(size for _, size in refused) < (rejected.stat().st_size if rejected.exists() else 0):
        start = min(start, refused[-1][0] if refused else 1)
    _cut(rejected, start)
    return start, _cut(out, start)


def _sound_rows(path: Path) -> Iterator[tuple[int, int]]:
    """Yield the line and the size in bytes of rows, up to the first one that is damaged or out of order."""
    before = 0
    if path.exists():
        with path.open("rb") as file:
            for raw in file:
                row = parse_row(raw)
                line = row.get("line") if row is not None and raw == raw.strip(BLANK) + b"\n" else None
                if not isinstance(line, int) or line < before:
                    return
                yield line, len(raw)
                before = line


def _cut(path: Path, start: int) -> int:
    """Drop the rows from line `start` on; return the number of those that are left."""
    sizes = [size for line, size in _sound_rows(path) if line < start]
    if path.exists():
        os.truncate(path, sum(sizes))
    return len(sizes)
