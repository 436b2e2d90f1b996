"""How confident a policy was while it wrote a solution, from log-probabilities (DeepConf, https://arxiv.org/abs/2508.15260)."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Literal

Measure = Literal["lowest", "bottom", "tail", "mean"]
"""Confidence of a solution: that of its least confident group, the mean over its least confident tenth of groups, that of its
last tokens, or the mean over all tokens. A group is a window of consecutive tokens."""

BOTTOM = 0.1
"""Share of the groups that count for `bottom`."""


def confidence_of(logprobs: Iterable[float], count: int) -> float:
    """Confidence of a token: minus the mean of the `count` highest log-probabilities in its place, or of all of fewer."""
    top = heapq.nlargest(count, logprobs)
    return -sum(top) / len(top)


def measured(tokens: Sequence[float], measure: Measure, window: int) -> float:
    """Confidence of a solution from those of its tokens.

    Args:
        tokens: Confidence of each token; not empty.
        measure: What to measure.
        window: Number of tokens in a group, and in the tail; a shorter solution is one group.
    """
    import numpy as np

    values = np.asarray(tokens, float)
    if measure == "mean":
        return float(values.mean())
    if measure == "tail":
        return float(values[-window:].mean())
    width = min(window, len(values))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    groups = (sums[width:] - sums[:-width]) / width
    count = 1 if measure == "lowest" else max(1, int(BOTTOM * len(groups)))
    return float(np.partition(groups, count - 1)[:count].mean())


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which a share of the values lies, interpolated between two of them."""
    import numpy as np

    return float(np.quantile(values, share))
