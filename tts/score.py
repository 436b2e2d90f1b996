"""`tts score`: rewards for a file of traces, streamed in constant memory, in the order of the file."""

from __future__ import annotations

import asyncio
import json
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from tts.errors import InputError
from tts.scorers import PLAIN, load_scorer
from tts.store import ESCAPE
from tts.traces import BadRowError, Trace, parse_line, read_lines
from tts.types import Aggregate, Part, Reward, Scorer, counts_final

CHUNK = 128
"""Traces scored together; two such chunks are under way at a time, so that one is tokenised while the other is computed."""


@dataclass(frozen=True)
class ScoreSettings:
    """What the rewards in a file depend on; a file goes on only under the settings that it began with."""

    traces: str
    scorer: str = "arith-prm"
    scorer_format: str | None = None
    scorer_engine: str = "transformers"
    scorer_args: dict[str, Any] = field(default_factory=dict)
    score_over: Part | None = None
    model: str = "arith-policy"
    """The policy, for scorers that ask it."""
    alpha: float = 1.0
    aggregate: Aggregate = "mean"
    names: dict[str, str] = field(default_factory=dict)
    """What the file calls the fields of `tts.traces.FIELDS`."""
    bare: bool = False
    """Leave the traces' own fields out."""


@dataclass
class Tally:
    """What a live view looks at, and what is said in the end."""

    stage: str = "starting"
    scored: int = 0
    rejected: int = 0
    resumed: int = 0
    tokens: int = 0
    bytes: int = 0
    total_bytes: int = 0


@dataclass(frozen=True)
class Scored:
    """A trace with its reward, and the line that it stands in."""

    trace: Trace
    reward: Reward
    line: int


def score_file(
    settings: ScoreSettings,
    *,
    out: Path | None = None,
    resume: bool = False,
    limit: int | None = None,
    url: str | None = None,
    tally: Tally | None = None,
    write: Callable[[str], object] | None = None,
    complain: Callable[[str], object] | None = None,
    show: Callable[[Scored, Part], None] | None = None,
    scorer_instance: Scorer | None = None,
) -> Tally:
    """Score every trace of a file; the same as `tts score`.

    Rows go to `out` (lines that are no trace to its `.rejected.jsonl`), or to `write` one by one, and what is wrong with other
    lines to `complain`; `show` gets each row, and the part that was rated.
    `resume` goes on with an `out` that was begun. Raises InputError for bad input as a whole; a bad line is set aside.
    """
    tally = tally or Tally()
    source = Path(settings.traces).expanduser()
    if not source.is_file():
        raise InputError(f"no file {settings.traces}; give a JSONL file of traces")
    if settings.scorer == "agreement":
        raise InputError("the scorer agreement compares solutions of one problem; tts score reads traces one by one")
    sinks = _Files.open(out, settings, resume) if out is not None else _Lines(write, complain)
    tally.resumed, tally.total_bytes = sinks.done, source.stat().st_size
    tally.stage = f"loading {settings.scorer}"
    scorer = scorer_instance or _load(settings, url)
    tally.stage = "scoring"

    async def work() -> None:
        try:
            async for chunk in _chunks(source, settings, scorer, sinks.first_line, limit, tally):
                for item in chunk:
                    if isinstance(item, Scored):
                        tally.scored += 1
                        tally.tokens += item.reward.tokens
                        if show is not None:
                            show(item, getattr(scorer, "over", "all"))
                    else:
                        tally.rejected += 1
                sinks.add(chunk, settings.bare)
        finally:
            if scorer is not scorer_instance and (close := getattr(scorer, "close", None)) is not None:
                await close()

    try:
        asyncio.run(work())
    except OSError as error:
        raise InputError(
            f"cannot write to {out}: {error.strerror or error}; what was scored is kept, go on with --resume"
        ) from error
    finally:
        sinks.close()
    return tally


def _load(settings: ScoreSettings, url: str | None) -> Scorer:
    options = dict(settings.scorer_args)
    if settings.scorer not in PLAIN and settings.scorer_engine == "transformers":
        options.setdefault("cache_gib", 0)  # traces of a file seldom begin alike: keep no prefixes for later ones
    return load_scorer(
        settings.scorer,
        format=settings.scorer_format,
        over=settings.score_over,
        final=counts_final(settings.alpha, settings.aggregate),
        engine=settings.scorer_engine,
        url=url,
        policy=settings.model,
        options=options,
    )


@dataclass(frozen=True)
class Rejected:
    """A line, or one of its traces, that cannot be scored."""

    line: int
    error: str
    text: str


Chunk = Sequence[Scored | Rejected]


async def _chunks(
    source: Path, settings: ScoreSettings, scorer: Scorer, first: int, limit: int | None, tally: Tally
) -> AsyncIterator[Chunk]:
    """Scored chunks in the order of the file."""
    under_way: deque[tuple[asyncio.Task[Chunk], int]] = deque()
    pending: list[tuple[int, str, list[Trace] | str]] = []
    read, count = 0, 0

    async def next_done() -> Chunk:
        task, reached = under_way.popleft()
        chunk = await task
        tally.bytes = reached
        return chunk

    for number, line, read in read_lines(source, start=first):
        if limit is not None and count >= limit:
            break
        try:
            traces: list[Trace] | str = parse_line(line, number, settings.names)[: None if limit is None else limit - count]
            count += len(traces)
        except BadRowError as error:
            traces = str(error)
        pending.append((number, line, traces))
        if sum(len(traces) for _, _, traces in pending if not isinstance(traces, str)) >= CHUNK or len(pending) >= 8 * CHUNK:
            under_way.append((asyncio.create_task(_score(scorer, pending, settings)), read))
            pending = []
            if len(under_way) == 2:
                yield await next_done()
    under_way.append((asyncio.create_task(_score(scorer, pending, settings)), read))
    while under_way:
        yield await next_done()


async def _score(scorer: Scorer, lines: Sequence[tuple[int, str, list[Trace] | str]], settings: ScoreSettings) -> Chunk:
    """Every line's traces with their rewards; where a batch cannot be read, each trace by itself."""
    traces = [trace for _, _, found in lines if not isinstance(found, str) for trace in found]
    rewards: list[Reward | str] = []
    try:
        rewards += await scorer.score([trace.candidate for trace in traces])
    except InputError:
        for trace in traces:
            try:
                rewards += await scorer.score([trace.candidate])
            except InputError as error:
                rewards.append(str(error))
    each = iter(rewards)
    chunk: list[Scored | Rejected] = []
    for number, line, found in lines:
        if isinstance(found, str):
            chunk.append(Rejected(number, found, line))
            continue
        for trace in found:
            reward = next(each)
            if isinstance(reward, str):
                chunk.append(Rejected(number, reward, line))
            else:
                chunk.append(Scored(trace, replace(reward, alpha=settings.alpha, how=settings.aggregate), number))
    return chunk


def row_of(item: Scored, bare: bool) -> str:
    """The line that is written: the rewards, and then what the trace's row held."""
    reward = item.reward
    row = {
        "id": item.trace.id,
        "step_rewards": list(reward.steps),
        "final": reward.final,
        "total": reward.total,
        "line": item.line,
    }
    if not bare:
        row |= {name: value for name, value in item.trace.row.items() if name not in row}
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


class _Lines:
    """Rows to a function, and what is wrong with other lines to another."""

    first_line, done = 1, 0

    def __init__(self, write: Callable[[str], object] | None, complain: Callable[[str], object] | None) -> None:
        self.write, self.complain = write, complain

    def add(self, chunk: Chunk, bare: bool) -> None:
        for item in chunk:
            if isinstance(item, Scored):
                if self.write is not None:
                    self.write(row_of(item, bare))
            elif self.complain is not None:
                self.complain(f"line {item.line}: {item.error}")

    def close(self) -> None:
        """Nothing is open."""


class _Files:
    """Rows to a file, rejected lines to another, and the settings beside them.

    Both are in the order of the input, so that going on means: drop what the last line left, and begin with that line.
    """

    def __init__(self, out: Path, first_line: int, done: int) -> None:
        self.out, self.rejected, self.first_line, self.done = out, rejected_of(out), first_line, done
        self._out: IO[str] = out.open("a", encoding="utf-8", errors=ESCAPE)
        self._rejected: IO[str] | None = None

    @classmethod
    def open(cls, out: Path, settings: ScoreSettings, resume: bool) -> _Files:
        meta = out.with_name(out.name + ".settings.json")
        try:
            if resume:
                if not meta.is_file():
                    raise InputError(f"{out} was not begun by tts score (no {meta.name} beside it); leave --resume away")
                begun = json.loads(meta.read_text())
                if begun != asdict(settings):
                    different = next(name for name, value in asdict(settings).items() if begun.get(name) != value)
                    raise InputError(
                        f"{out} was begun with {different} = {begun.get(different)!r}, not {getattr(settings, different)!r};"
                        " go on with that, or choose another --out"
                    )
                return cls(out, *_recover(out))
            if out.exists():
                raise InputError(f"{out} exists; go on with it by --resume, or choose another --out")
            out.parent.mkdir(parents=True, exist_ok=True)
            rejected_of(out).unlink(missing_ok=True)
            meta.write_text(json.dumps(asdict(settings), indent=2) + "\n")
            return cls(out, 1, 0)
        except OSError as error:
            raise InputError(f"cannot write to {out}: {error.strerror or error}; choose another --out") from error

    def add(self, chunk: Chunk, bare: bool) -> None:
        """Write a chunk; rejected lines first, so that what a crash leaves is found by the scored ones."""
        refused = [item for item in chunk if isinstance(item, Rejected)]
        if refused:
            if self._rejected is None:
                self._rejected = self.rejected.open("a", encoding="utf-8", errors=ESCAPE)
            for item in refused:
                row = {"line": item.line, "error": item.error, "row": item.text.rstrip("\r\n")}
                self._rejected.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._rejected.flush()
        self._out.writelines(row_of(item, bare) + "\n" for item in chunk if isinstance(item, Scored))
        self._out.flush()

    def close(self) -> None:
        for file in (self._out, self._rejected):
            if file is not None:
                file.close()


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
