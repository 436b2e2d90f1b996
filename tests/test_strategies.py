from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

import tts.strategies
from tests.scripted import ScriptedEngine, ScriptedScorer
from tts.cli import main
from tts.errors import InputError
from tts.options import configure, options_of
from tts.show.listing import address
from tts.solving.clock import Clock
from tts.solving.confidence import confidence_of, measured
from tts.solving.generator import Generator, MeteredScorer
from tts.strategies import STRATEGIES
from tts.strategies.bon import BestOfN
from tts.strategies.budget_forcing import BudgetForcing
from tts.strategies.compute_optimal import ComputeOptimal
from tts.strategies.deepconf import DeepConf
from tts.strategies.majority import Majority
from tts.strategies.revise import Revise
from tts.strategies.single import Single
from tts.strategies.weighted import Weighted
from tts.types import Problem, Sampling, Usage

PROBLEM = Problem("p", "?", "1")


async def solve(strategy, texts, rate=lambda text: 0.0):
    """Solve with a policy whose sample i is texts[i] and a scorer that gives `rate(text)`."""
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


def boxed(number):
    return f"\\boxed{{{number}}}"


class Thinking(ScriptedEngine):
    """Thinks in words of ten characters until it has seen `enough` of them, then closes its thinking and answers."""

    def __init__(self, enough):
        super().__init__(lambda prompt, seed: "")
        self.enough = enough

    def _one(self, prompt, written, sampling, i):
        thinking, closed, _ = written.partition("</think>")
        if not closed:
            lacking = max(1, self.enough - thinking.count("hmm"))
            opened = "" if "<think>" in written else "<think>\n"
            rest = opened + "hmm hmm, \n\n" * lacking + "</think>\n\n" + boxed(thinking.count("Wait"))
        else:
            rest = "\n\n" + boxed(thinking.count("Wait"))
        self.write = lambda *_: written + rest
        return super()._one(prompt, written, sampling, i)


async def force(engine, sampling=None, **options):
    generator = Generator(engine, PROBLEM, sampling or Sampling())
    result = await BudgetForcing(**options).solve(PROBLEM, generator, ScriptedScorer(lambda _: 0.0))
    await generator.grader.close()
    return result.best, generator


async def test_budget_forcing_replaces_an_early_end_of_the_thinking():
    best, _ = await force(Thinking(2), min_thinking=120, max_thinking=1000, waits=9)
    thinking = best.text.partition("</think>")[0]
    assert best.text.count("</think>") == 1
    assert len(thinking) >= 120
    assert thinking.count("Wait") == int(best.text[-2])  # its answer is the number of times that it was made to wait
    assert thinking.count("Wait") >= 2
    assert best.finish == "stop"
    once, _ = await force(Thinking(2), min_thinking=120, max_thinking=1000, waits=1)
    assert once.text.count("Wait") == 1
    never, _ = await force(Thinking(2), min_thinking=0)
    assert "Wait" not in never.text


async def test_budget_forcing_closes_thinking_that_is_too_long():
    best, generator = await force(Thinking(500), min_thinking=0, max_thinking=100)
    thinking, closed, response = best.text.partition("</think>")
    assert closed
    assert len(thinking) <= 102  # with the blank line before the tag
    assert best.finish == "stop"
    assert "\\boxed" in response
    forced = sum(len(step.token_ids) for step in best.steps if "</think>" in step.text)
    assert generator.usage.generated == len(best.token_ids) - forced


async def test_budget_forcing_can_begin_the_response_after_a_forced_end():
    best, _ = await force(Thinking(500), min_thinking=0, max_thinking=100)
    assert best.text.partition("</think>")[2].startswith("\n\nFinal Answer:")
    for engine, options in ((Thinking(500), {"max_thinking": 100, "final": ""}), (Thinking(2), {})):
        other, _ = await force(engine, min_thinking=0, **options)
        assert "Final Answer:" not in other.text


async def test_budget_forcing_ends_at_the_token_limit():
    best, _ = await force(Thinking(500), Sampling(max_tokens=60), min_thinking=0, max_thinking=100)
    assert best.finish == "length"
    assert len(best.token_ids) <= 60


@pytest.mark.parametrize("dry", [True, False])
def test_options_without_effect_are_refused_before_anything_is_loaded(dry, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    thinking = "--max-thinking is 1024; it should be below --max-tokens, which is 600"
    for command in ("run", "sweep"):
        more = ["--dry-run"] if dry else []
        assert main([command, "--strategy", "budget-forcing", "--max-tokens", "600", "--model", "./nowhere", *more]) == 2
        assert thinking in capsys.readouterr().err
    with pytest.raises(InputError, match=thinking):
        tts.run(BudgetForcing(), max_tokens=600, model="./nowhere")
    with pytest.raises(InputError, match="--min-thinking is 300; it should be at most --max-thinking, which is 200"):
        BudgetForcing(min_thinking=300, max_thinking=200)
    BudgetForcing(min_thinking=200, max_thinking=200).check_sampling(Sampling(max_tokens=201))
    assert not [*tmp_path.iterdir()]


async def test_budget_forcing_does_not_change_a_solution_without_thinking():
    best, _ = await force(ScriptedEngine(lambda prompt, seed: "step one\n\n\\boxed{5}"), min_thinking=500)
    assert best.text == "step one\n\n\\boxed{5}"


class Sure(ScriptedEngine):
    """Seeds divisible by three write text with low log-probabilities in the middle, and a wrong answer."""

    async def generate(self, prefix, n, sampling):
        generation = await super().generate(prefix, n, sampling)
        assert sampling.logprobs
        steps = [replace(s, logprobs=tuple(-3.0 if chr(t) == "?" else -0.1 for t in s.token_ids)) for s in generation.steps]
        return replace(generation, steps=tuple(steps))


def unsure(prompt, seed):
    if seed % 3 == 0:
        return "first\n\n" + "?" * 20 + "\n\n" + "more\n\n" * 10 + boxed(9)
    return "first\n\nsecond\n\n" + boxed(4)


async def conf(**options):
    generator = Generator(Sure(unsure), PROBLEM, Sampling())
    result = await DeepConf(window=8, **options).solve(PROBLEM, generator, ScriptedScorer(lambda _: 0.0))
    await generator.grader.close()
    return result, generator


async def test_deepconf_takes_a_vote_among_the_confident_solutions():
    result, _ = await conf(n=9, keep=0.34)
    assert result.best.text.endswith("{4}")
    wrong = [score for candidate, score in zip(result.candidates, result.scores, strict=True) if "{9}" in candidate.text]
    assert wrong
    assert max(wrong) < 1e-300
    assert max(result.scores) == pytest.approx(6 * math.exp(-0.1))  # six are equally confident, so all of them vote


async def test_deepconf_stops_solutions_of_low_confidence_early():
    result, generator = await conf(n=24, keep=0.5, warmup=6, consensus=2)
    stopped = [candidate for candidate in result.candidates if candidate.finish == "length"]
    assert stopped
    assert all("more" not in candidate.text for candidate in stopped)
    _, whole = await conf(n=24, keep=0.5)
    assert generator.usage.generated < whole.usage.generated


class Measured(ScriptedEngine):
    """Sample i is texts[i], and each of its tokens has confidences[i]."""

    def __init__(self, texts, confidences):
        self.order = {}
        super().__init__(lambda prompt, seed: texts[self.order.setdefault(seed, len(self.order)) % len(texts)])
        self.confidences = confidences

    def _one(self, prompt, written, sampling, i):
        step = super()._one(prompt, written, sampling, i)
        assert sampling.confidence == 20
        value = self.confidences[self.order[sampling.seed + i] % len(self.confidences)]
        return replace(step, logprobs=(-0.1,) * len(step.token_ids), confidence=(value,) * len(step.token_ids))


async def measure(texts, confidences, **options):
    generator = Generator(Measured(texts, confidences), PROBLEM, Sampling())
    result = await DeepConf(**options).solve(PROBLEM, generator, ScriptedScorer(lambda _: 0.0))
    await generator.grader.close()
    return result


async def test_deepconf_weighs_votes_by_the_confidence_over_the_likeliest_tokens():
    texts = [boxed(1), boxed(1), boxed(2), "no answer"]
    result = await measure(texts, [1.0, 2.0, 5.0, 9.0], n=4, keep=1.0)
    assert list(result.scores) == pytest.approx([3.0, 3.0, 5.0, 0.0])
    # of the three answers, the 0.5 quantile is 2, and the 0.9 quantile is 4.4
    assert list((await measure(texts, [1.0, 2.0, 5.0, 9.0], n=4, keep=0.5)).scores) == pytest.approx([2.0, 2.0, 5.0, 0.0])
    assert list((await measure(texts, [1.0, 2.0, 5.0, 9.0], n=4, keep=0.1)).scores) == pytest.approx([0.0, 0.0, 5.0, 0.0])


async def test_deepconf_ends_when_the_leading_answer_has_its_share():
    texts, confidences = [boxed(1), boxed(1), boxed(2), boxed(1), boxed(1), boxed(1)], [3.0, 3.0, 1.0, 3.0, 3.0, 3.0]
    options = {"n": 6, "warmup": 3, "batch": 1, "keep": 1.0}
    for consensus, samples in ((0.85, 3), (0.9, 4), (0.95, 6), (2.0, 6)):  # shares 6/7, 9/10, 12/13, 15/16
        assert len((await measure(texts, confidences, consensus=consensus, **options)).candidates) == samples
    # 0.9 of the warm-up is kept: its 0.1 quantile is 1.4, and the vote for 2 does not count
    assert len((await measure(texts, confidences, **options | {"keep": 0.9})).candidates) == 3


def test_confidence_of_a_solution():
    assert confidence_of([-5.0, -1.0, -2.0], 2) == pytest.approx(1.5)
    assert confidence_of([-1.0], 20) == 1.0
    tokens = [4.0, 2.0, 6.0, 8.0]  # its groups of two have 3, 4 and 7
    for kind, expected in (("lowest", 3.0), ("bottom", 3.0), ("tail", 7.0), ("mean", 5.0)):
        assert measured(tokens, kind, 2) == pytest.approx(expected)
    assert measured(range(20, 0, -1), "bottom", 1) == pytest.approx(1.5)  # the mean of the two lowest of twenty
    for kind in ("lowest", "bottom", "tail", "mean"):
        assert measured(tokens, kind, 2048) == pytest.approx(5.0)


async def test_revise_has_the_previous_attempt_in_its_prompt():
    asked = []

    def write(prompt, seed):
        asked.append(prompt)
        return f"\\boxed{{{len(asked)}}}"

    result = await solve_with(Revise(n=5, chains=2), ScriptedEngine(write), lambda text: 0.9 if "4" in text else 0.1)
    assert len(result.candidates) == 5
    assert [prompt.count("earlier attempt") for prompt in asked] == [0, 0, 1, 1, 1]
    assert "\\boxed{1}" in asked[2]
    assert result.best.text == "\\boxed{4}"
    assert {candidate.problem for candidate in result.candidates} == {PROBLEM}


async def solve_with(strategy, engine, rate):
    generator = Generator(engine, PROBLEM, Sampling())
    scorer = MeteredScorer(ScriptedScorer(rate), usage=Usage(), clock=generator.clock)
    try:
        return await strategy.solve(PROBLEM, generator, scorer)
    finally:
        await generator.grader.close()


@pytest.mark.parametrize(("reward", "kind", "candidates"), [(0.95, "weighted", 4), (0.6, "beam", 5), (0.1, "bon", 8)])
async def test_compute_optimal_spends_by_difficulty(reward, kind, candidates):
    strategy = ComputeOptimal(n=8, pilot=4, easy="weighted", medium="beam", hard="bon")
    result = await solve_with(strategy, ScriptedEngine(lambda _, seed: f"{seed}\n\n\\boxed{{1}}"), lambda _: reward)
    assert len(result.candidates) == candidates
    assert bool(result.tree) == (kind == "beam")


MINE = """
from dataclasses import dataclass
from tts import Candidate, Result, Strategy
from tts.strategies.bon import BestOfN
from tts.strategies.beam import Beam

@dataclass(frozen=True)
class Twice(Strategy):
    "Two samples, however large n is."
    async def solve(self, problem, generator, scorer):
        samples = await generator.finish(Candidate(problem), 2)
        return Result(samples, await scorer.score(samples))

class Worst(BestOfN):
    def rank(self, rewards, groups):
        return [-reward.total for reward in rewards]

@dataclass(frozen=True)
class Narrow(Beam):
    width: int = 2
    async def solve(self, problem, generator, scorer):
        assert (self.n, self.width) == (4, 2)
        return await super().solve(problem, generator, scorer)

class Worded(Narrow):
    "Ranks by something else than the reward."
    async def solve(self, problem, generator, scorer):
        found = await super().solve(problem, generator, scorer)
        return Result(found.candidates, found.rewards, [len(c.text) for c in found.candidates], found.tree)
"""


@pytest.mark.parametrize(("arm", "candidates"), [("Twice", 2), ("Worst", 8), ("Narrow", 2 + 4), ("Worded", 2)])
async def test_compute_optimal_takes_strategies_of_your_own(arm, candidates):
    Path("mine.py").write_text(MINE)
    strategy = ComputeOptimal(n=8, pilot=4, medium=f"mine.py:{arm}")
    texts = []

    def rate(text):
        texts.append(text)
        return 0.5 + len(texts) / 1000

    result = await solve_with(strategy, ScriptedEngine(lambda _, seed: f"{seed}\n\n\\boxed{{1}}"), rate)
    assert len(result.candidates) == candidates
    if arm == "Worst":  # it ranks the pilot's samples with the new ones
        assert result.best.text == texts[0]
    assert bool(result.tree) == (arm in ("Narrow", "Worded"))


def test_compute_optimal_refuses_strategies_that_it_cannot_use():
    for options, message in (
        ({"medium": "baem"}, "no strategy named 'baem'. Did you mean 'beam'"),
        ({"easy": "compute-optimal"}, "cannot choose itself"),
        ({"hard_below": 0.9}, "--hard-below is 0.9; it should be at most --easy-above, 0.8"),
    ):
        with pytest.raises(InputError, match=message):
            configure(ComputeOptimal, options)


def test_every_strategy_is_a_short_file_that_knows_no_engine():
    shared = ("__init__.py", "search.py")
    files = [file for file in Path(tts.strategies.__file__).parent.glob("*.py") if file.name not in shared]
    assert len(files) >= 14
    for file in files:
        text = file.read_text()
        assert len(text.splitlines()) <= 115, file
        assert not re.search(r"vllm|sglang|transformers|openai", text, re.IGNORECASE), file


def test_strategies_are_listed_and_explained(capsys):
    assert main(["strategies"]) == 0
    listed = capsys.readouterr().out
    for name, cls in STRATEGIES.all().items():
        assert re.search(rf"^{name} ", listed, re.MULTILINE)
        assert all(option.help and option.takes for option in options_of(cls)), name
        assert name == "single" or address(cls).startswith("https://")
    assert main(["strategies", "show", "lookahead"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for word in ("--k", "whole number, at least", "--search-over", "all, think or response"):
        assert word in shown
    assert main(["strategies", "show", "lookahead", "--json"]) == 0
    details = json.loads(capsys.readouterr().out)
    assert {option["name"]: option["default"] for option in details["options"]}["k"] == "1"
    assert main(["strategies", "-q"]) == 0
    assert capsys.readouterr().out.split() == list(STRATEGIES)
