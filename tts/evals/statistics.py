"""Estimates of accuracy from n graded candidates of a problem, at n and at every smaller k."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from itertools import combinations
from math import comb, fsum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def pass_at_k(correct: Sequence[bool], k: int) -> float:
    """Probability that at least one of k candidates, drawn without replacement from the n, is right.

    This is the unbiased estimator of Chen et al. 2021 (https://arxiv.org/abs/2107.03374). `correct` has one flag per candidate;
    k is at most their number.
    """
    n, wrong = len(correct), len(correct) - sum(correct)
    return 1 - comb(wrong, k) / comb(n, k)


def best_of_k(keys: Sequence[Any], correct: Sequence[bool], k: int) -> float:
    """Expected correctness of the candidate with the highest key among k of the n, over all subsets, in closed form.

    Of candidates with equal keys, the earlier one is chosen. `keys` and `correct` have one entry per candidate.
    """
    return best_curve(keys, correct, [k])[0]


def best_curve(keys: Sequence[Any], correct: Sequence[bool], sizes: Sequence[int]) -> list[float]:
    """`best_of_k` for several k."""
    n = len(keys)
    order = sorted(range(n), key=lambda i: keys[i], reverse=True)  # stable: at equal keys, the earlier one first
    ranks = [rank for rank, i in enumerate(order) if correct[i]]
    chances = [_chances(n, k) for k in sizes]
    return [fsum(chance[rank] for rank in ranks[: bisect_left(ranks, len(chance))]) for chance in chances]


@lru_cache(maxsize=256)
def _chances(n: int, k: int) -> list[float]:
    """The share of the subsets of size k that choose the candidate of each rank: C(n - 1 - rank, k - 1) / C(n, k)."""
    rank = np.arange(n - k)
    chances: list[float] = np.cumprod(np.concatenate([[k / n], (n - k - rank) / (n - 1 - rank)])).tolist()
    return chances  # by ratios, as the binomials may be too large for a float


def majority_of_k(groups: Sequence[int | None], correct: Sequence[bool], finished: Sequence[bool], k: int) -> float:
    """Expected correctness of the most frequent group among k of the n candidates, over all subsets, exactly.

    Equivalent answers have the same group; a candidate of group None has no vote. The chosen candidate is finished if any is,
    has the most votes among those, and is the earliest with as many. For large n, this takes long: 0.1 s for 256.
    """
    return majority_curve(groups, correct, finished, [k])[0]


def majority_curve(
    groups: Sequence[int | None], correct: Sequence[bool], finished: Sequence[bool], sizes: Sequence[int]
) -> list[float]:
    """`majority_of_k` for several k, which takes as long as for the largest alone."""
    return list(_majority_curve(tuple(groups), tuple(correct), tuple(finished), tuple(sizes)))


@lru_cache(maxsize=4096)  # on easy problems, candidates agree
def _majority_curve(
    groups: tuple[int | None, ...], correct: tuple[bool, ...], finished: tuple[bool, ...], sizes: tuple[int, ...]
) -> tuple[float, ...]:
    voters = list(zip(groups, correct, finished, strict=True))
    cut = [(group, right, True) for group, right, done in voters if not done]
    ways = [a + b for a, b in zip(_ways_to_be_right(voters, sizes), _ways_to_be_right(cut, sizes), strict=True)]
    return tuple(way / comb(len(voters), k) for way, k in zip(ways, sizes, strict=True))


def _ways_to_be_right(voters: Sequence[tuple[int | None, bool, bool]], sizes: Sequence[int]) -> list[float]:
    """For each of the sizes, the number of subsets whose choice is right and finished. A voter is (group, right, finished).

    Subsets are counted for each number of votes t and each candidate i of a group with right ones: those in which i is chosen
    with t votes. Of every other group with finished members, they have fewer than t candidates, or t with no finished one
    before i, or only unfinished ones. Above the size of the largest of those groups, this holds for all subsets; up to there,
    the coefficients of a product of generating functions, one per group, count them.
    """
    if not voters:
        return [0.0] * len(sizes)
    choose, size = _binomials(len(voters)), Counter(group for group, _, _ in voters if group is not None)
    places: dict[int, list[int]] = {}  # of finished members
    for i, (group, _, done) in enumerate(voters):
        if group is not None and done:
            places.setdefault(group, []).append(i)
    ways, largest = [0.0] * len(sizes), min(max(sizes), len(voters))
    for chosen, members in places.items():
        right = [float(voters[i][1]) for i in members]
        if not any(right):
            continue
        mates = size[chosen] - 1 - np.arange(len(members))  # who may vote beside i: unfinished ones, and those after i
        wins = choose[mates, : size[chosen]] * np.array(right)[:, None]  # [i, t - 1]
        outside, contested = len(voters) - size[chosen], max((size[group] for group in places if group != chosen), default=0)
        for place, k in enumerate(sizes):
            last = min(k, size[chosen])
            if contested < last:
                rest = choose[outside, k - last : k - contested][::-1]  # of the others, for t = contested + 1, …, last
                ways[place] += float(wins[:, contested:last].sum(0) @ rest)
        # of a rival with t votes, those who can have them if i is chosen: unfinished ones, and those after i
        ties = {
            group: [size[group] - bisect_left(found, i) for i in members] for group, found in places.items() if group != chosen
        }
        for t in range(1, min(largest, size[chosen], contested) + 1):
            rivals = [group for group in ties if size[group] >= t]
            others = outside - sum(size[group] for group in rivals)
            width = largest - t + 1
            chances = wins[:, t - 1, None] * choose[others, :width]  # [i, number of candidates beside those with votes]
            for group in rivals:
                tied = choose[ties[group], t][:, None] * chances[:, : max(0, width - t)]
                chances = chances @ _not_tied(size[group], size[group] - len(places[group]), t, width)
                chances[:, t:] += tied
            total = chances.sum(0)
            for place, k in enumerate(sizes):
                if t <= k <= len(voters):
                    ways[place] += float(total[k - t])
    return ways


@lru_cache(maxsize=4096)
def _not_tied(size: int, unfinished: int, t: int, width: int) -> NDArray[np.float64]:
    """What multiplies the coefficients of a generating function by those of a group that has not t candidates in a subset.

    It has fewer, or more that are all unfinished. [width, width]
    """
    grown = np.zeros((width, width))
    for votes in range(min(size, width - 1) + 1):
        if votes != t:
            grown += np.diag(np.full(width - votes, float(comb(size if votes < t else unfinished, votes))), votes)
    return grown


@lru_cache(maxsize=4)
def _binomials(n: int) -> NDArray[np.float64]:
    """C(m, v) for all m and v up to n [m, v]."""
    return np.array([[float(comb(m, v)) for v in range(n + 1)] for m in range(n + 1)])


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
