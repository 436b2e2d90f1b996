"""A pool of traces as numbers: `tts select` keeps 57 bytes of each, so that a pool may be far larger than memory."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from tts.data.store import ESCAPE
from tts.data.stream import Tally
from tts.data.traces import BadRowError, Trace, parse_line
from tts.errors import InputError
from tts.train.settings import SelectSettings
from tts.types import Reward, counts_final

ROW = np.dtype(
    [
        ("offset", "i8"),  # of its line, in bytes
        ("line", "i8"),
        ("candidate", "i4"),  # of the line, which for a run has several
        ("score", "f8"),
        ("problem", "u8"),  # hashes; that two of a million traces agree by chance happens in one of 40 million pools
        ("text", "u8"),
        ("steps", "i4"),
        ("characters", "i8"),
        ("correct", "i1"),  # -1 where it is not known
    ]
)
"""What is kept of a trace."""

CHUNK = 4096
"""Traces that are Python objects before they are a ROW each."""

REWARDED = ("r_hat", "response")
"""What --by can be that needs a reward model's rewards."""
UNSCORED = ("random", "all")
"""What it can be that gives a trace no score of its own."""

Rows = npt.NDArray[Any]
"""Of type ROW."""


@dataclass
class Pool:
    """The numbers of every trace that can be ranked, and what was noticed on reading them."""

    path: Path
    names: Mapping[str, str]
    """What it calls the fields of `tts.data.traces.FIELDS`."""
    rows: Rows
    unscored: int = 0
    """Traces without what they are to be ranked by."""
    first_unscored: tuple[int, tuple[str, ...]] = (0, ())
    """The first one's line, and the names of the numbers in it."""
    finals: int = 0
    """Traces with a final reward."""

    def fields_of(self, index: int, file: IO[bytes]) -> Mapping[str, Any]:
        """A trace's own fields; `file` is the pool, open."""
        offset, line, candidate, *_ = self.rows[index].item()
        file.seek(offset)
        row: Mapping[str, Any] = parse_line(_decode(file.readline(), line), line, self.names)[candidate].row
        return row

    def check(self, settings: SelectSettings, complain: Callable[[str], object]) -> None:
        """Raise InputError unless every trace has a score, and all scores are of one kind."""
        total, by, line = len(self.rows), settings.by, self.first_unscored[0]
        here = f"of {total} traces in {self.path} have no"
        if self.unscored and by in REWARDED:
            raise InputError(
                f"{self.unscored} {here} rewards (step_rewards), the first in line {line}; score them all with --scorer"
            )
        if 0 < self.unscored < total:
            raise InputError(
                f"{self.unscored} {here} number under {by!r}, the first in line {line}; mend them, or take them out"
            )
        if self.unscored:
            known = [*REWARDED, *UNSCORED, *self.first_unscored[1]]
            close = get_close_matches(by, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise InputError(
                f"--by is {by!r}, and no trace in {self.path} has a number under that name.{hint} Known: {', '.join(known)}"
            )
        if by != "r_hat" or self.finals == total or not counts_final(settings.alpha, settings.aggregate):
            return
        if self.finals or settings.aggregate == "final":
            raise InputError(
                f"{total - self.finals} {here} final reward, which their r_hat counts; score them all with --scorer, or rank"
                " without it: --alpha 0, and an --aggregate but final"
            )
        complain(f"no trace has a final reward; r_hat is the {settings.aggregate} of the step rewards alone")


def read_pool(settings: SelectSettings, path: Path, names: Mapping[str, str], rejected: Path, tally: Tally) -> Pool:
    """Read a pool once; what cannot be ranked goes to `rejected`, as `tts score` writes it. Raises InputError."""
    pool = Pool(path, names, np.empty(0, ROW))
    chunks: list[Rows] = []
    pending: list[tuple[float, ...]] = []
    tally.done, tally.bytes, tally.tokens, tally.total_bytes = 0, 0, 0, path.stat().st_size
    try:
        with rejected.open("w", encoding="utf-8", errors=ESCAPE) as aside:

            def set_aside(error: BadRowError) -> None:
                row = {"line": number, "error": str(error), "row": line.rstrip("\r\n")}
                aside.write(json.dumps(row, ensure_ascii=False) + "\n")
                tally.rejected += 1

            for offset, number, line in _read(path):
                traces: list[Trace] = []
                try:
                    traces = parse_line(line, number, names)
                except BadRowError as error:
                    set_aside(error)
                for i, trace in enumerate(traces):
                    try:
                        pending.append((offset, number, i, *_numbers(trace, number, settings, pool)))
                        tally.done += 1
                    except BadRowError as error:
                        set_aside(error)
                if len(pending) >= CHUNK:
                    chunks.append(np.array(pending, ROW))
                    pending.clear()
                tally.bytes = offset
        if not rejected.stat().st_size:
            rejected.unlink()
    except OSError as error:
        raise InputError(f"cannot write to {rejected}: {error.strerror or error}; choose another --out") from error
    pool.rows = np.concatenate([*chunks, np.array(pending, ROW)])
    if settings.by == "random":
        pool.rows["score"] = np.random.default_rng(settings.seed).random(len(pool.rows))
    return pool


def lacks_rewards(path: Path, names: Mapping[str, str]) -> bool:
    """Whether it holds traces, and none has rewards. A scored pool's first line says that it is one; others are read whole."""
    found = False
    for _, number, line in _read(path):
        try:
            for trace in parse_line(line, number, names):
                if trace.row.get("step_rewards") is not None:
                    return False
                found = True
        except BadRowError:
            continue
    return found


def _read(path: Path) -> Iterator[tuple[int, int, str]]:
    """The lines that hold anything: where each begins, its number, its text. Raises InputError."""
    try:
        with path.open("rb") as file:
            offset = 0
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield offset, number, _decode(line, number)
                offset += len(line)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _decode(line: bytes, number: int) -> str:
    return line.decode("utf-8-sig" if number == 1 else "utf-8", "replace")


def _numbers(trace: Trace, line: int, settings: SelectSettings, pool: Pool) -> tuple[float, int, int, int, int, int]:
    """A trace as the rest of a ROW. Raises BadRowError."""
    thinking, response = trace.candidate.trajectory
    if not thinking and not response:
        raise BadRowError("the trace is empty")
    score: float | None = 0.0
    if settings.by in REWARDED:
        rewards = _rewards(trace.row)
        score = None if rewards is None else _score(*rewards, len(thinking), len(response), settings)
        pool.finals += rewards is not None and rewards[1] is not None
    elif settings.by not in UNSCORED:
        score = _number(_look_up(trace.row, settings.by))
    if score is None:
        pool.unscored += 1
        if pool.unscored == 1:
            pool.first_unscored = line, tuple(_names_of_numbers(trace.row))
        score = 0.0
    prompt, text = _plain(trace.candidate.problem.prompt), _plain(trace.candidate.text)
    correct = trace.row.get("correct")
    return (
        score, _hash(prompt), _hash(prompt + b"\0" + text), len(thinking) + len(response), len(trace.candidate.text),
        int(correct) if isinstance(correct, bool) else -1,
    )  # fmt: skip


def _rewards(row: Mapping[str, Any]) -> tuple[tuple[float, ...], float | None] | None:
    """Step rewards and final reward, as `tts score` writes them; None where it did not. Raises BadRowError."""
    steps, final = row.get("step_rewards"), row.get("final")
    if steps is None:
        return None
    if not isinstance(steps, list) or any(_number(step) is None for step in steps):
        raise BadRowError(f"'step_rewards' is {json.dumps(steps)[:40]}; expected a list of numbers")
    if final is not None and _number(final) is None:
        raise BadRowError(f"'final' is {json.dumps(final)[:40]}; expected a number or null")
    if not steps and final is None:
        raise BadRowError("'step_rewards' is empty, and there is no 'final'")
    return tuple(map(float, steps)), _number(final)


def _score(steps: tuple[float, ...], final: float | None, thinking: int, response: int, settings: SelectSettings) -> float:
    """r_hat, or the same aggregate of the response's steps alone. Raises BadRowError."""
    try:
        if settings.by == "r_hat":
            score = Reward(steps, final, alpha=settings.alpha, how=settings.aggregate).total
        elif not response:
            raise BadRowError("it has no response to rank it by")
        elif len(steps) not in (response, thinking + response):
            raise BadRowError(f"{len(steps)} step rewards for {thinking} thinking steps and {response} response steps")
        else:
            score = Reward(steps[-response:]).aggregate(settings.aggregate)
    except ValueError as error:
        raise BadRowError(str(error)) from None
    if not math.isfinite(score):
        raise BadRowError(f"its score is {score}, which does not rank")
    return score


def _number(value: Any) -> float | None:
    """A finite number, with true and false as 1 and 0; None for anything else."""
    try:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
    except OverflowError:  # a whole number with hundreds of digits
        return None


def _look_up(row: Mapping[str, Any], name: str) -> Any:
    """A field of that very name, else the dots reach into nested ones."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _names_of_numbers(row: Mapping[str, Any], before: str = "") -> Iterator[str]:
    for name, value in row.items():
        if _number(value) is not None:
            yield before + name
        elif isinstance(value, Mapping) and not before:
            yield from _names_of_numbers(value, f"{name}.")


def _plain(text: str) -> bytes:
    """Without what is only another way to set spaces and lines."""
    return " ".join(text.split()).encode("utf-8", "surrogatepass")


def _hash(text: bytes) -> int:
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big")
