"""A pool of traces, reduced to the numbers that selection needs.

`tts select` keeps 57 bytes per trace in memory and leaves the texts in the file, so that a pool may be larger than memory.
"""

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

from tts.data.files import ESCAPE
from tts.data.stream import Tally
from tts.data.traces import BadRowError, Trace, parse_line
from tts.errors import InputError
from tts.train.settings import SelectSettings
from tts.types import Reward, counts_final

TRACE_DTYPE = np.dtype(
    [
        ("offset", "i8"),  # of the line in the file, in bytes
        ("line", "i8"),
        ("candidate", "i4"),  # index within the line: a row of a run holds several candidates
        ("score", "f8"),
        ("problem", "u8"),  # hashes; a million traces have a collision in one of 40 million pools
        ("text", "u8"),
        ("steps", "i4"),
        ("characters", "i8"),
        ("correct", "i1"),  # -1 if unknown
    ]
)
"""What is kept of a trace."""

TraceArray = npt.NDArray[Any]
"""A structured array [traces] of TRACE_DTYPE."""

BUFFERED = 4096
"""Traces collected as Python tuples before they become an array."""

REWARDED = ("r_hat", "response")
"""Values of --by that need rewards of a reward model."""
UNSCORED = ("random", "all")
"""Values of --by that give a trace no score."""


@dataclass
class TracePool:
    """The traces of a file that can be ranked, as numbers, and what was noticed while reading them."""

    path: Path
    names: Mapping[str, str]
    """The file's names for the fields in `tts.data.traces.FIELDS`."""
    traces: TraceArray
    unscored: int = 0
    """Traces without the rewards or the number that they should be ranked by."""
    first_unscored: tuple[int, tuple[str, ...]] = (0, ())
    """The line of the first such trace, and the names of its numeric fields."""
    finals: int = 0
    """Traces with a final reward."""

    def fields_of(self, index: int, file: IO[bytes]) -> Mapping[str, Any]:
        """Return the fields of a trace as its row has them. `file` is the pool's file, open for reading."""
        offset, line, candidate, *_ = self.traces[index].item()
        file.seek(offset)
        row: Mapping[str, Any] = parse_line(_decode(file.readline(), line), line, self.names)[candidate].row
        return row

    def check(self, settings: SelectSettings, complain: Callable[[str], object]) -> None:
        """Raise InputError unless every trace has a score and all scores are computed in the same way."""
        total, by, line = len(self.traces), settings.by, self.first_unscored[0]
        here = f"of {total} traces in {self.path} have no"
        if self.unscored and by in REWARDED:
            raise InputError(
                f"{self.unscored} {here} rewards (step_rewards), the first on line {line}; score all traces with --scorer"
            )
        if 0 < self.unscored < total:
            raise InputError(f"{self.unscored} {here} number under {by!r}, the first on line {line}; fix or remove them")
        if self.unscored:
            known = [*REWARDED, *UNSCORED, *self.first_unscored[1]]
            close = get_close_matches(by, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise InputError(
                f"--by is {by!r}, but no trace in {self.path} has a number under that name.{hint} Known: {', '.join(known)}"
            )
        if by != "r_hat" or self.finals == total or not counts_final(settings.alpha, settings.aggregate):
            return
        if self.finals or settings.aggregate == "final":
            raise InputError(
                f"{total - self.finals} {here} final reward, which r_hat needs; score all traces with --scorer, or rank without"
                " it: with --alpha 0, and an --aggregate other than final"
            )
        complain(f"no trace has a final reward; r_hat is the {settings.aggregate} of the step rewards alone")


def read_pool(settings: SelectSettings, path: Path, names: Mapping[str, str], rejected: Path, tally: Tally) -> TracePool:
    """Read a pool in one pass.

    Args:
        settings: The options of `tts select`.
        path: JSONL of traces.
        names: The file's names for the fields in `tts.data.traces.FIELDS`.
        rejected: JSONL to write, with the rows that cannot be ranked and the reasons. It is removed if there are none.
        tally: Progress, updated in place.

    Raises:
        InputError: A file cannot be read or written.
    """
    pool = TracePool(path, names, np.empty(0, TRACE_DTYPE))
    chunks: list[TraceArray] = []
    pending: list[tuple[float, ...]] = []
    tally.done, tally.bytes, tally.tokens, tally.total_bytes = 0, 0, 0, path.stat().st_size
    try:
        with rejected.open("w", encoding="utf-8", errors=ESCAPE) as rejected_file:

            def reject(error: BadRowError) -> None:
                row = {"line": number, "error": str(error), "row": line.rstrip("\r\n")}
                rejected_file.write(json.dumps(row, ensure_ascii=False) + "\n")
                tally.rejected += 1

            for offset, number, line in _lines(path):
                traces: list[Trace] = []
                try:
                    traces = parse_line(line, number, names)
                except BadRowError as error:
                    reject(error)
                for i, trace in enumerate(traces):
                    try:
                        pending.append((offset, number, i, *_numbers_of(trace, number, settings, pool)))
                        tally.done += 1
                    except BadRowError as error:
                        reject(error)
                if len(pending) >= BUFFERED:
                    chunks.append(np.array(pending, TRACE_DTYPE))
                    pending.clear()
                tally.bytes = offset
        if not rejected.stat().st_size:
            rejected.unlink()
    except OSError as error:
        raise InputError(f"cannot write to {rejected}: {error.strerror or error}; choose another --out") from error
    pool.traces = np.concatenate([*chunks, np.array(pending, TRACE_DTYPE)])
    if settings.by == "random":
        pool.traces["score"] = np.random.default_rng(settings.seed).random(len(pool.traces))
    return pool


def lacks_rewards(path: Path, names: Mapping[str, str]) -> bool:
    """Return whether a file holds traces, but none with rewards. Reading stops at the first trace with rewards."""
    found = False
    for _, number, line in _lines(path):
        try:
            for trace in parse_line(line, number, names):
                if trace.row.get("step_rewards") is not None:
                    return False
                found = True
        except BadRowError:
            continue
    return found


def _lines(path: Path) -> Iterator[tuple[int, int, str]]:
    """Yield byte offset, number and text of the lines that are not blank. Raises InputError if the file cannot be read."""
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


def _numbers_of(trace: Trace, line: int, settings: SelectSettings, pool: TracePool) -> tuple[float, int, int, int, int, int]:
    """Return the fields of TRACE_DTYPE from `score` on, and count a missing score in `pool`. Raises BadRowError."""
    thinking, response = trace.candidate.trajectory
    if not thinking and not response:
        raise BadRowError("the trace is empty")
    score: float | None = 0.0
    if settings.by in REWARDED:
        reward = _reward(trace, settings)
        score = None if reward is None else _reward_score(reward, len(thinking), len(response), settings)
        pool.finals += reward is not None and (reward.final is not None or reward.final_missing)
    elif settings.by not in UNSCORED:
        score = _finite(_look_up(trace.row, settings.by))
    if score is None:
        pool.unscored += 1
        if pool.unscored == 1:
            pool.first_unscored = line, tuple(_numeric_fields(trace.row))
        score = 0.0
    prompt, text = _normalized(trace.candidate.problem.prompt), _normalized(trace.candidate.text)
    correct = trace.row.get("correct")
    return (
        score, _hash(prompt), _hash(prompt + b"\0" + text), len(thinking) + len(response), len(trace.candidate.text),
        int(correct) if isinstance(correct, bool) else -1,
    )  # fmt: skip


def _reward(trace: Trace, settings: SelectSettings) -> Reward | None:
    """Return the reward that `tts score` wrote into a trace's row, or None for a row that it did not write.

    Raises BadRowError if it does not consist of numbers, or has no verdict.
    """
    steps, final = trace.row.get("step_rewards"), trace.row.get("final")
    if steps is None:
        return None
    if not isinstance(steps, list) or any(step is not None and _finite(step) is None for step in steps):
        raise BadRowError(f"'step_rewards' is {json.dumps(steps)[:40]}; expected a list of numbers, null without a verdict")
    if final is not None and _finite(final) is None:
        raise BadRowError(f"'final' is {json.dumps(final)[:40]}; expected a number or null")
    if not steps and final is None:
        raise BadRowError("'step_rewards' is empty, and there is no 'final'")
    missing = trace.row.get("final_missing") is True
    values = tuple(map(_finite, trace.by_step(steps)))
    return Reward(values, _finite(final), alpha=settings.alpha, how=settings.aggregate, final_missing=missing)


def _reward_score(reward: Reward, thinking: int, response: int, settings: SelectSettings) -> float:
    """Return r_hat, or with --by response the aggregate of the response steps. Raises BadRowError if there is no such score."""
    steps = len(reward.steps)
    if settings.by == "response":
        if not response:
            raise BadRowError("the trace has no response, which --by response needs")
        if steps not in (response, thinking + response):
            raise BadRowError(f"{steps} step rewards for {thinking} thinking steps and {response} response steps")
        reward = Reward(reward.steps[-response:], alpha=0, how=settings.aggregate)
    if reward.missing and not reward.rated:
        raise BadRowError("the scorer gave no verdict on what the trace is ranked by")
    try:
        score = reward.total
    except ValueError as error:
        raise BadRowError(str(error)) from None
    if not math.isfinite(score):
        raise BadRowError(f"the score is {score}, which cannot be ranked")
    return score


def _finite(value: Any) -> float | None:
    """Return a finite number as a float, true and false as 1 and 0, and anything else as None."""
    try:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
    except OverflowError:  # a whole number with hundreds of digits
        return None


def _look_up(row: Mapping[str, Any], name: str) -> Any:
    """Return the field of this exact name, or else, at each dot, a field of the nested object; None if there is none."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _numeric_fields(row: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the names of the numbers in a row and in its nested objects, one level deep."""
    for name, value in row.items():
        if _finite(value) is not None:
            yield prefix + name
        elif isinstance(value, Mapping) and not prefix:
            yield from _numeric_fields(value, f"{name}.")


def _normalized(text: str) -> bytes:
    """Return the text with every run of white space replaced by one space, as UTF-8."""
    return " ".join(text.split()).encode("utf-8", "surrogatepass")


def _hash(text: bytes) -> int:
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big")
