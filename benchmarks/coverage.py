"""How often 95 % intervals contain the truth, and how wide they are, beside percentile bootstrap intervals over problems.

    python benchmarks/coverage.py            # the grid that the constructions were chosen on
    python benchmarks/coverage.py --check    # other seeds, accuracies, sizes, and kinds of problems

A cell is a number of problems, an accuracy (or two), and how problems differ: `alike`, by a Beta distribution whose standard
deviation is a share of the largest possible one, or `hard/easy`, where nearly all samples of a problem are right or wrong.
Pairs are two methods on the same problems, whose difficulties for both are correlated. One sample of one method is calculated
exactly; other cells are simulated. Exits with 1 if the bars are missed: 92 % in every cell, 94.5 % on average.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from itertools import product
from math import comb

import cyclopts
import numpy as np

from tts.evals.intervals import Estimate, estimate, estimate_difference, estimate_over_seeds

SIZES, SHARES = (10, 20, 30, 50, 100, 200, 500), (0.02, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.98)
CHECK_SIZES, CHECK_SHARES = (12, 17, 25, 40, 75, 150, 400), (0.03, 0.04, 0.08, 0.2, 0.4, 0.65, 0.85, 0.93, 0.97)
PAIRS = ((0.02, 0.03), (0.05, 0.05), (0.1, 0.3), (0.5, 0.5), (0.5, 0.55), (0.5, 0.9), (0.9, 0.95), (0.98, 0.97), (0.98, 0.98))
CHECK_PAIRS = ((0.03, 0.03), (0.04, 0.08), (0.2, 0.25), (0.4, 0.4), (0.35, 0.7), (0.85, 0.8), (0.9, 0.98), (0.95, 0.97))
MOVES = ((0.01, 0.0), (0.05, 0.0), (0.1, 0.05), (0.02, 0.02), (0.2, 0.1), (0.25, 0.25), (0.4, 0.0), (0.45, 0.45), (0.8, 0.1))
CHECK_MOVES = ((0.02, 0.01), (0.03, 0.0), (0.07, 0.03), (0.15, 0.15), (0.3, 0.05), (0.35, 0.35), (0.6, 0.0), (0.9, 0.05))
"""Shares of problems that only the second, or only the first, of a pair solves."""
BOOTSTRAPPED = 60
"""Data sets of a cell on which the bootstrap is measured: it is slow."""

Cell = tuple[str, float, float, float, float]
"""Name, coverage and mean width of ours, and of the bootstrap."""


def difficulties(rng, shape, p, kind, normal=None):
    """Success rates of problems with mean p; with `normal`, increasing functions of these standard normal numbers."""
    if kind == "alike":
        return np.full(shape, p)
    u = rng.random(shape) if normal is None else np.interp(normal, *normal_quantiles())
    if kind == "hard/easy":
        return np.where(u < (0.99 - p) / 0.98, 0.01, 0.99)
    return np.interp(u, np.linspace(0, 1, 2001), beta_quantiles(p, 1 / kind**2 - 1))


@lru_cache
def normal_quantiles():
    drawn = np.sort(np.random.default_rng(0).standard_normal(200_001))[::100]
    return drawn, np.linspace(0, 1, len(drawn))


@lru_cache
def beta_quantiles(p, size):
    drawn = np.sort(np.random.default_rng(0).beta(p * size, (1 - p) * size, 400_001))[::200]
    room = drawn * (1 - drawn)
    return drawn + (p - np.trapezoid(drawn) / 2000) * room / (np.trapezoid(room) / 2000)  # so that the mean is p exactly


def measure(name: str, truth: float, ours: list[Estimate], data: np.ndarray, rng) -> Cell:
    """A cell from intervals, and from data sets [sets, problems] for the bootstrap."""
    covered = np.mean([low - 1e-9 <= truth <= high + 1e-9 for _, low, high in ours])
    ends = np.array([bootstrap(values, rng) for values in data])
    return (
        name, float(covered), float(np.mean([high - low for _, low, high in ours])),
        float(np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1]))), float(np.mean(ends[:, 1] - ends[:, 0])),
    )  # fmt: skip


def bootstrap(values, rng, draws=400):
    """Percentile bootstrap interval of the mean of values."""
    distinct, counts = np.unique(values, return_counts=True)
    return np.quantile(rng.multinomial(len(values), counts / len(values), draws) @ distinct / len(values), (0.025, 0.975))


@cache
def of_counts(problems: int, up: int, down: int) -> Estimate:
    """The interval of a pair with one sample each."""
    first, second = np.zeros((2, problems))
    second[:up], first[up : up + down] = 1, 1
    return estimate_difference(first, second)


def single_once(sizes, shares, rng, sets) -> Iterator[Cell]:
    """One method, one sample per problem: exactly."""
    for n, p in product(sizes, shares):
        chance = [comb(n, x) * p**x * (1 - p) ** (n - x) for x in range(n + 1)]
        ours = [estimate([1] * x + [0] * (n - x)) for x in range(n + 1)]
        covered = sum(c for c, (_, low, high) in zip(chance, ours, strict=True) if low <= p <= high)
        width = sum(c * (high - low) for c, (_, low, high) in zip(chance, ours, strict=True))
        _, _, _, other, other_width = measure("", p, ours, rng.binomial(1, p, (BOOTSTRAPPED, n)), rng)
        yield f"n {n}, p {p}", covered, width, other, other_width


def single_often(sizes, shares, rng, sets, kinds, samples) -> Iterator[Cell]:
    """One method, several samples per problem."""
    for n, p, kind in product(sizes, shares, kinds):
        data = rng.binomial(samples, difficulties(rng, (sets, n), p, kind)) / samples
        yield measure(f"n {n}, p {p}, {kind}", p, [*map(estimate, data)], data[:BOOTSTRAPPED], rng)


def pair_once(sizes, moves, rng, sets) -> Iterator[Cell]:
    """Two methods, one sample per problem, by the shares of problems that only one of them solves."""
    for n, (up, down) in product(sizes, moves):
        counts = rng.multinomial(n, [up, down, 1 - up - down], 10 * sets)
        data = np.array([[1] * a + [-1] * b + [0] * c for a, b, c in counts[:BOOTSTRAPPED]])
        name = f"n {n}, only second {up}, only first {down}"
        yield measure(name, up - down, [of_counts(n, int(a), int(b)) for a, b, _ in counts], data, rng)


def pair_often(sizes, pairs, rng, sets, kinds, correlations, samples) -> Iterator[Cell]:
    """Two methods, several samples per problem."""
    cases = [(kind, r) for kind, r in product(kinds, correlations) if kind != "alike" or r == correlations[0]]
    for n, (p, q), (kind, r) in product(sizes, pairs, cases):
        one, other = rng.standard_normal((2, sets, n))
        first = difficulties(rng, one.shape, p, kind, one)
        second = difficulties(rng, one.shape, q, kind, r * one + (1 - r * r) ** 0.5 * other)
        first, second = (rng.binomial(samples, rates) / samples for rates in (first, second))
        ours = [estimate_difference(a, b) for a, b in zip(first, second, strict=True)]
        yield measure(f"n {n}, p {p} and {q}, {kind}, correlation {r}", q - p, ours, (second - first)[:BOOTSTRAPPED], rng)


def over_seeds(sizes, shares, rng, sets, spreads, paired) -> Iterator[Cell]:
    """Three seeds, each with its own accuracy, and 8 samples per problem; the bootstrap resamples seeds and problems."""
    for n, p, spread in product(sizes, shares, spreads):
        if spread > 1 - p:  # no room for it
            continue
        tables = []
        base = rng.beta(2 * p, 2 * (1 - p), (sets, 1, n))
        for _ in range(1 + paired):
            moved = p + np.clip(rng.normal(0, spread, (sets, 3, 1)), -(1 - p), 1 - p)  # problems keep their order
            rates = np.where(moved < p, base * moved / p, 1 - (1 - base) * (1 - moved) / (1 - p))
            tables.append(rng.binomial(8, rates.clip(0, 1)) / 8)
        ours = [estimate_over_seeds(*each) for each in zip(*tables, strict=True)]
        differences = tables[0] - tables[1] if paired else tables[0]
        truth, ends = 0 if paired else p, []
        for table in differences[:BOOTSTRAPPED]:
            seeds = rng.multinomial(3, [1 / 3] * 3, 400) / 3
            ends.append(np.quantile(((seeds @ table) * rng.multinomial(n, [1 / n] * n, 400)).sum(1) / n, (0.025, 0.975)))
        low, high = np.array(ends).T
        yield (
            f"n {n}, p {p}, seeds differ by {100 * spread:g} points", float(np.mean([a <= truth <= b for _, a, b in ours])),
            float(np.mean([b - a for _, a, b in ours])), float(np.mean((low <= truth) & (truth <= high))),
            float(np.mean(high - low)),
        )  # fmt: skip


def main(*, check: bool = False, sets: int = 2000, only: str = "") -> None:
    """Print a Markdown table with a row for each kind of interval, and exit with 1 if a bar is missed.

    Args:
        check: Measure on the second grid.
        sets: Simulated data sets for each cell.
        only: Measure only the kinds of intervals that have this in their name.
    """
    sizes, shares = (CHECK_SIZES, CHECK_SHARES) if check else (SIZES, SHARES)
    pairs, moves = (CHECK_PAIRS, CHECK_MOVES) if check else (PAIRS, MOVES)
    kinds = ("alike", 0.4, 0.75, "hard/easy") if check else ("alike", 0.3, 0.6, 0.9, "hard/easy")
    paired, correlations = ("alike", 0.6, 0.9, "hard/easy"), (0.3, 0.9) if check else (0.0, 0.95)
    seeds = ((40, 120), (0.45, 0.75, 0.88), (0, 0.04, 0.08, 0.12)) if check else (
        (30, 200), (0.3, 0.5, 0.7, 0.9), (0, 0.02, 0.05, 0.1, 0.15)
    )  # fmt: skip
    rows: dict[str, Callable[[np.random.Generator], Iterator[Cell]]] = {
        "1 sample": lambda rng: single_once(sizes, shares, rng, sets),
        "16 samples": lambda rng: single_often(sizes, shares, rng, sets, kinds, 16),
        "pairs, 1 sample": lambda rng: pair_once(sizes, moves, rng, sets),
        "pairs, 16 samples": lambda rng: pair_often(sizes[:6], pairs, rng, sets, paired, correlations, 16),
        "3 seeds": lambda rng: over_seeds(*seeds[:2], rng, sets, seeds[2], False),
        "3 seeds, pairs": lambda rng: over_seeds(*seeds[:2], rng, sets, seeds[2], True),
    }
    if check:
        rows["4 samples"] = lambda rng: single_often(sizes, shares, rng, sets, kinds, 4)
        rows["pairs, 4 samples"] = lambda rng: pair_often(sizes[:6], pairs, rng, sets, paired, correlations, 4)
    print("| interval | cells | mean coverage | worst | in the cell | mean width | bootstrap: coverage | worst | mean width |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    missed = False
    for name, cells in rows.items():
        if only not in name:
            continue
        found = list(cells(np.random.default_rng([check, *name.encode()])))
        _, ours, width, other, other_width = zip(*found, strict=True)
        worst = min(found, key=lambda cell: cell[1])
        missed |= worst[1] < 0.92 or np.mean(ours) < 0.945
        print(
            f"| {name} | {len(found)} | {100 * np.mean(ours):.1f} | {100 * worst[1]:.1f} | {worst[0]} | {np.mean(width):.3f} |"
            f" {100 * np.mean(other):.1f} | {100 * min(other):.1f} | {np.mean(other_width):.3f} |", flush=True,
        )  # fmt: skip
    sys.exit(int(missed))


if __name__ == "__main__":
    cyclopts.run(main)
