"""Scorers without a reward model, the judge, and the forest of prefixes in which models read sequences."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import tts
from tests.scripted import ScriptedEngine
from tts.demo import MODELS
from tts.errors import InputError
from tts.scorers import load_scorer
from tts.scorers.forest import Forest
from tts.scorers.judge import Judge
from tts.scorers.prm import PRM
from tts.solving.generator import Generator
from tts.types import Candidate, Generation, Problem, Reward, Sampling, Step

PROBLEM = Problem("p", "Start with 7.\n1) multiply by 8\nWhat is the last digit?", "6")


def whole(text, tokens=()):
    return Candidate(PROBLEM, (Step(text, tokens, "stop"),))


# --- without a model


async def test_length_prefers_shorter_traces():
    rewards = await load_scorer("length").score([whole("abc", (1, 2)), whole("abcd", (1, 2, 3)), whole("ab")])
    assert [reward.total for reward in rewards] == [-2, -3, -2]


async def test_agreement_counts_equivalent_answers_of_one_problem():
    scorer = load_scorer("agreement")
    other = Candidate(Problem("q", "?"), (Step("\\boxed{2}", (), "stop"),))
    answers = [whole(text) for text in ("\\boxed{1/2}", "\\boxed{0.5}", "\\boxed{3}", "no answer", "\\boxed{0.5}")]
    rewards = await scorer.score([*answers, other])
    await scorer.close()
    assert [reward.final for reward in rewards] == pytest.approx([0.6, 0.6, 0.2, 0, 0.6, 1])


def test_best_of_n_by_agreement_agrees_with_majority_voting(engine):
    common = {"n": 8, "limit": 6, "engine_instance": engine, "seed": 3}
    chosen = [
        [record.candidates[record.choice].group for record in tts.data.store.RunStore.open(Path(folder)).records()]
        for strategy, folder in (("bon", "a"), ("majority", "b"))
        if tts.run(strategy, out=folder, scorer="agreement", **common)
    ]
    votes = [[a.group for a in record.candidates] for record in tts.data.store.RunStore.open(Path("a")).records()]
    for groups, bon, majority in zip(votes, *chosen, strict=True):
        assert groups.count(bon) == groups.count(majority)


# --- by the policy's own probabilities


@torch.no_grad()
def distributions(engine, candidate):
    """Compute log-probabilities [tokens, vocabulary] of a candidate's tokens with transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(MODELS["arith-policy"], attn_implementation="eager").eval()
    prompt = list(engine.encode(candidate.problem))
    logits = model(torch.tensor([prompt + list(candidate.token_ids)])).logits[0, len(prompt) - 1 : -1]
    return logits.double().log_softmax(-1)


@pytest.mark.parametrize("measure", ["logprob", "self-certainty", "confidence"])
async def test_likelihoods_equal_their_definitions(engine, problems, measure):
    pool = await Generator(engine, problems[0], Sampling(seed=1, max_tokens=60)).finish(Candidate(problems[0]), 5)
    rewards = await load_scorer(measure, policy="arith-policy").score(pool)
    for candidate, reward in zip(pool, rewards, strict=True):
        logprobs = distributions(engine, candidate)
        vocabulary = logprobs.shape[1]
        expected = {
            "logprob": sum(float(row[token]) for row, token in zip(logprobs, candidate.token_ids, strict=True)),
            "self-certainty": float(torch.stack([-(row + math.log(vocabulary)).mean() for row in logprobs]).mean()),
            "confidence": float(torch.stack([-row.sort().values[-20:].mean() for row in logprobs]).mean()),
        }[measure]
        assert reward.final == pytest.approx(expected, abs=1e-4)
        assert reward.steps == ()


async def test_logprobs_that_the_engine_reported_are_used(engine, problems):
    generator = Generator(engine, problems[0], Sampling(seed=1, max_tokens=60))
    pool = await generator.finish(Candidate(problems[0]), 3, logprobs=True)
    scorer = load_scorer("logprob", policy="arith-policy")
    reported = await scorer.score(pool)
    assert [reward.tokens for reward in reported] == [0, 0, 0]  # nothing was read again
    bare = [Candidate(c.problem, tuple(Step(s.text, s.token_ids, s.finish) for s in c.steps)) for c in pool]
    again = await scorer.score(bare)
    assert [r.final for r in reported] == pytest.approx([r.final for r in again], abs=1e-3)


def test_a_run_scored_by_logprob_requests_them_from_the_engine(engine):
    summary = tts.run("bon", n=2, limit=2, scorer="logprob", engine_instance=engine, out="run")
    assert summary.usage.scored == 0
    records = tts.data.store.RunStore.open(Path("run")).records()
    assert all(attempt.final < 0 for record in records for attempt in record.candidates)


# --- the judge


class Verdicts(ScriptedEngine):
    """Says Yes with probability `p(prompt)`, else No."""

    def __init__(self, p):
        super().__init__(lambda prompt, seed: "")
        self.p, self.prompts = p, []

    async def generate(self, prefix, n, sampling):
        text = self.decode(prefix)
        self.prompts.append(text)
        p, rng = self.p(text), random.Random(sampling.seed)
        drawn = ["Yes" if rng.random() < p else "No" for _ in range(n)]
        steps = [Step(w, (ord(w[0]),), "length", (math.log(0.5 * (p if w == "Yes" else 1 - p)),)) for w in drawn]
        return Generation(tuple(steps), len(prefix))


async def test_a_verdict_is_the_share_of_yes_in_the_reported_probabilities():
    judge = Judge(engine=Verdicts(lambda prompt: 0.3 if "step:\nbad" in prompt else 0.6), draws=64)
    [reward] = await judge.score([whole("good\n\nbad\n\nfine")])
    assert reward.steps == pytest.approx((0.6, 0.3, 0.6))
    assert reward.final == pytest.approx(0.6)


async def test_a_judge_is_shown_earlier_steps_and_fields_in_a_trace_stay_text():
    engine = Verdicts(lambda prompt: 0.5)
    await Judge(engine=engine, final=False, draws=1).score([whole("first {step}\n\nsecond {problem} {before}")])
    first, second = engine.prompts
    assert "Solution so far:\n(nothing)\n\nNext step:\nfirst {step}\n" in first
    assert "Solution so far:\nfirst {step}\n\nNext step:\nsecond {problem} {before}\n" in second


def test_a_template_without_the_step_field_is_refused(tmp_path):
    (tmp_path / "t.txt").write_text("Is it right?")
    with pytest.raises(InputError, match=r"does not contain the field \{step\}"):
        Judge(engine=Verdicts(lambda prompt: 0.5), template=str(tmp_path / "t.txt"))
    with pytest.raises(InputError, match="cannot read the judge's template"):
        Judge(engine=Verdicts(lambda prompt: 0.5), template="nowhere.txt")


# --- aggregates


def test_sum_logit_and_final():
    reward = Reward((0.5, 0.9, 1.0), 0.25, alpha=2.0, how="sum-logit")
    assert reward.total == pytest.approx(math.log(9) + math.log((1 - 1e-9) / 1e-9) + 0.5)
    assert Reward((0.5,), 0.25, alpha=2.0, how="final").total == 0.25
    with pytest.raises(ValueError, match="between 0 and 1, got -3"):
        Reward((-3.0,), how="sum-logit").total  # noqa: B018


# --- the forest


def forest(**options):
    body = AutoModelForCausalLM.from_pretrained(MODELS["arith-policy"]).eval().base_model
    return Forest(body, **({"limit": 2**24, "batch_tokens": 512, "context": 1024} | options))


@torch.no_grad()
def alone(ids):
    model = AutoModelForCausalLM.from_pretrained(MODELS["arith-policy"], attn_implementation="eager").eval()
    return model.base_model(torch.tensor([ids])).last_hidden_state[0]


def family(rng, count=40):
    """Make sequences that branch from each other anywhere, some of which are equal or prefixes of others."""
    sequences = [[rng.randrange(340) for _ in range(rng.randint(1, 90))]]
    while len(sequences) < count:
        parent = rng.choice(sequences)
        branch = parent[: rng.randint(1, len(parent))]
        sequences.append(branch + [rng.randrange(340) for _ in range(rng.choice((0, 1, 7, 60)))])
    return sequences


@pytest.mark.parametrize("options", [{}, {"batch_tokens": 16}, {"limit": 0, "batch_tokens": 64, "context": 400}])
def test_hidden_states_equal_those_of_each_sequence_alone(options):
    rng, grown = random.Random(0), forest(**options)
    sequences = family(rng)
    positions = [sorted(rng.sample(range(len(ids)), rng.randint(1, min(5, len(ids))))) for ids in sequences]
    for _ in range(2):  # in the second round much is in the pool, and some was dropped
        for start in range(0, len(sequences), 7):
            batch = slice(start, start + 7)
            for ids, at, hidden in zip(
                sequences[batch], positions[batch], grown(sequences[batch], positions[batch]), strict=True
            ):
                assert torch.allclose(hidden, alone(ids)[at], atol=1e-5)


def test_each_token_is_forwarded_once():
    sequences = family(random.Random(1))
    grown = forest()
    tree = {tuple(ids[: i + 1]) for ids in sequences for i in range(len(ids))}
    grown(sequences[:20], [[len(ids) - 1] for ids in sequences[:20]])
    grown(sequences, [[len(ids) - 1] for ids in sequences])
    assert grown.forwarded == len(tree)


def test_memory_is_bounded_and_the_most_recently_used_is_kept():
    grown = forest(limit=0, batch_tokens=64, context=256)
    hot = list(range(100))
    for i in range(50):
        grown([hot], [[99]])
        before = grown.forwarded
        grown([[300, *range(i, i + 60)]], [[60]])
        assert grown.forwarded > before
    assert len(grown.keys[0]) <= grown.capacity == 257
    before = grown.forwarded
    grown([hot], [[99]])
    assert grown.forwarded == before


def test_a_failed_pass_leaves_no_uncomputed_piece(monkeypatch):
    grown = forest()
    ids = list(range(50))
    body, grown.body = grown.body, None
    with pytest.raises(AttributeError):
        grown([ids], [[49]])
    grown.body = body
    assert torch.allclose(grown([ids], [[49]])[0], alone(ids)[[49]], atol=1e-5)


async def test_a_search_scores_each_token_of_its_tree_once(engine, problems):
    prm, seen = PRM("arith-prm"), set()
    read = prm.reader.read

    async def noted(queries):
        seen.update(tuple(q.ids[: i + 1]) for q in queries for i in range(q.positions[-1] + 1 if q.positions else 0))
        return await read(queries)

    prm.reader.read = noted
    strategy = tts.get_strategy("beam")(n=8, width=4)
    await strategy.solve(problems[0], Generator(engine, problems[0], Sampling(seed=2, max_tokens=200)), prm)
    assert prm.reader.model.forest.forwarded == len(seen)
