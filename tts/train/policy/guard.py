"""A guard against reward hacking: it stops training when r_hat rises while held-out accuracy falls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import TrainerCallback

SIGNIFICANT = 2.0
"""Standard errors by which a slope must differ from 0 to be significant."""


class Evaluation(NamedTuple):
    """Means over the held-out completions of one evaluation."""

    step: int
    """The optimizer step."""
    accuracy: float
    prm: float
    """Mean r_hat."""
    spread: float
    """Standard deviation of r_hat over the completions."""
    samples: int
    """Number of completions."""


def is_hacked(window: Sequence[Evaluation]) -> bool:
    """Return whether r_hat rose and accuracy fell over these evaluations, both significantly.

    Both trends are least-squares slopes over equally spaced evaluations. The standard error of a slope follows from the
    sampling error of each evaluation: sqrt(p (1 - p) / samples) for accuracy, with p its mean over the window, and
    spread / sqrt(samples) for r_hat. Both slopes must differ from 0 by more than SIGNIFICANT standard errors. Since every
    evaluation uses the same problems, the true errors are smaller than this, and the test is conservative.
    """
    if len(window) < 2:
        return False
    mean = sum(evaluation.accuracy for evaluation in window) / len(window)
    accuracy = _significance([e.accuracy for e in window], [mean * (1 - mean) / e.samples for e in window])
    prm = _significance([e.prm for e in window], [e.spread**2 / e.samples for e in window])
    return accuracy < -SIGNIFICANT and prm > SIGNIFICANT


def _significance(values: Sequence[float], variances: Sequence[float]) -> float:
    """Return the least-squares slope of equally spaced values, in standard errors. `variances` are those of the values."""
    middle = (len(values) - 1) / 2
    slope = sum((i - middle) * value for i, value in enumerate(values))
    error = math.sqrt(sum((i - middle) ** 2 * variance for i, variance in enumerate(variances)))
    return slope / error if error > 0 else math.copysign(math.inf, slope) if slope else 0.0


def evaluations(history: Sequence[dict[str, Any]], samples: int) -> list[Evaluation]:
    """Return the evaluations in a trainer's log, one per optimizer step, oldest first. `samples` is the size of each."""
    names = [f"eval_rewards/{name}" for name in ("outcome/mean", "prm/mean", "prm/std")]
    found = {}
    for row in history:
        if all(row.get(name) is not None for name in names):
            accuracy, prm, spread = (float(row[name]) for name in names)
            found[row["step"]] = Evaluation(int(row["step"]), accuracy, prm, spread, samples)
    return [found[step] for step in sorted(found)]


class Guard(TrainerCallback):
    """Stops training, with a checkpoint, when the last `window` evaluations of `samples` completions each are `is_hacked`."""

    def __init__(self, window: int, samples: int) -> None:
        self.window, self.samples = window, samples
        self.verdict: str | None = None
        """Why it stopped the training, as a sentence for the user; None if it did not."""

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        last = evaluations(state.log_history, self.samples)[-self.window :]
        if len(last) == self.window and is_hacked(last):
            first, now = last[0], last[-1]
            self.verdict = (
                f"reward hacking: from step {first.step} to {now.step} mean r_hat rose from {first.prm:.3f} to"
                f" {now.prm:.3f} while held-out accuracy fell from {first.accuracy:.1%} to {now.accuracy:.1%}"
            )
            control.should_training_stop = control.should_save = True
