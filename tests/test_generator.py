from __future__ import annotations

import math

import pytest

from tests.scripted import ScriptedEngine, ScriptedScorer
from tts.errors import InputError
from tts.solving.clock import Clock
from tts.solving.generator import Generator, MeteredScorer, derive_seed
from tts.types import Candidate, Problem, Sampling, Usage

PROBLEM = Problem("p", "question")


def make(write=lambda prompt, seed: f"step {seed % 97}\n\nend", **kwargs) -> Generator:
    return Generator(ScriptedEngine(write), PROBLEM, Sampling(), **kwargs)


async def test_every_draw_from_a_prefix_has_a_seed_of_its_own():
    together = [c.text for c in await make().finish(Candidate(PROBLEM), 6)]
    generator = make()
    apart = [c.text for n in (1, 2, 3) for c in await generator.finish(Candidate(PROBLEM), n)]
    assert apart == together
    assert len(set(together)) == 6


async def test_seeds_depend_on_run_problem_and_prefix():
    texts = {(await make(seed=seed).finish(Candidate(PROBLEM)))[0].text for seed in range(5)}
    assert len(texts) > 1
    other = Problem("q", "question")
    [same_prompt] = await Generator(ScriptedEngine(lambda p, s: str(s)), other, Sampling()).finish(Candidate(other))
    [first] = await make(lambda p, s: str(s)).finish(Candidate(PROBLEM))
    assert same_prompt.text != first.text


async def test_usage_counts_what_the_engine_generated():
    usage = Usage()
    generator = make(lambda prompt, seed: "ab\n\ncd", usage=usage)
    candidates = await generator.finish(Candidate(PROBLEM), 3)
    assert usage.generated == sum(len(c.token_ids) for c in candidates) == 3 * 7
    assert (usage.prompt, usage.calls) == (len("question") + 1, 1)


async def test_a_finished_candidate_costs_nothing_to_extend():
    usage = Usage()
    generator = make(usage=usage)
    [done] = await generator.finish(Candidate(PROBLEM))
    spent = usage.generated
    assert await generator.step(done, 4) == [done] * 4
    assert usage.generated == spent


async def test_a_long_completion_is_cut_into_its_steps():
    [candidate] = await make(lambda prompt, seed: "a\n\nb\n\nc").finish(Candidate(PROBLEM))
    assert [step.text for step in candidate.steps] == ["a\n\n", "b\n\n", "c"]
    assert [step.finish for step in candidate.steps] == ["step", "step", "stop"]


async def test_truncation_is_marked_on_the_last_step_only():
    generator = Generator(ScriptedEngine(lambda p, s: "a\n\nbcdef"), PROBLEM, Sampling(max_tokens=5))
    [candidate] = await generator.finish(Candidate(PROBLEM))
    assert [step.finish for step in candidate.steps] == ["step", "length"]
    assert candidate.finish == "length"


async def test_equal_texts_are_scored_once_and_have_the_same_reward():
    scorer = ScriptedScorer(lambda text: len(text) / 10)
    usage = Usage()
    metered = MeteredScorer(scorer, usage=usage, clock=Clock(), alpha=0.5, aggregate="min")
    candidates = await make(lambda prompt, seed: "aa" if seed % 2 else "bbb").finish(Candidate(PROBLEM), 8)
    rewards = await metered.score(candidates)
    assert scorer.seen == 2
    assert usage.scored == 5
    assert [r.total for r in rewards] == pytest.approx([1.5 * len(c.text) / 10 for c in candidates])
    assert {r.how for r in rewards} == {"min"}


async def test_a_reward_that_is_not_finite_is_an_error():
    metered = MeteredScorer(ScriptedScorer(lambda text: math.nan), usage=Usage(), clock=Clock())
    with pytest.raises(InputError, match="not finite"):
        await metered.score(await make().finish(Candidate(PROBLEM)))


def test_derived_seeds_depend_on_each_part():
    seeds = {derive_seed(0, "a", 1, 2), derive_seed(0, "a", 12), derive_seed(0, "a1", 2), derive_seed(1, "a", 1, 2)}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**62 for seed in seeds)


def test_overlapping_work_is_counted_once(monkeypatch):
    now = 0.0
    monkeypatch.setattr("tts.solving.clock.perf_counter", lambda: now)
    parent = Clock()
    first, second = Clock(parent), Clock(parent)
    with first("scoring"):
        now = 1.0
        with second("scoring"), first("scoring"):
            now = 3.0
        now = 4.0
    now = 9.0
    assert (first.seconds("scoring"), second.seconds("scoring"), parent.seconds("scoring")) == (4.0, 2.0, 4.0)


async def test_thinking_that_the_chat_template_opens_belongs_to_the_candidate(engine, problems, monkeypatch):
    template = engine.tokenizer.chat_template.replace("assistant\n' }}", "assistant\n<think>\n' }}")
    monkeypatch.setattr(engine.tokenizer, "chat_template", template)
    prompt = engine.encode(problems[0])
    assert engine.decode(prompt).endswith("<think>\n")
    generator = Generator(engine, problems[0], Sampling(max_tokens=12))
    [cut_off] = await generator.finish(Candidate(problems[0]))
    assert cut_off.text.startswith("<think>\n")
    assert cut_off.trajectory.response == ()
    assert len(cut_off.trajectory.thinking) >= 1
    assert generator.usage.prompt == len(prompt)
    assert generator.usage.generated == 12 == sum(len(step.token_ids) for step in cut_off.steps[1:])
