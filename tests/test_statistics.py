import random
from itertools import combinations, product
from math import comb
from statistics import mean

import numpy as np
import pytest

from tts.data.records import Attempt, Record
from tts.evals.intervals import estimate, estimate_difference, estimate_over_seeds, paired_p
from tts.evals.statistics import best_of_k, choice_at_k, majority_of_k, pass_at_k
from tts.evals.summary import Seconds, at_k, summarize
from tts.strategies.bon import BestOfN
from tts.strategies.majority import Majority
from tts.strategies.weighted import Weighted
from tts.types import Candidate, Problem, Result, Reward, Step, Usage

POOLS = [(True, False, False, True, False), (False,) * 5, (True,) * 5]


@pytest.mark.parametrize(("correct", "k"), [*product(POOLS, range(1, 6))])
def test_pass_at_k_is_the_mean_over_all_subsets(correct, k):
    assert pass_at_k(correct, k) == pytest.approx(mean(any(s) for s in combinations(correct, k)))


def pool(seed: int, n: int) -> Record:
    """A graded row of n random candidates, with ties of every kind: some cut off, some without an answer."""
    rng = random.Random(seed)
    right, done = [rng.random() < 0.5 for _ in range(4)], rng.choice([1, 0.6, 0.2])
    attempts = []
    for _ in range(n):
        group = rng.choice([None, 0, 0, 1, 2, 3])
        attempts.append(
            Attempt(
                steps=("x",), tokens=(1,), finish="stop" if rng.random() < done else "length", score=0.0,
                rewards=(rng.choice([0.25, 0.5, 1.0]),), final=None, answer=None if group is None else str(group), group=group,
                correct=group is not None and right[group],
            )
        )  # fmt: skip
    return Record("p", "x", "1", tuple(attempts), 0, attempts[0].correct, Usage())


def reward(attempt: Attempt) -> Reward:
    return Reward(attempt.rewards)


def chosen(strategy, record: Record, subset) -> bool:
    """Whether a run of the strategy with these candidates would have been right."""
    attempts = [record.candidates[i] for i in subset]
    scores = strategy.rank([reward(a) for a in attempts], [a.group for a in attempts])
    candidates = [Candidate(Problem("p", "x"), (Step("x", (1,), a.finish),)) for a in attempts]
    return bool(attempts[Result(candidates, scores=scores).choice].correct)


@pytest.mark.parametrize("strategy", [BestOfN(), Majority(), Weighted()])
@pytest.mark.parametrize("seed", range(40))
def test_a_strategy_at_k_is_the_mean_of_its_choices_over_all_subsets(strategy, seed):
    n = random.Random(seed).randint(1, 7)  # at most 35 subsets: weighted votes take all of them
    record = pool(seed, n)
    for k in range(1, n + 1):
        brute = mean(chosen(strategy, record, subset) for subset in combinations(range(n), k))
        assert at_k(strategy, record, k, reward) == (pytest.approx(brute), 0)
    assert at_k(strategy, record, n, reward).value == chosen(strategy, record, range(n))


def test_of_equal_scores_the_earlier_one_is_chosen():
    assert best_of_k([1, 1, 0], [False, True, True], 3) == 0
    assert best_of_k([1, 1, 0], [True, False, False], 2) == pytest.approx(2 / 3)
    assert majority_of_k([0, 1, None], [False, True, False], [True] * 3, 3) == 0
    assert majority_of_k([0, 1, None], [False, True, False], [False, True, True], 3) == 1  # the finished one


@pytest.mark.parametrize("n", [1_100, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("strategy", [BestOfN, Majority, Weighted])
def test_thousands_of_candidates_have_a_curve(strategy, n):
    record, solver = pool(0, n), strategy(n=n)
    summary = summarize([record], solver, name="x", benchmark="b", cached=0, seconds=Seconds(), run="r", reward=reward)
    assert [point.k for point in summary.curve] == [*(2**i for i in range(n.bit_length())), n]
    assert summary.curve[-1].strategy.value == chosen(solver, record, range(n))
    assert summary.curve[0].passed.value == pytest.approx(summary.pass_at_1.value)
    assert all(0 <= point.strategy.value <= 1 and point.error < 0.1 for point in summary.curve)


@pytest.mark.parametrize("k", range(1, 7))
def test_choice_at_k_is_exact_where_the_subsets_are_few_and_near_elsewhere(k):
    correct = [True, False, True, False, False, True]
    brute = mean(correct[max(s)] for s in combinations(range(6), k))
    assert choice_at_k(max, correct, k, seed=0) == (pytest.approx(brute), 0)
    drawn = choice_at_k(max, correct * 5, k, seed=0, draws=4000)
    assert drawn.value == pytest.approx(expected_last(correct * 5, k), abs=4 * drawn.error + 1e-9)
    assert drawn.error <= 0.01


def expected_last(correct, k):
    """The greatest index of k of the n is i in C(i, k - 1) of the C(n, k) subsets."""
    n = len(correct)
    return sum(correct[i] * comb(i, k - 1) for i in range(n)) / comb(n, k)


# --- intervals


def test_intervals_are_the_published_ones_with_one_sample_a_problem():
    center, size = (27 + 1.9207) / (30 + 3.8415), 30 + 3.8415  # Agresti and Coull 1998
    half = 1.95996 * (center * (1 - center) / size) ** 0.5
    assert estimate([1] * 27 + [0] * 3) == (0.9, pytest.approx(center - half, abs=1e-4), pytest.approx(center + half, abs=1e-4))
    first, second = [1] * 4 + [0] * 10 + [1] * 16, [0] * 4 + [1] * 10 + [1] * 16
    up, down = 11 / 32, 5 / 32  # Bonett and Price 2012
    half = 1.95996 * ((up + down - (up - down) ** 2) / 32) ** 0.5
    assert estimate_difference(first, second) == (
        pytest.approx(0.2), pytest.approx(up - down - half, abs=1e-4), pytest.approx(up - down + half, abs=1e-4)
    )  # fmt: skip


def test_no_interval_has_width_zero_or_leaves_its_range():
    assert estimate([1] * 30) == (1, pytest.approx(0.865, abs=1e-3), 1)
    assert estimate([0]) == (0, 0, pytest.approx(0.83, abs=0.01))
    assert estimate([0.5] * 20).high - estimate([0.5] * 20).low > 0.1
    same = estimate_difference([1, 0] * 15, [1, 0] * 15)
    assert same == (0, pytest.approx(-0.087, abs=1e-3), pytest.approx(0.087, abs=1e-3))
    assert estimate_difference([0], [1]).low < 0
    assert estimate_over_seeds(np.ones((3, 30))) == estimate([1] * 30)
    for values in (rng.random(9).round(1) for rng in map(np.random.default_rng, range(50))):
        low, high = estimate(values)[1:]
        assert 0 <= low < values.mean() + 1e-9
        assert values.mean() - 1e-9 < high <= 1


def test_samples_of_a_problem_narrow_the_interval_as_far_as_they_agree_across_problems():
    def width(values):
        return estimate(values).high - estimate(values).low

    assert width([0.5] * 100) < width([0.25, 0.75] * 50) < width([0, 1] * 50)
    assert width([0, 1] * 50) == pytest.approx(2 * 1.96 * 0.05, rel=0.05)


def test_intervals_do_not_depend_on_the_order_of_problems():
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 50))
    for order in (rng.permutation(50) for _ in range(5)):
        assert estimate(first[order]) == estimate(first)
        assert estimate_difference(first[order], second[order]) == estimate_difference(first, second)
        assert paired_p(first[order], second[order]) == paired_p(first, second)


@pytest.mark.parametrize("values", [[], [1.5], [-0.1], [float("nan")]])
def test_what_is_not_a_share_has_no_interval(values):
    with pytest.raises(ValueError, match=r"at least one|expected values from 0 to 1"):
        estimate(values)


def test_the_p_value_is_mcnemars_exact_one():
    def p(only_first, only_second, both=7):
        return paired_p([1] * only_first + [0] * only_second + [1] * both, [0] * only_first + [1] * only_second + [1] * both)

    assert p(0, 4) == 0.125
    assert p(5, 1) == pytest.approx(2 * 7 / 64)
    assert (p(0, 0), p(3, 3)) == (1, 1)
    assert p(2900, 3100) == pytest.approx(0.0102, abs=2e-4)  # (|b - c| - 1) / sqrt(b + c), to the normal distribution


def test_the_p_value_of_means_is_that_of_all_swaps():
    rng = random.Random(0)
    for _ in range(5):
        differences = [rng.choice([-2, -1, 0, 1, 2, 3, 4]) / 4 for _ in range(9)]
        extreme = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in product((-1, 1), repeat=9)]
        exact = mean(total >= abs(sum(differences)) - 1e-9 for total in extreme)
        assert paired_p([0.5] * 9, [0.5 + d for d in differences]) == pytest.approx(exact, abs=0.015)


@pytest.mark.parametrize(("problems", "samples", "p"), [(20, 1, 0.9), (30, 1, 0.98), (30, 16, 0.98), (10, 16, 0.5)])
def test_intervals_cover_the_truth_where_there_are_few_problems(problems, samples, p):
    rng, covered = np.random.default_rng(1), 0
    for _ in range(400):
        low, high = estimate(rng.binomial(samples, rng.beta(p, 1 - p, problems)) / samples)[1:]
        covered += low <= p <= high
    assert covered >= 0.92 * 400


def test_three_seeds_that_differ_are_covered():
    rng, covered = np.random.default_rng(1), 0
    for _ in range(400):
        ability = 0.6 + rng.normal(0, 0.1, (3, 1)) + rng.uniform(-0.2, 0.2, 100)
        low, high = estimate_over_seeds(rng.binomial(8, ability.clip(0, 1)) / 8)[1:]
        covered += low <= 0.6 <= high
    assert covered >= 0.93 * 400
