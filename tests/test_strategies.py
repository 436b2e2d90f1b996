from __future__ import annotations

import pytest

from tests.scripted import ScriptedEngine, ScriptedScorer
from tts.clock import Clock
from tts.generator import Generator, MeteredScorer
from tts.strategies.bon import BestOfN
from tts.strategies.majority import Majority
from tts.strategies.single import Single
from tts.strategies.weighted import Weighted
from tts.types import Problem, Sampling, Usage

PROBLEM = Problem("p", "?", "1")


async def solve(strategy, texts, rate=lambda text: 0.0):
    """Sample i is texts[i]; `rate` is what the scorer thinks of it."""
    order: dict[int, str] = {}

    def write(prompt, seed):
        return order.setdefault(seed, texts[len(order) % len(texts)])

    usage, clock = Usage(), Clock()
    generator = Generator(ScriptedEngine(write), PROBLEM, Sampling(), usage=usage, clock=clock)
    try:
        return await strategy.solve(PROBLEM, generator, MeteredScorer(ScriptedScorer(rate), usage=usage, clock=clock))
    finally:
        await generator.grader.close()


async def test_bon_keeps_the_highest_reward():
    result = await solve(BestOfN(n=3), ["\\boxed{1}", "\\boxed{2}", "\\boxed{3}"], lambda t: 0.9 if "2" in t else 0.5)
    assert result.best.text == "\\boxed{2}"
    assert len(result.candidates) == 3


async def test_majority_counts_equivalent_answers_as_one():
    result = await solve(Majority(n=5), ["\\boxed{3}", "\\boxed{\\frac12}", "\\boxed{3}", "\\boxed{0.5}", "\\boxed{1/2}"])
    assert result.best.text == "\\boxed{\\frac12}"
    assert list(result.scores) == [2, 3, 2, 3, 3]
    assert result.rewards == []


async def test_a_candidate_without_an_answer_has_no_vote():
    result = await solve(Majority(n=4), ["no idea", "no idea", "no idea", "\\boxed{7}"])
    assert result.best.text == "\\boxed{7}"


async def test_weighted_sums_rewards_over_equivalent_answers():
    texts = ["\\boxed{3}", "\\boxed{0.5}", "\\boxed{1/2}"]
    result = await solve(Weighted(n=3), texts, lambda text: 0.5 if "3" in text else 0.3)
    assert result.best.text == "\\boxed{0.5}"
    assert list(result.scores) == pytest.approx([1.0, 1.2, 1.2])  # mean + final, and the scripted scorer gives both


async def test_weighted_follows_the_reward_where_votes_are_equal():
    result = await solve(Weighted(n=2), ["\\boxed{1}", "\\boxed{2}"], lambda text: 0.9 if "2" in text else 0.1)
    assert result.best.text == "\\boxed{2}"


async def test_single_draws_one_sample():
    assert len((await solve(Single(), ["\\boxed{1}"])).candidates) == 1
