import random
from collections import Counter
from itertools import combinations, product
from math import comb
from statistics import mean

import numpy as np
import pytest

from tts.evals.statistics import best_of_k, choice_at_k, interval, majority_of_k, pass_at_k

POOLS = [(True, False, False, True, False), (False,) * 5, (True,) * 5]


@pytest.mark.parametrize(("correct", "k"), [*product(POOLS, range(1, 6))])
def test_pass_at_k_is_the_mean_over_all_subsets(correct, k):
    assert pass_at_k(correct, k) == pytest.approx(mean(any(s) for s in combinations(correct, k)))


@pytest.mark.parametrize("scores", [(0.9, 0.1, 0.5, 0.3, 0.7), (0.5, 0.5, 0.5, 0.1, 0.9), (1, 1, 1, 1, 1)])
@pytest.mark.parametrize("k", range(1, 6))
def test_best_of_k_is_the_mean_over_all_subsets_with_ties_shared(scores, k):
    correct = (True, False, True, False, False)

    def chosen(subset):
        top = max(scores[i] for i in subset)
        return mean(correct[i] for i in subset if scores[i] == top)

    brute = mean(chosen(subset) for subset in combinations(range(5), k))
    assert best_of_k(scores, correct, k) == pytest.approx(brute)


@pytest.mark.parametrize("k", range(1, 7))
def test_choice_at_k_is_exact_where_the_subsets_are_few_and_near_elsewhere(k):
    correct = [True, False, True, False, False, True]
    brute = mean(correct[max(s)] for s in combinations(range(6), k))
    assert choice_at_k(max, correct, k, seed=0) == (pytest.approx(brute), 0)
    drawn = choice_at_k(max, correct * 5, k, seed=0, draws=4000)
    assert drawn.value == pytest.approx(expected_last(correct * 5, k), abs=4 * drawn.error + 1e-9)
    assert drawn.error <= 0.01


@pytest.mark.parametrize("seed", range(40))
def test_majority_of_k_is_that_over_all_subsets(seed):
    rng = random.Random(seed)
    n = rng.randint(1, 9)
    groups = [rng.choice([None, 0, 1, 2, 3]) for _ in range(n)]
    right = {None: False} | {group: rng.random() < 0.5 for group in range(4)}
    correct = [right[group] for group in groups]

    def chosen(subset):
        votes = Counter(groups[i] for i in subset if groups[i] is not None)
        most = [group for group in votes if votes[group] == max(votes.values())]
        return mean(right[group] for group in most) if most else 0

    for k in range(1, n + 1):
        brute = mean(chosen(subset) for subset in combinations(range(n), k))
        assert majority_of_k(groups, correct, k) == pytest.approx(brute)


def expected_last(correct, k):
    """The greatest index of k of the n is i in C(i, k - 1) of the C(n, k) subsets."""
    n = len(correct)
    return sum(correct[i] * comb(i, k - 1) for i in range(n)) / comb(n, k)


def test_the_interval_covers_the_true_mean_about_95_times_in_100():
    rng = np.random.default_rng(1)
    covered = 0
    for i in range(300):
        low, high = interval((rng.random(80) < 0.4).tolist(), seed=i, draws=1000)
        covered += low <= 0.4 <= high
    assert 0.90 <= covered / 300 <= 0.985


def test_the_interval_of_a_constant_is_that_constant():
    assert interval([0.5] * 10) == (0.5, 0.5)
