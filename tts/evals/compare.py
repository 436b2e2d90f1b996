"""Comparison of two runs over the same problems: is one better, or may the difference be chance?"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tts.data.store import RunStore
from tts.errors import InputError
from tts.evals.benchmarks import problem_of
from tts.evals.intervals import Estimate, estimate, estimate_difference, paired_p
from tts.evals.load import open_run


@dataclass(frozen=True)
class Comparison:
    """Accuracies over the problems that both runs graded, and their paired difference.

    Intervals are 95 % intervals over problems. A problem that was solved several times counts with its mean.
    """

    runs: tuple[str, str]
    """The two run folders."""
    problems: int
    """Number of problems that both runs graded."""
    first: Estimate
    """Accuracy of the first run."""
    second: Estimate
    """Accuracy of the second run."""
    difference: Estimate
    """Accuracy of the second run minus that of the first."""
    p: float
    """p-value of no difference; with one sample per problem, that of McNemar's exact test."""
    only_first: int
    """Problems that the first run solved more often than the second."""
    only_second: int
    """Problems that the second run solved more often than the first."""
    left_out: int
    """Problems that were not compared: in one run they are missing, failed, or have no reference answer."""
    settings: dict[str, tuple[Any, Any]]
    """Settings that differ, with their values in both runs."""

    @property
    def verdict(self) -> str:
        """Which run is better, if the difference is significant at 5 %."""
        if self.p >= 0.05:
            return "the difference may be chance"
        return "the second is better" if self.difference.value > 0 else "the first is better"

    def to_json(self) -> dict[str, Any]:
        """The object that `tts compare --json` prints."""
        return {**asdict(self), "verdict": self.verdict}


def compare(first: str | Path, second: str | Path) -> Comparison:
    """Compare two run folders, pairing their problems by id; the same as `tts compare`.

    Raises InputError if a folder is not a run folder, if no problem was graded in both, or if an id stands for different
    problems.
    """
    stores = [open_run(Path(first)), open_run(Path(second))]
    (right, seen), (other_right, other_seen) = (_read(store) for store in stores)
    common = [problem for problem in right if problem in other_right]
    if not common:
        raise InputError(f"{first} and {second} have no graded problem in common; compare runs over the same benchmark")
    if unequal := [problem for problem in common if right[problem][0] != other_right[problem][0]]:
        raise InputError(f"the problem {unequal[0]!r} is not the same in {first} and {second}; compare runs over one benchmark")
    a, b = ([problems[problem][1] for problem in common] for problems in (right, other_right))
    settings = [store.settings for store in stores]
    names = dict.fromkeys((*settings[0], *settings[1]))
    return Comparison(
        runs=(str(first), str(second)),
        problems=len(common),
        first=estimate(a),
        second=estimate(b),
        difference=estimate_difference(a, b),
        p=paired_p(a, b),
        only_first=sum(x > y for x, y in zip(a, b, strict=True)),
        only_second=sum(y > x for x, y in zip(a, b, strict=True)),
        left_out=len(seen | other_seen) - len(common),
        settings={
            name: (settings[0].get(name), settings[1].get(name))
            for name in names
            if settings[0].get(name) != settings[1].get(name)
        },
    )


def _read(store: RunStore) -> tuple[dict[str, tuple[int, float]], set[str]]:
    """For each graded problem, a hash of its text and the share of its rows that are right; and the ids of all problems."""
    repeat = store.settings.get("repeat", 1)
    texts: dict[str, int] = {}
    solved: defaultdict[str, list[float]] = defaultdict(list)
    seen: set[str] = set()
    for row in store.outcomes():
        problem = problem_of(row.id, repeat)
        seen.add(problem)
        if row.error is None and row.correct is not None:
            texts[problem] = hash(row.problem)
            solved[problem].append(float(row.correct))
    return {problem: (texts[problem], sum(times) / len(times)) for problem, times in solved.items()}, seen
