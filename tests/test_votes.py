"""Votes and choices where rewards are negative, of any scale, or missing an answer to count for."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest

from tests.scripted import ScriptedEngine, ScriptedScorer
from tests.test_strategies import PROBLEM, boxed, solve
from tts.errors import InputError
from tts.solving.generator import Generator, MeteredScorer
from tts.strategies.adaptive import Adaptive
from tts.strategies.beam import Beam
from tts.strategies.bon import BestOfN
from tts.strategies.compute_optimal import ComputeOptimal
from tts.strategies.deepconf import DeepConf
from tts.strategies.dvts import DVTS
from tts.strategies.lookahead import Lookahead
from tts.strategies.majority import Majority
from tts.strategies.mcts import MCTS
from tts.strategies.particle import Particle
from tts.strategies.revise import Revise
from tts.strategies.votes import SMALLEST, tally, vote_shares, vote_weights
from tts.strategies.weighted import Weighted
from tts.types import Reward, Sampling, Scorer, Usage


def finals(*values: float, **more) -> list[Reward]:
    return [Reward((), value, **more) for value in values]


def test_probabilities_are_their_own_weights():
    rewards = [Reward((0.5, 0.7), 0.9), Reward((0.1,), 0.0), Reward((0.0,), 0.0), Reward((1.0,), 1.0), Reward((0.4,))]
    assert vote_weights(rewards) == [reward.total for reward in rewards[:2]] + [SMALLEST, 2.0, 0.4]
    assert vote_shares(rewards) == pytest.approx([0.75, 0.05, SMALLEST, 1.0, 0.4])
    assert vote_shares(finals(0.5, 1.0)) == [0.5, 1.0]  # agreement: a whole trace rated from 0 to 1
    assert vote_shares(finals(0.5, 1.0, alpha=0.5)) == [0.5, 1.0]
    assert vote_shares([Reward((0.9,), 0.5, how="final")]) == [0.5]


@pytest.mark.parametrize("values", [(-3.0, -1.0, -2.0), (-0.5, 0.0, 4.0), (900.0, 1.0, 35.0), (-1e200, 1e200, 0.0)])
def test_other_rewards_become_positive_weights_in_the_same_order_whatever_their_unit(values):
    weights = vote_weights(finals(*values))
    assert all(0 < weight <= 1 for weight in weights)
    assert max(weights) == 1
    ascending = [weight for _, weight in sorted(zip(values, weights, strict=True))]
    assert all(a < b for a, b in pairwise(ascending))
    assert vote_weights(finals(*(value / 1000 - 7 for value in values))) == pytest.approx(weights)
    assert vote_shares(finals(*values)) == weights


def test_a_candidate_without_a_verdict_has_the_smallest_vote():
    assert vote_weights([Reward((0.5,)), Reward((None,)), Reward((0.25, None))]) == [0.5, SMALLEST, 0.25]
    assert vote_weights([*finals(-1.0), Reward((), final_missing=True), *finals(-3.0)]) == pytest.approx([1, 0, math.exp(-2)])
    assert vote_weights([Reward((None,)), Reward((None,))]) == [SMALLEST] * 2
    assert vote_shares([Reward((0.5,), final_missing=True), Reward((None,), 0.8)]) == [0.5, 0.8]


def test_a_standard_deviation_is_a_factor_of_e():
    assert vote_weights(finals(-1.0, -3.0)) == pytest.approx([1, math.exp(-2)])  # mean -2, standard deviation 1
    assert vote_weights(finals(-5.0, -5.0, -5.0)) == [1, 1, 1]
    assert vote_weights(finals(-5.0)) == [1]


def test_sums_of_logits_are_not_probabilities_even_between_0_and_1():
    rewards = [Reward((0.6, 0.5), how="sum-logit"), Reward((0.5, 0.5), how="sum-logit")]
    assert [reward.share for reward in rewards] == [None, None]
    assert vote_weights(rewards) == pytest.approx([1, math.exp(-2)])


def test_an_answer_with_the_smallest_votes_is_above_no_answer_and_does_not_change_sums():
    assert tally([0, None, 1, 0], [0.0, 9.0, 0.25, 0.0]) == [2 * SMALLEST, 0, 0.25, 2 * SMALLEST]
    assert tally([0, 0, None], [0.1, 0.2, 1.0]) == [0.1 + 0.2] * 2 + [0]
    assert tally([0, 0], [0.0, 0.25]) == [0.25, 0.25]


def test_weighted_votes_are_sums_over_answers_by_brute_force():
    rng = random.Random(0)
    for _ in range(200):
        n = rng.randint(1, 8)
        groups = [rng.choice([None, 0, 1, 2]) for _ in range(n)]
        values = [rng.gauss(-20, 9) for _ in range(n)]
        mean = sum(values) / n
        spread = math.sqrt(sum((value - mean) ** 2 for value in values) / n) or 1.0
        scores = Weighted(n=n).rank(finals(*values), groups)
        for group, score in zip(groups, scores, strict=True):
            votes = [math.exp((v - max(values)) / spread) for v, g in zip(values, groups, strict=True) if g == group]
            assert score == pytest.approx(sum(votes) if group is not None else 0)
            assert score > 0 or group is None


class Rates(Scorer):
    """Rates traces as a whole, by a function of the text that may return any number."""

    by_step = False

    def __init__(self, rate):
        self.rate = rate

    async def score(self, candidates):
        return [Reward((), self.rate(candidate.text)) for candidate in candidates]


async def chosen(strategy, texts, rate, **sampling):
    """The text that a strategy chooses among samples of which the i-th is texts[i], with rewards `rate(text)`."""
    order: dict[int, str] = {}
    engine = ScriptedEngine(lambda prompt, seed: order.setdefault(seed, texts[len(order) % len(texts)]))
    generator = Generator(engine, PROBLEM, Sampling(**sampling))
    try:
        scorer = MeteredScorer(Rates(rate), usage=Usage(), clock=generator.clock)
        return (await strategy.solve(PROBLEM, generator, scorer)).best
    finally:
        await generator.grader.close()


RATED = {boxed(1): -10.0, boxed(2): -9.0, "no idea": -1.0}
"""Three of 5 samples have the answer 1; one with the answer 2 has a higher reward, one without an answer the highest."""


@pytest.mark.parametrize("strategy", [Weighted(n=5), Adaptive(n=5, batch=5), Majority(n=5)])
async def test_negative_rewards_do_not_invert_a_vote(strategy):
    texts = [boxed(2), "no idea", boxed(1), boxed(1), boxed(1)]
    assert (await chosen(strategy, texts, RATED.get)).text == boxed(1)


@pytest.mark.parametrize(
    "strategy", [Weighted(n=3), Majority(n=3), Adaptive(n=3, batch=1), Adaptive(n=3, batch=3, by="votes"), DeepConf(n=3)]
)
@pytest.mark.parametrize("rate", [lambda text: -5.0 * len(text), lambda text: 0.0, lambda text: 900.0])
async def test_no_answer_never_wins_while_there_is_one(strategy, rate):
    class Sure(ScriptedEngine):
        def _one(self, prompt, written, sampling, i):
            step = super()._one(prompt, written, sampling, i)
            return type(step)(step.text, step.token_ids, step.finish, (-0.1,) * len(step.token_ids))

    order: dict[int, str] = {}
    texts = ["no idea", "none at all", boxed(3)]
    generator = Generator(Sure(lambda prompt, seed: order.setdefault(seed, texts[len(order) % 3])), PROBLEM, Sampling())
    scorer = MeteredScorer(Rates(rate), usage=Usage(), clock=generator.clock)
    result = await strategy.solve(PROBLEM, generator, scorer)
    await generator.grader.close()
    assert result.best.text == boxed(3)


async def test_deepconf_takes_an_unsure_answer_before_no_answer():
    class Unsure(ScriptedEngine):
        def _one(self, prompt, written, sampling, i):
            step = super()._one(prompt, written, sampling, i)
            each = -3.0 if "box" in step.text else -0.1
            return type(step)(step.text, step.token_ids, step.finish, (each,) * len(step.token_ids))

    order: dict[int, str] = {}
    texts = ["no idea", "none at all", "nothing", boxed(3)]
    generator = Generator(Unsure(lambda prompt, seed: order.setdefault(seed, texts[len(order) % 4])), PROBLEM, Sampling())
    result = await DeepConf(n=4, keep=0.5).solve(PROBLEM, generator, Rates(lambda text: 0.0))
    await generator.grader.close()
    assert result.best.text == boxed(3)


async def test_adaptive_stops_as_early_with_negative_rewards_as_with_votes():
    async def drawn(rate, **options):
        result = await solve(Adaptive(n=40, batch=2, **options), [boxed(1)], rate)
        return len(result.candidates)

    assert await drawn(lambda text: -7.5) == await drawn(lambda text: 0.0, by="votes") < 40


@pytest.mark.parametrize("unit", [1.0, 1000.0])
async def test_bon_and_revise_follow_negative_rewards(unit):
    texts = [boxed(1), boxed(2), boxed(3)]
    rate = {boxed(1): -3 * unit, boxed(2): -1 * unit, boxed(3): -2 * unit}.get
    assert (await chosen(BestOfN(n=3), texts, rate)).text == boxed(2)
    assert (await chosen(Revise(n=3, chains=3), texts, rate)).text == boxed(2)


LONG = boxed(1) + "x" * 50


@pytest.mark.parametrize(
    "strategy",
    [BestOfN(n=2), Weighted(n=2), Majority(n=2), Adaptive(n=2, batch=2), Revise(n=2, chains=2), Beam(n=2, width=2),
     DVTS(n=2, width=2), Lookahead(n=2, width=2), MCTS(n=2, width=2), Particle(n=2, ess=0.1)],
)  # fmt: skip
async def test_a_finished_candidate_is_chosen_before_one_that_was_cut_off(strategy):
    best = await chosen(strategy, [LONG, boxed(2)], lambda text: 0.9 if "x" in text else 0.1, max_tokens=20)
    assert (best.text, best.finish) == (boxed(2), "stop")


async def test_a_truncated_solution_does_not_hold_the_place_of_one_that_can_finish():
    """Half of the first steps are cut off at once and have the higher reward; the others need a second step."""

    def write(prompt, seed):
        return "x" * 99 if seed % 2 else f"step\n\n{boxed(2)}"

    for strategy in (Beam(n=4, width=4), DVTS(n=4, width=4), MCTS(n=4, width=4, simulations=3)):
        generator = Generator(ScriptedEngine(write), PROBLEM, Sampling(max_tokens=30))
        scorer = ScriptedScorer(lambda text: 0.9 if "x" in text else 0.1)
        best = (await strategy.solve(PROBLEM, generator, scorer)).best
        assert (best.finish, best.text.count(boxed(2))) == ("stop", 1), strategy


async def test_mcts_explores_whatever_the_unit_and_the_zero_of_the_rewards():
    async def visited(rate):
        def write(prompt, seed):
            return f"{seed % 7}\n\n{seed % 5}\n\n{seed % 3}\n\n{boxed(1)}"

        generator = Generator(ScriptedEngine(write), PROBLEM, Sampling())
        scorer = MeteredScorer(Rates(rate), usage=Usage(), clock=generator.clock)
        result = await MCTS(n=4, width=3, simulations=12, c=0.5).solve(PROBLEM, generator, scorer)
        return [(branch.parent, branch.text) for branch in result.tree]

    def rate(text):
        return sum(map(ord, text)) % 11 / 11 - 0.5  # of mixed sign

    assert await visited(lambda text: 1000 * rate(text) - 5000) == await visited(rate)


async def test_compute_optimal_refuses_rewards_that_thresholds_say_nothing_about():
    with pytest.raises(InputError, match="rates a trace as a whole; use a reward model that rates steps"):
        ComputeOptimal().check_scorer(Rates(lambda text: 0.0))
    with pytest.raises(InputError, match=r"this scorer's are -2 to -2\. Use a reward model whose rewards are probabilities"):
        await solve(ComputeOptimal(n=4), [boxed(1)], lambda text: -2.0)
