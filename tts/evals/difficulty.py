"""Difficulty bins for compute-optimal scaling, fitted to runs over development problems (Snell et al., arXiv 2408.03314)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tts.data.records import Record
from tts.errors import InputError
from tts.evals.load import open_run

BINS = ("hard", "medium", "easy")


@dataclass(frozen=True)
class Difficulty:
    """Thresholds between the bins, and what each strategy achieved in each."""

    pilot: int
    """Samples from which the ease of a problem is estimated."""
    hard_below: float
    """The first tercile of the ease."""
    easy_above: float
    """The second tercile."""
    problems: dict[str, int]
    """Number of problems in each bin."""
    accuracy: dict[str, dict[str, float]]
    """By strategy, its accuracy in each bin."""
    chosen: dict[str, str]
    """By bin, the strategy with the highest accuracy there; at equal accuracy, the one given first."""

    @property
    def options(self) -> str:
        """The options of `tts run --strategy compute-optimal`."""
        arms = " ".join(f"--{name} {self.chosen[name]}" for name in reversed(BINS))
        return f"--pilot {self.pilot} --hard-below {self.hard_below} --easy-above {self.easy_above} {arms}"

    def to_json(self) -> dict[str, Any]:
        """The object that `tts difficulty --json` prints."""
        return asdict(self) | {"options": self.options}


def fit_difficulty(pool: str | Path, *runs: str | Path, pilot: int = 4) -> Difficulty:
    """Fit compute-optimal's thresholds and choose its strategies; the same as `tts difficulty`.

    The ease of a problem is what compute-optimal estimates: the mean step reward of its first `pilot` samples.

    Args:
        pool: Run folder of a strategy that draws independent samples, with a reward model.
        runs: Run folders of other strategies over the same problems, of about the same cost.
        pilot: Samples per problem that the estimate uses. Default 4.

    Raises:
        InputError: The pool has no independent samples, no rewards or too few samples; or two runs are of one strategy; or
            the runs have no graded problem in common.
    """
    folders = [Path(folder) for folder in (pool, *runs)]
    stores = [open_run(folder) for folder in folders]
    names = [str(store.settings["strategy"]) for store in stores]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"two of the runs are of {twice}; give one run of each strategy")
    ease: dict[str, float] = {}
    solved: list[dict[str, bool]] = []
    for store, folder in zip(stores, folders, strict=True):
        solved.append({})
        for row in store.stream():
            if row.correct is not None:
                solved[-1][row.id] = row.correct
                if store is stores[0]:
                    ease[row.id] = _ease(row, pilot, folder)
    common = [problem for problem in ease if all(problem in others for others in solved)]
    if not common:
        raise InputError("the runs have no graded problem in common; give runs over one benchmark with reference answers")
    low, high = (round(float(edge), 4) for edge in np.quantile([ease[problem] for problem in common], [1 / 3, 2 / 3]))
    bins: dict[str, list[str]] = {name: [] for name in BINS}
    for problem in common:
        bins["easy" if ease[problem] > high else "hard" if ease[problem] < low else "medium"].append(problem)
    accuracy = {
        strategy: {name: _mean([right[problem] for problem in problems]) for name, problems in bins.items()}
        for strategy, right in zip(names, solved, strict=True)
    }
    chosen = {name: max(names, key=lambda strategy: accuracy[strategy][name]) for name in BINS}
    return Difficulty(pilot, low, high, {name: len(problems) for name, problems in bins.items()}, accuracy, chosen)


def _ease(row: Record, pilot: int, folder: Path) -> float:
    """The mean step reward of the first samples of a problem."""
    samples = row.candidates[:pilot]
    if row.tree:
        raise InputError(f"{folder} is of a search; give a run that draws independent samples first, such as one of bon")
    if len(samples) < pilot:
        raise InputError(f"{folder} has {len(samples)} samples of {row.id!r}; --pilot is {pilot}: give a run with a larger --n")
    if any(sample.rewards is None for sample in samples):
        raise InputError(f"{folder} has no step rewards; give a run with a process reward model first")
    return _mean([sample.reward().aggregate("mean") for sample in samples])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
