"""What a pool of graded candidates says about accuracy at its size and at every smaller one, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations, groupby
from math import comb
from typing import Any

import numpy as np


def pass_at_k(correct: Sequence[bool], k: int) -> float:
    """Chance that k of the n candidates, drawn without replacement, hold a right one (Chen et al. 2021, unbiased)."""
    n, wrong = len(correct), len(correct) - sum(correct)
    return 1 - comb(wrong, k) / comb(n, k)


def best_of_k(keys: Sequence[Any], correct: Sequence[bool], k: int) -> float:
    """Expected correctness of the candidate with the highest key among k of the n, over all subsets, in closed form.

    Candidates with equal keys share their place: each is as likely to be taken as the others.
    """
    n = len(keys)
    order = sorted(range(n), key=lambda i: keys[i], reverse=True)
    expected, left = 0.0, n
    for _, tied in groupby(order, key=lambda i: keys[i]):
        members = list(tied)
        chance = (comb(left, k) - comb(left - len(members), k)) / comb(n, k)
        expected += chance * sum(correct[i] for i in members) / len(members)
        left -= len(members)
    return expected


def choice_at_k(choose: Callable[[list[int]], int], correct: Sequence[bool], k: int, *, seed: int, draws: int = 64) -> float:
    """Expected correctness of `choose` (indices to one of them) among k of the n.

    Exact where there are at most `draws` subsets, else the mean over so many, drawn by `seed`.
    """
    subsets = _subsets(len(correct), k, seed, draws)
    return sum(correct[choose(subset)] for subset in subsets) / len(subsets)


@cache
def _subsets(n: int, k: int, seed: int, draws: int) -> list[list[int]]:
    """Indices, ascending; the same for every problem, whose candidates are in random order anyway."""
    if comb(n, k) <= draws:
        return [list(subset) for subset in combinations(range(n), k)]
    rng = np.random.default_rng([seed, k])
    return [sorted(rng.choice(n, k, replace=False).tolist()) for _ in range(draws)]


def interval(values: Sequence[float], *, seed: int = 0, draws: int = 10_000, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of one value per problem. Give differences for a paired one."""
    if not values:
        return (float("nan"), float("nan"))
    data, rng = np.asarray(values, dtype=float), np.random.default_rng(seed)
    rows = max(1, 2_000_000 // len(data))  # bounds the memory of one block of resamples
    means = np.concatenate(
        [data[rng.integers(0, len(data), (min(rows, draws - i), len(data)))].mean(1) for i in range(0, draws, rows)]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
