"""Whether rewards mean what they say: how often candidates with a reward of 0.8 are right, and whether length buys reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Bin(NamedTuple):
    """Candidates whose rewards lie between `low` and `high`."""

    low: float
    high: float
    candidates: int
    reward: float
    """Their mean."""
    right: float
    """Share of them that is right."""


class Calibration(NamedTuple):
    """A reliability curve, and how far it is from the diagonal."""

    bins: tuple[Bin, ...]
    """Those that hold anything."""
    error: float
    """Expected calibration error: the mean over candidates of their bin's |reward - right| (arXiv 1706.04599)."""


def calibration(rewards: Sequence[float], correct: Sequence[bool], bins: int = 10) -> Calibration:
    """Rewards in [0, 1] against correctness, in bins of equal width; a reward on an edge belongs to the bin above it."""
    if not all(0 <= reward <= 1 for reward in rewards):
        raise ValueError(f"calibration needs rewards between 0 and 1, got {min(rewards)} to {max(rewards)}")
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for pair in zip(rewards, correct, strict=True):
        members[min(int(pair[0] * bins), bins - 1)].append(pair)
    filled = tuple(
        Bin(i / bins, (i + 1) / bins, len(pairs), *(sum(column) / len(pairs) for column in zip(*pairs, strict=True)))
        for i, pairs in enumerate(members)
        if pairs
    )
    return Calibration(filled, sum(b.candidates * abs(b.reward - b.right) for b in filled) / max(1, len(rewards)))


def reward_length_correlation(rewards: Sequence[float], lengths: Sequence[float]) -> float | None:
    """Spearman's rank correlation; equal values share their mean rank. None where either is the same for all."""
    if len(rewards) != len(lengths):
        raise ValueError(f"a correlation pairs rewards with lengths; got {len(rewards)} and {len(lengths)}")
    if len(set(rewards)) < 2 or len(set(lengths)) < 2:
        return None
    return float(np.corrcoef(_ranks(rewards), _ranks(lengths))[0, 1])


def _ranks(values: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    _, place, counts = np.unique(np.asarray(values, dtype=float), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: np.ndarray[tuple[int], np.dtype[np.float64]] = (last - (counts - 1) / 2)[place]
    return ranks
