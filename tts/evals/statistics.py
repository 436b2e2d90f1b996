"""Estimates of accuracy from n graded candidates per problem: at n, at every smaller k, and with intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache
from itertools import combinations, groupby
from math import comb
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCK = 2_000_000
"""Maximum number of indices in one block of resamples, which limits memory."""


def pass_at_k(correct: Sequence[bool], k: int) -> float:
    """Probability that at least one of k candidates, drawn without replacement from the n, is right.

    This is the unbiased estimator of Chen et al. 2021 (https://arxiv.org/abs/2107.03374). `correct` has one flag per candidate;
    k is at most their number.
    """
    n, wrong = len(correct), len(correct) - sum(correct)
    return 1 - comb(wrong, k) / comb(n, k)


def best_of_k(keys: Sequence[Any], correct: Sequence[bool], k: int) -> float:
    """Expected correctness of the candidate with the highest key among k of the n, over all subsets, in closed form.

    Among candidates with equal keys, each is equally likely to be chosen. `keys` and `correct` have one entry per candidate.
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


def majority_of_k(groups: Sequence[int | None], correct: Sequence[bool], k: int) -> float:
    """Expected correctness of the most frequent group among k of the n candidates, over all subsets, exactly.

    Equivalent answers have the same group; a candidate of group None has no vote. Among equally frequent groups, each is
    equally likely to be chosen. Subsets are counted with a generating function: for each number of votes t, those in which a
    group has t votes, some other groups have as many, and none has more.
    """
    sizes = Counter(group for group in groups if group is not None)
    right = {group: flag for group, flag in zip(groups, correct, strict=True) if group is not None}
    return _majority_of_k(tuple(sorted((size, right[group]) for group, size in sizes.items())), len(groups), k)


@lru_cache(maxsize=4096)
def _majority_of_k(votes: tuple[tuple[int, bool], ...], n: int, k: int) -> float:
    """The same for groups given as (size, whether it is right); cached, as many problems have the same votes."""
    sizes = [size for size, _ in votes]
    if k == n:  # one subset
        most = [right for size, right in votes if size == max(sizes)]
        return sum(most) / len(most) if most else 0.0
    silent = n - sum(sizes)
    expected = 0.0
    for t in range(1, min(k, max(sizes, default=0)) + 1):
        # ways[v, j]: choices of v candidates in which no group has more than t votes, and j of the groups have exactly t
        start = np.zeros((k + 1, k // t + 1))
        start[: silent + 1, 0] = [comb(silent, v) for v in range(min(silent, k) + 1)]
        before = [start]
        for size in sizes:
            before.append(_with_group(before[-1], size, t))
        after = [np.eye(1, k // t + 1) * np.eye(k + 1, 1)]
        for size in reversed(sizes):
            after.append(_with_group(after[-1], size, t))
        for i, (size, right) in enumerate(votes):
            if right and size >= t:
                rest = k - t + 1
                pairs = before[i][:rest].T @ after[len(sizes) - 1 - i][:rest][::-1]  # [ties before, ties after]
                ties = np.add.outer(np.arange(len(pairs)), np.arange(len(pairs)))
                expected += comb(size, t) * float((pairs / (ties + 1)).sum())
    return expected / comb(n, k)


def _with_group(ways: NDArray[np.float64], size: int, t: int) -> NDArray[np.float64]:
    """`ways` after adding a group of `size` candidates, which may have up to t votes."""
    votes, ties = ways.shape
    grown = np.zeros_like(ways)
    for v in range(min(size, t, votes - 1) + 1):
        if v < t:
            grown[v:] += comb(size, v) * ways[: votes - v]
        else:
            grown[v:, 1:] += comb(size, v) * ways[: votes - v, : ties - 1]
    return grown


class Sampled(NamedTuple):
    """A mean over subsets and its standard error, which is 0 if all subsets were taken."""

    value: float
    error: float = 0.0


def choice_at_k(choose: Callable[[list[int]], int], correct: Sequence[bool], k: int, *, seed: int, draws: int = 64) -> Sampled:
    """Expected correctness of the candidate that `choose` picks among k of the n.

    Args:
        choose: Maps the ascending indices of k candidates to one of them.
        correct: Whether each of the n candidates is right.
        k: Size of the subsets.
        seed: Seed for drawing subsets.
        draws: Number of subsets to draw. If there are no more than that, all of them are taken. Default 64.
    """
    n = len(correct)
    subsets = _subsets(n, k, seed, draws)
    share = sum(correct[choose(subset)] for subset in subsets) / len(subsets)
    exact = len(subsets) == comb(n, k)
    return Sampled(share, 0.0 if exact else (share * (1 - share) / (len(subsets) - 1)) ** 0.5)


@cache
def _subsets(n: int, k: int, seed: int, draws: int) -> list[list[int]]:
    """Ascending indices; the same for every problem, as candidates are in random order."""
    if comb(n, k) <= draws:
        return [list(subset) for subset in combinations(range(n), k)]
    rng = np.random.default_rng([seed, k])
    return [sorted(rng.choice(n, k, replace=False).tolist()) for _ in range(draws)]


def interval(values: Sequence[float], *, seed: int = 0, draws: int = 10_000, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over problems.

    Args:
        values: One value per problem; for a paired comparison, the differences.
        seed: Seed of the resamples. Default 0.
        draws: Number of resamples. Default 10,000.
        level: Coverage that the interval should have. Default 0.95.

    Returns:
        The lower and the upper end; NaN without values.
    """
    if not values:
        return (float("nan"), float("nan"))
    data = np.asarray(values, dtype=float)
    means = np.concatenate([data[resample].mean(1) for resample in _resamples(len(data), seed, draws)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resamples(count: int, seed: int, draws: int) -> Iterable[NDArray[np.int64]]:
    """Yield resamples as arrays of indices [draws, count], in blocks; the same for all means of a run."""
    if count * draws <= _BLOCK:
        return (_resample(count, seed, draws),)
    rng, rows = np.random.default_rng(seed), max(1, _BLOCK // count)
    return (rng.integers(0, count, (min(rows, draws - i), count)) for i in range(0, draws, rows))


@lru_cache(maxsize=1)
def _resample(count: int, seed: int, draws: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, count, (draws, count))
