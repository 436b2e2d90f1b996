"""95 % intervals of accuracies and of their differences, which hold for 20 problems and for accuracies near 0 and 1.

Every interval in a table, a plot, a file or a report comes from here. `benchmarks/coverage.py` measures how often they contain
the truth. Problems are what is sampled: values have one entry per problem, and results do not depend on the order of problems.
"""

from __future__ import annotations

import math
from collections import Counter
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z = NormalDist().inv_cdf(0.975)


class Estimate(NamedTuple):
    """A mean over problems with its 95 % interval."""

    value: float
    low: float
    high: float


def estimate(values: ArrayLike) -> Estimate:
    """The mean of values between 0 and 1, one per problem, such as the share of a problem's samples that are right.

    The interval is that of Agresti and Coull (1998), which has the center of Wilson's and is a little wider. For shares of
    several samples, n is the number of problems with one sample each that would tell as much. There is at least one value;
    raises ValueError if one is not between 0 and 1.
    """
    ordered = _checked(values, 0, 1)
    mean = math.fsum(ordered) / len(ordered)
    size = _effective(ordered, mean, mean)
    center = (size * mean + Z**2 / 2) / (size + Z**2)
    half = Z * math.sqrt(center * (1 - center) / (size + Z**2))
    return Estimate(mean, max(0.0, min(mean, center - half)), min(1.0, max(mean, center + half)))


def estimate_difference(first: ArrayLike, second: ArrayLike) -> Estimate:
    """The mean of `second` minus `first`, values between 0 and 1 for the same problems in the same order.

    The interval is that of Bonett and Price (2012): one more problem speaks for either side. For shares of several samples, n
    is as in `estimate`. Raises ValueError as that does.
    """
    ordered = _checked(np.asarray(second, float) - np.asarray(first, float), -1, 1)
    mean = math.fsum(ordered) / len(ordered)
    moved = math.fsum(abs(ordered)) / len(ordered)
    size = _effective(ordered, mean, moved)
    center, discordant = size * mean / (size + 2), (size * moved + 2) / (size + 2)
    half = Z * math.sqrt((discordant - center**2) / (size + 2))
    return Estimate(mean, max(-1.0, min(mean, center - half)), min(1.0, max(mean, center + half)))


def estimate_over_seeds(values: ArrayLike, minus: ArrayLike | None = None) -> Estimate:
    """The mean over seeds and problems, both of which are sampled; with `minus`, the mean of `values - minus`.

    Values are between 0 and 1 [seeds, problems]. A few seeds say little about how much seeds differ, so the variances of the
    means over problems and of the means over seeds are each multiplied by the square of their own quantile of Student's t. For
    shares, the interval includes the same on a logit scale, as they are skewed near 0 and 1. It includes the interval over
    problems of the means over seeds, too.
    """
    table = np.asarray(values, float)
    if minus is None:
        whole, least = estimate(table.mean(0)), 0.0
    else:
        other = np.asarray(minus, float)
        whole, least = estimate_difference(other.mean(0), table.mean(0)), -1.0
        table = table - other
    mean = whole.value
    half = math.hypot(*(
        _t_quantile(len(means) - 1) * float(means.std(ddof=1)) / math.sqrt(len(means))
        for means in (table.mean(1), table.mean(0)) if len(means) > 1
    ))  # fmt: skip
    ends = [whole.low, whole.high, max(least, mean - half), min(1.0, mean + half)]
    if minus is None and 0 < mean < 1:
        odds, factor = mean / (1 - mean), math.exp(min(half / (mean * (1 - mean)), 500))
        ends += [1 / (1 + factor / odds), 1 / (1 + 1 / (factor * odds))]
    return Estimate(mean, min(ends), max(ends))


def paired_p(first: ArrayLike, second: ArrayLike) -> float:
    """Two-sided p-value of values for the same problems, if it were chance which one of a pair is the first.

    Where all differences other than 0 have the same size, as with one sample per problem, this is McNemar's exact test.
    Otherwise pairs are swapped at random 20,000 times, with a fixed seed.
    """
    differences = (np.asarray(second, float) - np.asarray(first, float)).round(12)
    sizes = Counter(abs(differences[differences != 0]).tolist())
    if len(sizes) < 2:
        count, fewer = sum(sizes.values()), min(int((differences > 0).sum()), int((differences < 0).sum()))
        logs = (math.lgamma(count + 1) - math.lgamma(i + 1) - math.lgamma(count - i + 1) for i in range(fewer + 1))
        return min(1.0, 2 * math.fsum(math.exp(log - count * math.log(2)) for log in logs))
    rng, draws = np.random.default_rng(0), 20_000
    sums = np.zeros(draws)
    for size, count in sorted(sizes.items()):
        sums += size * (2.0 * rng.binomial(count, 0.5, draws) - count)
    return float((1 + (abs(sums) >= abs(math.fsum(differences)) - 1e-9).sum()) / (1 + draws))


def _checked(values: ArrayLike, low: float, high: float) -> NDArray[np.float64]:
    """The values in ascending order."""
    ordered = np.sort(np.asarray(values, float))
    if not len(ordered):
        raise ValueError("an interval needs at least one problem")
    if not (ordered[0] >= low - 1e-9 and ordered[-1] <= high + 1e-9):
        raise ValueError(f"expected values from {low} to {high}, got {ordered[0]} to {ordered[-1]}")
    return ordered.clip(low, high)


def _effective(values: NDArray[np.float64], mean: float, moved: float) -> float:
    """The number of problems with one sample each whose mean would be as certain as that of these values.

    `moved` is the mean of their absolute values. With one sample each, the variance would be `moved - mean**2`. The ratio of
    both variances is drawn towards 1, as if one more problem differed from the others as much as it can: if nearly all values
    are 0 or 1, they do not show how much problems differ.
    """
    n = len(values)
    return max(n, n * (n * (moved - mean**2) + 1) / (math.fsum((values - mean) ** 2) + 1))


def _t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t. With t = sqrt(freedom) * tan(angle), the angle has a density of cos^(freedom - 1)."""
    angles = np.linspace(0, np.pi / 2, 20_001)
    density = np.cos(angles) ** (freedom - 1)
    share = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(freedom) * math.tan(float(np.interp(0.95 * share[-1], share, angles)))
