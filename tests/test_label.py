"""`tts label`: the paper's terms against their formulas, every source of quality, rejected rows, and resuming after a kill."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tts
from tests.killing import run_killed
from tests.scripted import ScriptedEngine
from tts.data.labelled import parse_labelled, read_labelled, trl_row
from tts.data.traces import BadRowError
from tts.demo import arith
from tts.errors import InputError
from tts.grading.pool import Grader
from tts.models.checkpoints import load_tokenizer, locate
from tts.train.label.cache import Cache
from tts.train.label.encoder import Encoder
from tts.train.label.labeller import label_file
from tts.train.label.quality import CheckerQuality, JudgeQuality, RolloutQuality, prefixes_of
from tts.train.label.targets import alignment, coherence, combine, step_target
from tts.train.label.template import TemplateReward
from tts.train.settings import LabelSettings
from tts.types import Candidate, Problem, Sampling, Step

TEXT = "<think>\none\n\ntwo\n</think>\n\nthree\n\nIt is \\boxed{4}"


def candidate(text=TEXT, answer="4", prompt="2 + 2 = ?") -> Candidate:
    return Candidate(Problem("p", prompt, answer), (Step(text, (), "stop"),))


def unit_vectors(rng, *shape):
    vectors = rng.normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def arith_traces(path, count=6, seed=0):
    import random

    rng = random.Random(seed)
    return write(
        path,
        [
            {"id": f"t{i}", "problem": chain.prompt, "answer": chain.answer, "text": arith.teach(chain, rng)}
            for i, chain in enumerate(arith.take("train", count, seed))
        ],
    )


# the equations


def test_alignment_is_the_largest_cosine_or_the_one_at_the_matching_position():
    rng = np.random.default_rng(0)
    steps, response = unit_vectors(rng, 5, 8), unit_vectors(rng, 2, 8)
    cosines = [[sum(a * b for a, b in zip(s, r, strict=True)) for r in response] for s in steps]
    assert alignment(steps, response) == pytest.approx([max(row) for row in cosines])
    # steps 0 to 2 lie in the first half of the thinking, 3 and 4 in the second
    places = [0, 0, 0, 1, 1]
    assert alignment(steps, response, "matched") == pytest.approx([cosines[t][places[t]] for t in range(5)])


@pytest.mark.parametrize("positive", [True, False])
def test_coherence_is_the_log_share_of_the_step_among_steps_of_other_problems(positive):
    rng = np.random.default_rng(1)
    before, step, others = unit_vectors(rng, 8), unit_vectors(rng, 8), unit_vectors(rng, 6, 8)
    own = math.exp(float(before @ step) / 0.2)
    below = sum(math.exp(float(before @ other) / 0.2) for other in others) + (own if positive else 0)
    found = coherence(before, step, others, tau=0.2, positive=positive)
    assert found == pytest.approx(math.log(own / below))
    assert not positive or found <= 0


def test_terms_are_weighted_by_their_softmax():
    terms = [0.2, 1.0, -1.5]
    weights = [math.exp(term) for term in terms]
    assert combine(np.array(terms)) == pytest.approx(sum(w * t for w, t in zip(weights, terms, strict=True)) / sum(weights))
    assert step_target(0.2, 1.0, -1.5, 16, "none") == pytest.approx(combine(np.array(terms)))
    assert step_target(0.2, 1.0, -1.5, 16, "clip") == step_target(0.2, 1.0, -1.5, 16, "none")
    assert step_target(-0.2, 0.0, -1.5, 16, "none") < 0 == step_target(-0.2, 0.0, -1.5, 16, "clip")
    assert combine(np.array([1000.0, -1000.0, 0.0])) == pytest.approx(1000.0)  # no overflow


def test_unit_targets_lie_between_0_and_1_and_increase_with_every_term():
    rng = np.random.default_rng(2)
    for _ in range(200):
        align, quality, coh = rng.uniform(-1, 1), rng.uniform(0, 1), math.log(rng.uniform(1e-9, 1))
        target = step_target(align, quality, coh, 16)
        assert 0 <= target <= 1
    assert step_target(0.0, 0.5, math.log(1 / 17), 16) == pytest.approx(0.5)  # 17 equally similar steps: neither good nor bad
    # with the other terms equal, a better step has a higher target
    assert step_target(0.1, 1.0, -2.0, 16) > step_target(0.1, 0.0, -2.0, 16)
    assert step_target(0.9, 0.5, -2.0, 16) > step_target(0.1, 0.5, -2.0, 16)


# Phi


def test_vectors_are_mean_pooled_hidden_states_in_any_batch():
    from transformers import AutoModel

    texts = ["1) 7+5=2", "add 5 gives 2", "The result is \\boxed{6}", "x"]
    encoder = Encoder("arith-policy")
    found = encoder.encode(texts)
    tokenizer, model = load_tokenizer("arith-policy"), AutoModel.from_pretrained(locate("arith-policy")).eval()
    for text, vector in zip(texts, found, strict=True):
        with torch.no_grad():
            mean = model(input_ids=torch.tensor([tokenizer.encode(text)])).last_hidden_state[0].mean(0).double()
        assert vector == pytest.approx((mean / mean.norm()).numpy(), abs=1e-5)
    again = Encoder("arith-policy").encode(texts[::-1] * 2)
    assert again[:4] == pytest.approx(found[::-1], abs=1e-5)


def test_a_sentence_transformers_model_uses_its_own_pooling(tmp_path):
    st = pytest.importorskip("sentence_transformers")
    from transformers import BertConfig, BertModel, BertTokenizerFast

    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]))
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    torch.manual_seed(0)
    BertModel(
        BertConfig(vocab_size=13, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    ).save_pretrained(tmp_path / "bert")
    parts = st.sentence_transformer.modules
    body = parts.Transformer(str(tmp_path / "bert"))
    st.SentenceTransformer(modules=[body, parts.Pooling(16, pooling_mode="cls")], device="cpu").save(str(tmp_path / "encoder"))
    found = Encoder(str(tmp_path / "encoder"), device="cpu").encode(["a b", "c d e f"])
    expected = st.SentenceTransformer(str(tmp_path / "encoder"), device="cpu").encode(
        ["a b", "c d e f"], normalize_embeddings=True
    )
    assert found == pytest.approx(expected, abs=1e-6)
    mean_pooled = Encoder(str(tmp_path / "bert"), device="cpu").encode(["a b", "c d e f"])
    assert np.abs(found - mean_pooled).max() > 1e-3  # this one uses the first token


# quality


def test_a_prefix_ends_where_the_next_step_begins():
    assert prefixes_of(TEXT) == [
        "<think>\none\n\n",
        "<think>\none\n\ntwo\n</think>\n\n",
        "<think>\none\n\ntwo\n</think>\n\nthree\n\n",
        TEXT,
    ]
    assert prefixes_of("a\n\na\n\na") == ["a\n\n", "a\n\na\n\n", "a\n\na\n\na"]
    assert prefixes_of("one\r\n\r\ntwo") == ["one\n\n", "one\n\ntwo"]
    assert prefixes_of("") == []


def _rate(quality, *candidates):
    async def rate():
        return [await quality.rate(c) for c in candidates]

    return asyncio.run(rate())


def _lucky(prompt, seed):
    """A completion; every third seed gives the right answer, 4."""
    return f"{TEXT[:-2]}{4 if seed % 3 == 0 else 5}}}"


def test_rollouts_rate_a_step_by_the_share_of_correct_completions():
    engine = ScriptedEngine(_lucky)
    [rewards, again, wrong] = _rate(
        RolloutQuality(engine, Grader(), Cache(None), n=9, sampling=Sampling(max_tokens=200)),
        candidate(),
        candidate(),
        candidate(TEXT.replace("4}", "7}")),
    )
    assert rewards == [pytest.approx(1 / 3)] * 3 + [1.0]  # nine consecutive seeds; the last step has the trace's outcome
    assert again == rewards
    assert wrong[:3] == rewards[:3]
    assert wrong[3] == 0.0
    assert engine.calls == 3  # equal prefixes are completed once


def test_rollouts_need_an_answer():
    with pytest.raises(InputError, match="no answer, which --quality rollout needs"):
        _rate(RolloutQuality(ScriptedEngine(_lucky), Grader(), Cache(None)), candidate(answer=None))


def test_a_think_tag_that_the_chat_template_opens_is_not_opened_twice():
    seen = []

    class Opening(ScriptedEngine):
        def encode(self, problem):
            return (*super().encode(problem), *map(ord, "<think>"))

        async def generate(self, prefix, n, sampling):
            seen.append(self.decode(prefix))
            return await super().generate(prefix, n, sampling)

    _rate(RolloutQuality(Opening(_lucky), Grader(), Cache(None), n=3, sampling=Sampling(max_tokens=200)), candidate())
    assert len(seen) == 3
    assert {text.count("<think>") for text in seen} == {1}


def test_ratings_are_cached_in_a_file(tmp_path):
    engine = ScriptedEngine(_lucky)
    for _ in range(2):
        cache = Cache(tmp_path / "cache", "model")
        _rate(RolloutQuality(engine, Grader(), cache, n=3, sampling=Sampling(max_tokens=200)), candidate())
        cache.close()
    assert engine.calls == 3
    cache = Cache(tmp_path / "cache", "another model")
    _rate(RolloutQuality(engine, Grader(), cache, n=3, sampling=Sampling(max_tokens=200)), candidate())
    assert engine.calls == 6
    (tmp_path / "no-table").write_text("hello, this is no table at all" * 100)
    with pytest.raises(InputError, match="as a cache"):
        Cache(tmp_path / "no-table")


def test_the_judge_sees_the_problem_the_steps_before_and_the_response():
    asked = []

    def say(prompt, seed):
        asked.append(prompt)
        step = prompt.split("Step to rate:\n")[1].split("\n\nFinal response:")[0]
        return {"one": "Rating: 10", "two": "It is fine.\nRating: 3", "three": "**Rating:** 0"}.get(step, "rating - 7")

    [ratings] = _rate(JudgeQuality(ScriptedEngine(say), Cache(None)), candidate(prompt="{step} is a word"))
    assert ratings == [1.0, 0.3, 0.0, 0.7]
    second = next(prompt for prompt in asked if "Step to rate:\ntwo" in prompt)
    assert "Problem:\n{step} is a word\n" in second  # a field's name inside a problem stays text
    assert "Steps before:\none\n" in second
    assert "Final response:\nthree\n\nIt is \\boxed{4}\n" in second


def test_a_step_that_the_judge_does_not_rate_has_no_quality():
    def say(prompt, seed):
        step = prompt.split("Step to rate:\n")[1].split("\n\nFinal response:")[0]
        return {
            "one": "<think>Rating: 10, or not</think>\n\nRating: 8", "two": "I would give it 11 of 10. Rating: 11",
            "three": "<think>Rating: 3, then", "four": "It is 7/10",
        }[step]  # fmt: skip

    judge = JudgeQuality(ScriptedEngine(say), Cache(None), think=60)
    assert _rate(judge, candidate("one\n\ntwo\n\nthree\n\nfour")) == [[0.8, None, None, 0.7]]
    with pytest.raises(InputError, match="the judge rated no step on its scale of 0-10"):
        _rate(JudgeQuality(ScriptedEngine(lambda prompt, seed: "Yes!"), Cache(None)), candidate("one"))


def test_the_checker_is_that_of_arith_or_a_function_of_the_user(tmp_path):
    chain = arith.read("Start with 7.\n1) add 5\n2) multiply by 3\nWhat is the last digit?")
    assert chain == arith.Chain(7, (("+", 5), ("*", 3)))
    text = "<think>\n1) 7+5=2\n\n2) 2*3=5\n</think>\n\nadd 5 gives 2\n\nmultiply by 3 gives 5\n\nThe result is \\boxed{5}"
    assert _rate(CheckerQuality(), candidate(text, "6", chain.prompt)) == [[1, 0, 1, 0, 0]]
    with pytest.raises(InputError, match="problems of the arith benchmark"):
        _rate(CheckerQuality(), candidate())
    (tmp_path / "own.py").write_text(
        "def rate(problem, thinking, response, answer):\n    return [0.5 for _ in thinking] + [1] * len(response)\n"
    )
    assert _rate(CheckerQuality(f"{tmp_path}/own.py:rate"), candidate()) == [[0.5, 0.5, 1, 1]]
    (tmp_path / "bad.py").write_text("def rate(problem, thinking, response, answer):\n    return [2.0]\n")
    with pytest.raises(InputError, match=r"returned \[2.0\] for 4 steps"):
        _rate(CheckerQuality(f"{tmp_path}/bad.py:rate"), candidate())


def test_a_checker_that_fails_on_a_trace_rejects_that_trace_alone(tmp_path):
    (tmp_path / "own.py").write_text(
        "def rate(problem, thinking, response, answer):\n"
        "    if answer == '4':\n        raise KeyError('four')\n"
        "    return None if answer == '5' else [1] * (len(thinking) + len(response))\n"
    )
    rows = [{"problem": "2 + 2 = ?", "answer": answer, "text": TEXT} for answer in ("4", "5", "6")]
    out = tmp_path / "labelled.jsonl"
    checker = f"{tmp_path}/own.py:rate"
    traces = write(tmp_path / "traces.jsonl", rows)
    tally = label_file(LabelSettings(traces=traces, out=out, quality=checker, targets="quality", final="none"))
    assert (tally.done, tally.rejected) == (1, 2)
    errors = [row["error"] for row in rows_of(tmp_path / "labelled.rejected.jsonl")]
    assert errors[0] == f"--quality {checker} failed: KeyError: 'four'"
    assert errors[1].startswith(f"--quality {checker} failed: TypeError: ")


def test_every_arith_problem_is_parsed_back_from_its_prompt():
    assert all(arith.read(chain.prompt) == chain for chain in arith.take("dev", 50))
    assert arith.read("Start with 7.\nWhat is the last digit?") is None


# the trajectory reward


def test_the_policy_solves_the_problem_by_the_template_that_the_expert_extracts():
    asked = []

    def expert(prompt, seed):
        asked.append(prompt)
        return "<think>\nhm\n</think>\n\nAdd what there is."

    def policy(prompt, seed):
        asked.append(prompt)
        return f"\\boxed{{{4 if seed % 4 == 0 else 3}}}"

    reward = TemplateReward(
        ScriptedEngine(expert), ScriptedEngine(policy), Grader(), Cache(None), n=8, sampling=Sampling(max_tokens=100)
    )
    template, share = asyncio.run(reward.rate(candidate()))
    assert template == "Add what there is."
    assert share == 0.25
    assert TEXT in asked[0]
    assert asked[1].startswith("2 + 2 = ?\n")
    assert "Add what there is." in asked[1]
    silent = ScriptedEngine(lambda *_: "")
    with pytest.raises(InputError, match="wrote no template"):
        asyncio.run(TemplateReward(silent, ScriptedEngine(policy), Grader(), Cache(None)).rate(candidate()))


# files


def test_a_row_holds_every_term_beside_the_target_made_of_it(tmp_path):
    out = tmp_path / "labelled.jsonl"
    label_file(LabelSettings(traces=arith_traces(tmp_path / "traces.jsonl"), out=out, quality="check", final="outcome"))
    rows = rows_of(out)
    assert len(rows) == 6
    for row, labelled in zip(rows, read_labelled(out), strict=True):
        trajectory = labelled.trace.candidate.trajectory
        thinking, steps = len(trajectory.thinking), len(trajectory.thinking) + len(trajectory.response)
        terms = row["terms"]
        assert {len(values) for values in (*terms.values(), row["step_targets"])} == {steps}
        assert terms["alignment"][thinking:] == terms["coherence"][thinking:] == [None] * (steps - thinking)
        for t in range(thinking):
            a, q, c = (terms[name][t] for name in ("alignment", "quality", "coherence"))
            assert row["step_targets"][t] == pytest.approx(step_target(a, q, c, 16))
        assert row["step_targets"][thinking:] == terms["quality"][thinking:]
        assert terms["quality"] == arith.check(arith.read(row["problem"]), trajectory)
        assert row["final_target"] == float(row["correct"]) == float(row["text"].endswith(f"{{{row['answer']}}}"))
        assert labelled.steps == tuple(row["step_targets"])


def test_coherence_is_computed_from_the_embeddings_of_the_steps(tmp_path):
    """The negatives are steps of other problems; the step before the first one is the problem."""
    out = tmp_path / "labelled.jsonl"
    label_file(
        LabelSettings(
            traces=arith_traces(tmp_path / "traces.jsonl", 2), out=out, quality="check", final="none", negatives=1000, tau=0.5
        )
    )
    first, second = rows_of(out)
    steps = {row["id"]: tts.trajectory.parse(row["text"]).thinking for row in (first, second)}
    vectors = dict(
        zip(
            [first["problem"], *steps["t0"], *steps["t1"]],
            Encoder("arith-policy").encode([first["problem"], *steps["t0"], *steps["t1"]]),
            strict=True,
        )
    )
    before = [first["problem"], *steps["t0"]]
    for t, step in enumerate(steps["t0"]):
        own = float(vectors[before[t]] @ vectors[step]) / 0.5
        others = [float(vectors[before[t]] @ vectors[other]) / 0.5 for other in steps["t1"]]
        assert first["terms"]["coherence"][t] == pytest.approx(own - math.log(sum(map(math.exp, [own, *others]))))


def test_rollouts_of_the_bundled_policy_find_the_wrong_step(tmp_path):
    """After the wrong step hardly any completion is correct; before it, more are."""
    chain = arith.take("dev", 1)[0]
    values = [chain.start, *chain.values]
    right = [f"{i + 1}) {values[i]}{symbol}{b}={values[i + 1]}" for i, (symbol, b) in enumerate(chain.operations)]
    wrong = [*right[:-1], right[-1][:-1] + str((values[-1] + 1) % 10)]
    rows = [
        {
            "problem": chain.prompt,
            "answer": chain.answer,
            "thinking": "\n\n".join(steps),
            "response": f"\\boxed{{{steps[-1][-1]}}}",
        }
        for steps in (right, wrong)
    ]
    out = tmp_path / "labelled.jsonl"
    label_file(
        LabelSettings(traces=write(tmp_path / "t.jsonl", rows), out=out, targets="quality", final="none", n=32, max_tokens=150)
    )
    good, bad = rows_of(out)
    last = len(right) - 1
    assert good["step_targets"][last] > 0.8
    assert bad["step_targets"][last] < 0.1
    assert good["step_targets"][:last] == bad["step_targets"][:last]  # same prefixes, same samples


def test_rows_that_cannot_be_labelled_are_rejected_with_the_reason(tmp_path):
    traces = arith_traces(tmp_path / "traces.jsonl", 3)
    fine = traces.read_text()
    hostile = [
        {"problem": "Start with 1.\n1) add 5\nWhat is the last digit?", "answer": "6", "text": "The result is \\boxed{6}"},
        {"problem": "Start with 1.\n1) add 5\nWhat is the last digit?", "answer": "6", "text": "<think>\n1) 1+5=6"},
        {"problem": "2 + 2 = ?", "answer": "4", "text": TEXT},
        {"problem": "Start with 1.\n1) add 5\nWhat is the last digit?", "text": "<think>\n1) 1+5=6\n</think>\n\n\\boxed{6}"},
    ]  # fmt: skip
    traces.write_text("no json\n" + fine + "".join(json.dumps(row) + "\n" for row in hostile))
    out = tmp_path / "labelled.jsonl"
    tally = label_file(LabelSettings(traces=traces, out=out, quality="check", final="outcome"))
    assert (tally.done, tally.rejected) == (3, 5)
    reasons = [row["error"] for row in rows_of(tmp_path / "labelled.rejected.jsonl")]
    for reason, expected in zip(
        reasons,
        [
            "not valid JSON",
            "has no thinking part",
            "has no response",
            "problems of the arith benchmark",
            "no answer, which --final outcome needs",
        ],
        strict=True,
    ):
        assert expected in reason
    out = tmp_path / "hard.jsonl"  # hard labels need no comparison with the response
    tally = label_file(LabelSettings(traces=traces, out=out, quality="check", targets="hard", final="none"))
    assert (tally.done, tally.rejected) == (6, 2)
    assert {value for row in rows_of(out) for value in row["step_targets"]} <= {0.0, 1.0}


def test_coherence_needs_steps_of_at_least_two_problems(tmp_path):
    traces = arith_traces(tmp_path / "traces.jsonl", 1)
    with pytest.raises(InputError, match="at most one problem"):
        label_file(LabelSettings(traces=traces, out=tmp_path / "out.jsonl", quality="check", final="none"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"traces": "absent.jsonl"}, "no file absent.jsonl"),
        ({"quality": "taste"}, "rollout, judge, check, or file.py:function"),
        ({"tau": 0.0}, "--tau is 0.0"),
        ({"n": 0}, "--n is 0"),
        ({"threshold": 2.0}, "--threshold is 2.0"),
        ({"fields": {"x": "y"}}, "--field x is not a field"),
        ({"grader": "vibes"}, "no grader named 'vibes'"),
        ({"judge_prompt": "absent.txt", "quality": "judge"}, "cannot read the judge's prompt"),
    ],
)
def test_bad_settings_are_reported(tmp_path, options, message):
    from pathlib import Path

    traces = Path(options.pop("traces", arith_traces(tmp_path / "traces.jsonl", 2)))
    with pytest.raises(InputError, match=message):
        label_file(LabelSettings(traces=traces, out=tmp_path / "out.jsonl", **options))


@pytest.mark.slow
def test_labelling_resumed_after_a_kill_writes_the_same_rows(tmp_path):
    traces = arith_traces(tmp_path / "traces.jsonl", 120)
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    settings = LabelSettings(traces=traces, out=killed, quality="check", final="outcome")
    label_file(replace(settings, out=whole))
    options = ("--quality", "check", "--final", "outcome")
    run_killed("tts.data.stream:FileSink.add", 2, "label", traces, "--out", killed, *options)
    assert 0 < len(rows_of_whole_lines(killed)) < 120
    with killed.open("a") as file:
        file.write('{"id": "torn in the mid')
    assert label_file(replace(settings, resume=True)).resumed > 0
    expected, found = rows_of(whole), rows_of(killed)
    assert [row["id"] for row in found] == [row["id"] for row in expected]
    for a, b in zip(expected, found, strict=True):
        assert a["step_targets"] == pytest.approx(b["step_targets"], abs=1e-5)  # batches of other sizes differ in the last bits
    with pytest.raises(InputError, match=r"was started with --tau 0\.1, not 0\.3"):
        label_file(replace(settings, resume=True, tau=0.3))


def rows_of_whole_lines(path):
    return path.read_bytes().split(b"\n")[:-1]


@pytest.mark.parametrize("options", [{"top_p": 1e-6}, {"system": "Answer in words."}])
def test_options_of_sampling_and_of_the_policy_reach_its_completions(tmp_path, options):
    """Each changes what is sampled, and what was kept under other options is not used."""
    prompt = "Start with 7.\n1) multiply by 8\n2) multiply by 5\nWhat is the last digit?"
    rows = [{"problem": prompt, "answer": "0", "text": "<think>\n1) 7*8=6\n\n2) 6*5=0\n</think>\n\nIt is \\boxed{0}"}]
    traces, cache = write(tmp_path / "t.jsonl", rows), tmp_path / "cache"
    common = {"traces": traces, "targets": "quality", "final": "none", "n": 16, "max_tokens": 60, "cache": cache}
    label_file(LabelSettings(out=tmp_path / "one.jsonl", **common))
    label_file(LabelSettings(out=tmp_path / "two.jsonl", **common, **options))
    one, two = ([row["terms"]["quality"] for row in rows_of(tmp_path / f"{name}.jsonl")] for name in ("one", "two"))
    assert one != two
    if "top_p" in options:  # almost greedy: all completions of a prefix are one
        assert set(two[0]) <= {0.0, 1.0}


# public data sets of step labels


def test_trl_columns_are_read_and_written(tmp_path):
    row = {"prompt": "2 + 2 = ?", "completions": ["one", " ", "two\n\nthree"], "labels": [True, False, 0], "correct": False}
    [labelled] = parse_labelled(json.dumps(row), 1, {})
    assert labelled.trace.candidate.problem.prompt == "2 + 2 = ?"
    assert labelled.trace.candidate.trajectory.response == ("one", "two\nthree")  # a blank line would split it into two steps
    assert labelled.steps == (1.0, 0.0)
    assert labelled.correct is False
    assert trl_row(labelled) == {"prompt": "2 + 2 = ?", "completions": ["one", "two\nthree"], "labels": [True, False]}
    out = tmp_path / "trl.jsonl"
    label_file(
        LabelSettings(
            traces=arith_traces(tmp_path / "traces.jsonl", 3),
            out=out,
            quality="check",
            targets="hard",
            final="none",
            layout="trl",
        )
    )
    for row, labelled in zip(rows_of(out), read_labelled(out), strict=True):
        assert [bool(target) for target in labelled.steps] == row["labels"]


def test_math_shepherd_columns_are_read():
    row = {
        "input": "2 + 2 + 2 = ? Step 1: 2 + 2 = 4 ки\nStep 2: 4 + 2 = 7. The answer is: 7 ки",
        "label": "2 + 2 + 2 = ? Step 1: 2 + 2 = 4 +\nStep 2: 4 + 2 = 7. The answer is: 7 -",
        "task": "GSM8K",
    }
    [labelled] = parse_labelled(json.dumps(row), 1, {})
    assert labelled.trace.candidate.problem.prompt == "2 + 2 + 2 = ?"
    assert labelled.trace.candidate.trajectory.response == ("Step 1: 2 + 2 = 4", "Step 2: 4 + 2 = 7. The answer is: 7")
    assert labelled.steps == (1.0, 0.0)
    with pytest.raises(BadRowError, match=r"expected \+ or -"):
        parse_labelled(json.dumps({**row, "label": row["label"][:-1] + "?"}), 1, {})


def test_every_rated_completion_of_a_prm800k_row_is_read():
    row = {
        "question": {"problem": "2 + 2 = ?", "ground_truth_answer": "4"},
        "label": {
            "steps": [
                {"completions": [{"text": "a", "rating": 1}, {"text": "b", "rating": -1}], "chosen_completion": 0},
                {"completions": [{"text": "c", "rating": 0}, {"text": "d", "rating": None}], "chosen_completion": 0},
                {"completions": [{"text": "e", "rating": -1}], "human_completion": {"text": "f"}, "chosen_completion": None},
                {"completions": [{"text": "g", "rating": -1}, {"text": "h", "rating": 1}], "chosen_completion": None},
                {"completions": [{"text": "not reached", "rating": 1}], "chosen_completion": 0},
            ],
        },
    }
    found = [(x.trace.candidate.trajectory.response, x.steps) for x in parse_labelled(json.dumps(row), 1, {})]
    assert found == [
        (("a", "c", "f"), (1.0, 1.0, 1.0)),
        (("b",), (0.0,)),
        (("a", "c", "e"), (None, None, 0.0)),
        (("a", "c", "f", "g"), (None, None, None, 0.0)),
        (("a", "c", "f", "h"), (None, None, None, 1.0)),
    ]


STEPS = ["a", "", "b", " \n", "c\n\nd"]


@pytest.mark.parametrize(
    ("row", "steps", "positions"),
    [
        ({"problem": "x", "steps": STEPS, "step_targets": [1, None, 0, None, 0.5]}, (1, 0, 0.5), [1, None, 0, None, 0.5]),
        ({"problem": "x", "steps": STEPS, "step_targets": [1, 0, 0, 1, None]}, (1, 0, None), [1, None, 0, None, None]),
        ({"prompt": "x", "completions": STEPS, "labels": [1, 0, 1, 0, 1]}, (1, 1, 1), [1, None, 1, None, 1]),
        ({"problem": "x", "steps": STEPS, "label": 2}, (1, 0, None), [1, None, 0, None, None]),
        ({"problem": "x", "steps": STEPS, "label": 1}, (1, None, None), [1, None, None, None, None]),
        ({"problem": "x", "steps": STEPS, "label": 0}, (0, None, None), [0, None, None, None, None]),
        ({"problem": "x", "steps": STEPS, "label": -1}, (1, 1, 1), [1, None, 1, None, 1]),
        (
            {"modified_question": "x", "modified_process": STEPS, "error_steps": [3, 9], "idx": "p1"},
            (1, 0, 1),
            [1, None, 0, None, 1],
        ),
        (
            {"problem": "x", "steps": ["<think>", "a", "", "b</think>", "c"], "step_targets": [None, 1, None, 0, 1]},
            (1, 0, 1),
            [None, 1, None, 0, 1],
        ),
    ],
)
def test_labels_belong_to_positions_in_the_given_list(row, steps, positions):
    [labelled] = parse_labelled(json.dumps(row), 1, {})
    assert len(labelled.trace.candidate.trajectory.steps) == 3
    assert labelled.steps == steps
    assert labelled.trace.by_position(labelled.steps) == positions


def test_positions_in_prm800k_paths_are_those_of_the_path():
    completions = [{"text": text, "rating": rating} for text, rating in (("a", 1), (" ", 0), ("b", -1), ("c", 1))]
    steps = [{"completions": [one], "chosen_completion": 0} for one in completions]
    row = {"question": {"problem": "?"}, "label": {"steps": steps}}
    [labelled] = parse_labelled(json.dumps(row), 1, {})
    assert labelled.steps == (1.0, 0.0, 1.0)
    assert labelled.trace.by_position(labelled.steps) == [1.0, None, 0.0, 1.0]


def test_prmbench_rows_have_a_label_for_each_step_of_the_published_list():
    path = Path(__file__).parents[2] / "shared" / "data" / "prmbench_60.jsonl"
    if not path.is_file():
        pytest.skip(f"NOT RUN: there is no {path}")
    rows = rows_of(path)
    for row, labelled in zip(rows, read_labelled(path), strict=True):
        wrong = [i + 1 for i, label in enumerate(labelled.trace.by_position(labelled.steps)) if label == 0]
        assert wrong == [i for i in row["error_steps"] if i <= len(row["modified_process"])]


def test_targets_of_given_steps_are_written_for_their_positions(tmp_path):
    prompt = "Start with 7.\n1) add 5\n2) multiply by 3\nWhat is the last digit?"
    steps = [
        "<think>",
        "1) 7+5=2",
        "",
        "2) 2*3=5",
        "</think>",
        "add 5 gives 2",
        "multiply by 3 gives 5",
        " ",
        "It is \\boxed{5}",
    ]
    traces = write(tmp_path / "t.jsonl", [{"problem": prompt, "answer": "6", "moves": steps}])
    out = tmp_path / "out.jsonl"
    settings = {"quality": "check", "targets": "quality", "final": "none", "fields": {"steps": "moves"}}
    label_file(LabelSettings(traces=traces, out=out, **settings))
    [row], [labelled] = rows_of(out), read_labelled(out)
    assert row["steps"] == steps
    assert row["step_targets"] == row["terms"]["quality"] == [None, 1, None, 0, None, 1, 0, None, 0]
    assert labelled.steps == (1, 0, 1, 0, 0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem": "x", "text": "a\n\nb", "step_targets": [1.0]}, "1 labels for 2 steps"),
        ({"prompt": "x", "completions": ["a"], "labels": [1, 0]}, "2 labels for 1 steps"),
        ({"problem": "x", "steps": ["a", "", "b"], "step_targets": [1, 0]}, "2 labels for 3 steps; .* each of the given steps"),
        ({"problem": "x", "steps": ["a"], "label": 1}, "'label' is 1; expected the index of a step, from 0, or -1"),
        ({"problem": "x", "steps": ["a"], "label": "b"}, "'label' is \"b\""),
        ({"modified_question": "x", "modified_process": ["a"], "error_steps": [0]}, r"'error_steps' is \[0\]"),
        ({"problem": "x", "text": "a", "step_targets": ["1"]}, "expected a number, true, false or null"),
        ({"problem": "x", "text": "a", "step_targets": [float("nan")]}, "NaN is not a JSON number"),
        ({"problem": "x", "text": "a", "step_targets": 3}, "expected a list"),
        ({"problem": "x", "text": "a"}, "the line has no targets"),
        ({"prompt": "x", "completions": "a", "labels": [1]}, "expected a list of strings"),
        ({"question": {"problem": "x"}, "label": {"steps": [{}]}}, "no list of completions with a string"),
        ({"problem": " ", "text": "a", "step_targets": [1.0]}, "no string under 'problem'"),
    ],
)
def test_rows_without_labels_are_reported_with_their_line(tmp_path, row, message):
    path = write(tmp_path / "labels.jsonl", [{"problem": "x", "text": "a", "step_targets": [1]}, row])
    with pytest.raises(InputError, match="line 2: .*" + message):
        list(read_labelled(path))
