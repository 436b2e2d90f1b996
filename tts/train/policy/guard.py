"""A guard against reward hacking: training ends when the reward model is pleased ever more while answers get worse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import TrainerCallback

SIGNIFICANT = 2.0
"""Standard errors by which a slope must differ from 0."""


class Reading(NamedTuple):
    """What an evaluation found, on `samples` held-out completions."""

    step: int
    accuracy: float
    prm: float
    """Mean of r_hat."""
    spread: float
    """Standard deviation of r_hat over the completions."""
    samples: int


def is_hacked(window: Sequence[Reading]) -> bool:
    """Whether over these evaluations r_hat rose and accuracy fell, both by more than chance.

    Each is a least-squares slope over the evaluations; its standard error follows from the sampling error of their means,
    sqrt(p (1 - p) / samples) for an accuracy and spread / sqrt(samples) for r_hat. Both slopes must differ from 0 by more than
    SIGNIFICANT standard errors. Held-out problems are the same every time, which makes the true error smaller.
    """
    if len(window) < 2:
        return False
    mean = sum(reading.accuracy for reading in window) / len(window)
    accuracy = _significance([r.accuracy for r in window], [mean * (1 - mean) / r.samples for r in window])
    prm = _significance([r.prm for r in window], [r.spread**2 / r.samples for r in window])
    return accuracy < -SIGNIFICANT and prm > SIGNIFICANT


def _significance(values: Sequence[float], variances: Sequence[float]) -> float:
    """The least-squares slope of values at equal distances, in standard errors; `variances` are those of the values."""
    middle = (len(values) - 1) / 2
    slope = sum((i - middle) * value for i, value in enumerate(values))
    error = math.sqrt(sum((i - middle) ** 2 * variance for i, variance in enumerate(variances)))
    return slope / error if error > 0 else math.copysign(math.inf, slope) if slope else 0.0


def readings(history: Sequence[dict[str, Any]], samples: int) -> list[Reading]:
    """The evaluations in a trainer's log, oldest first, each once."""
    names = [f"eval_rewards/{name}" for name in ("outcome/mean", "prm/mean", "prm/std")]
    found = {}
    for row in history:
        if all(row.get(name) is not None for name in names):
            accuracy, prm, spread = (float(row[name]) for name in names)
            found[row["step"]] = Reading(int(row["step"]), accuracy, prm, spread, samples)
    return [found[step] for step in sorted(found)]


class Guard(TrainerCallback):
    """Looks over the last `window` evaluations after each, and ends the training, with a checkpoint, where `is_hacked`."""

    def __init__(self, window: int, samples: int) -> None:
        self.window, self.samples = window, samples
        self.verdict: str | None = None
        """Why it ended the training, in plain words; None while it did not."""

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        last = readings(state.log_history, self.samples)[-self.window :]
        if len(last) == self.window and is_hacked(last):
            first, now = last[0], last[-1]
            self.verdict = (
                f"reward hacking: from step {first.step} to {now.step} the reward model's part rose from {first.prm:.3f} to"
                f" {now.prm:.3f} while held-out accuracy fell from {first.accuracy:.1%} to {now.accuracy:.1%}"
            )
            control.should_training_stop = control.should_save = True
