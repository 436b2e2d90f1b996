"""Two runs over the same problems: is one better, or is it chance?"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tts.data.store import RunStore
from tts.errors import InputError
from tts.evals.benchmarks import problem_of
from tts.evals.load import open_run
from tts.evals.summary import Estimate, estimate


@dataclass(frozen=True)
class Comparison:
    """Accuracies over the problems that both runs graded, and their paired difference.

    Intervals are 95 %, by bootstrap over problems; a problem that was solved several times counts with its mean.
    """

    runs: tuple[str, str]
    problems: int
    first: Estimate
    second: Estimate
    difference: Estimate
    """Second less first."""
    only_first: int
    """Problems that the first got right more often than the second."""
    only_second: int
    left_out: int
    """Problems that one of the runs lacks, could not grade, or failed at."""
    settings: dict[str, tuple[Any, Any]]
    """Those that differ."""

    def to_json(self) -> dict[str, Any]:
        """As `tts compare --json` prints it."""
        return asdict(self)


def compare(first: str | Path, second: str | Path) -> Comparison:
    """Compare two run folders, pairing their problems by id. Raises InputError where they have none in common."""
    stores = [open_run(Path(first)), open_run(Path(second))]
    right = [_right(store) for store in stores]
    common = [problem for problem in right[0] if problem in right[1]]
    if not common:
        raise InputError(f"{first} and {second} have no graded problem in common; compare runs over the same benchmark")
    if unequal := [problem for problem in common if right[0][problem][0] != right[1][problem][0]]:
        raise InputError(f"the problem {unequal[0]!r} is not the same in {first} and {second}; compare runs over one benchmark")
    a, b = ([right[which][problem][1] for problem in common] for which in (0, 1))
    settings = [store.settings for store in stores]
    names = dict.fromkeys((*settings[0], *settings[1]))
    return Comparison(
        runs=(str(first), str(second)),
        problems=len(common),
        first=estimate(a),
        second=estimate(b),
        difference=estimate([y - x for x, y in zip(a, b, strict=True)]),
        only_first=sum(x > y for x, y in zip(a, b, strict=True)),
        only_second=sum(y > x for x, y in zip(a, b, strict=True)),
        left_out=len({*right[0], *right[1]}) - len(common) + sum(_ungraded(store) for store in stores),
        settings={
            name: (settings[0].get(name), settings[1].get(name))
            for name in names
            if settings[0].get(name) != settings[1].get(name)
        },
    )


def _right(store: RunStore) -> dict[str, tuple[str, float]]:
    """Each graded problem's text, and how often it was solved."""
    repeat = store.settings.get("repeat", 1)
    texts: dict[str, str] = {}
    solved: defaultdict[str, list[float]] = defaultdict(list)
    for record in store.records():
        if record.error is None and record.correct is not None:
            problem = problem_of(record.id, repeat)
            texts[problem] = record.problem
            solved[problem].append(float(record.correct))
    return {problem: (texts[problem], sum(times) / len(times)) for problem, times in solved.items()}


def _ungraded(store: RunStore) -> int:
    return sum(record.error is not None or record.correct is None for record in store.records())
