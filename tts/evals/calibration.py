"""Calibration of rewards: how often candidates with a reward of 0.8 are right, and whether longer ones have higher rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Bin(NamedTuple):
    """Candidates with rewards from `low` (inclusive) to `high` (exclusive; inclusive in the last bin)."""

    low: float
    high: float
    candidates: int
    """Number of candidates."""
    reward: float
    """Mean reward."""
    right: float
    """Share of candidates that are right."""


class Calibration(NamedTuple):
    """A reliability curve and its distance from the diagonal."""

    bins: tuple[Bin, ...]
    """The bins that are not empty."""
    error: float
    """Expected calibration error: the mean over candidates of |reward - right| of their bin (arXiv 1706.04599)."""


def calibration(rewards: Sequence[float], correct: Sequence[bool], bins: int = 10) -> Calibration:
    """Compare rewards with correctness.

    Args:
        rewards: One reward in [0, 1] per candidate.
        correct: Whether each candidate is right.
        bins: Number of bins of equal width. Default 10.

    Raises:
        ValueError: If a reward is outside [0, 1], or the two sequences differ in length.
    """
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
    """Spearman's rank correlation of rewards and lengths; equal values share their mean rank.

    Returns None if all rewards or all lengths are equal. Raises ValueError if the sequences differ in length.
    """
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
