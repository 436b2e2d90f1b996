"""Labels: the paper's terms against formulas written out, those who rate steps, and what survives a kill."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace

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
from tts.train.label.quality import Check, Judge, Rollout, prefixes_of
from tts.train.label.targets import alignment, coherence, combine, step_target
from tts.train.label.template import Guide
from tts.train.settings import Label
from tts.types import Candidate, Problem, Step

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


def test_alignment_is_the_largest_cosine_or_that_of_the_step_at_the_same_place():
    rng = np.random.default_rng(0)
    steps, response = unit_vectors(rng, 5, 8), unit_vectors(rng, 2, 8)
    cosines = [[sum(a * b for a, b in zip(s, r, strict=True)) for r in response] for s in steps]
    assert alignment(steps, response) == pytest.approx([max(row) for row in cosines])
    # steps 0 to 2 are in the first half of the way, 3 and 4 in the second
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


def test_unit_targets_lie_between_0_and_1_and_rise_with_every_term():
    rng = np.random.default_rng(2)
    for _ in range(200):
        align, quality, coh = rng.uniform(-1, 1), rng.uniform(0, 1), math.log(rng.uniform(1e-9, 1))
        target = step_target(align, quality, coh, 16)
        assert 0 <= target <= 1
    assert step_target(0.0, 0.5, math.log(1 / 17), 16) == pytest.approx(0.5)  # one of 17 equal ones: neither good nor bad
    # where the other terms are equal, a better step has a better target
    assert step_target(0.1, 1.0, -2.0, 16) > step_target(0.1, 0.0, -2.0, 16)
    assert step_target(0.9, 0.5, -2.0, 16) > step_target(0.1, 0.5, -2.0, 16)


# Phi


def test_vectors_are_mean_pooled_hidden_states_whatever_the_batch():
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


def test_a_sentence_transformers_model_pools_as_it_does_itself(tmp_path):
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
    assert np.abs(found - mean_pooled).max() > 1e-3  # the first token is what this one goes by


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
    """A third of the completions end in 4."""
    return f"{TEXT[:-2]}{4 if seed % 3 == 0 else 5}}}"


def test_rollouts_rate_a_step_by_the_share_of_completions_that_are_right():
    engine = ScriptedEngine(_lucky)
    [rewards, again, wrong] = _rate(
        Rollout(engine, Grader(), Cache(None), n=9, max_tokens=200),
        candidate(),
        candidate(),
        candidate(TEXT.replace("4}", "7}")),
    )
    assert rewards == [pytest.approx(1 / 3)] * 3 + [1.0]  # nine seeds in a row; the last step is the trace's own answer
    assert again == rewards
    assert wrong[:3] == rewards[:3]
    assert wrong[3] == 0.0
    assert engine.calls == 3  # equal prefixes are completed once


def test_rollouts_need_an_answer():
    with pytest.raises(InputError, match="no answer, which --quality rollout needs"):
        _rate(Rollout(ScriptedEngine(_lucky), Grader(), Cache(None)), candidate(answer=None))


def test_a_think_tag_that_the_template_opens_is_not_opened_twice():
    seen = []

    class Opening(ScriptedEngine):
        def encode(self, problem):
            return (*super().encode(problem), *map(ord, "<think>"))

        async def generate(self, prefix, n, sampling):
            seen.append(self.decode(prefix))
            return await super().generate(prefix, n, sampling)

    _rate(Rollout(Opening(_lucky), Grader(), Cache(None), n=3, max_tokens=200), candidate())
    assert len(seen) == 3
    assert {text.count("<think>") for text in seen} == {1}


def test_what_was_rated_is_kept_in_a_file(tmp_path):
    engine = ScriptedEngine(_lucky)
    for _ in range(2):
        cache = Cache(tmp_path / "cache", "model")
        _rate(Rollout(engine, Grader(), cache, n=3, max_tokens=200), candidate())
        cache.close()
    assert engine.calls == 3
    cache = Cache(tmp_path / "cache", "another model")
    _rate(Rollout(engine, Grader(), cache, n=3, max_tokens=200), candidate())
    assert engine.calls == 6
    (tmp_path / "no-table").write_text("hello, this is no table at all" * 100)
    with pytest.raises(InputError, match="as a cache"):
        Cache(tmp_path / "no-table")


def test_a_judge_is_shown_the_problem_the_steps_before_and_the_response():
    asked = []

    def say(prompt, seed):
        asked.append(prompt)
        step = prompt.split("Step to rate:\n")[1].split("\n\nFinal response:")[0]
        return {"one": "Rating: 10", "two": "It is fine.\nRating: 3", "three": "**Rating:** 0"}.get(step, "rating - 7")

    [ratings] = _rate(Judge(ScriptedEngine(say), Cache(None)), candidate(prompt="{step} is a word"))
    assert ratings == [1.0, 0.3, 0.0, 0.7]
    second = next(prompt for prompt in asked if "Step to rate:\ntwo" in prompt)
    assert "Problem:\n{step} is a word\n" in second  # what a problem says fills in nothing
    assert "Steps before:\none\n" in second
    assert "Final response:\nthree\n\nIt is \\boxed{4}\n" in second


def test_a_judge_without_a_rating_is_asked_again_and_then_an_error():
    tries = []

    def say(prompt, seed):
        tries.append(seed)
        return "Rating: 8" if len(tries) == 2 else "I would give it 11 of 10. Rating: 11"

    assert _rate(Judge(ScriptedEngine(say), Cache(None)), candidate("one")) == [[0.8]]
    with pytest.raises(InputError, match="no rating from 0 to 10 in 3 tries"):
        _rate(Judge(ScriptedEngine(lambda prompt, seed: "Yes!"), Cache(None)), candidate("one"))


def test_a_checker_rates_arith_or_is_the_users(tmp_path):
    chain = arith.read("Start with 7.\n1) add 5\n2) multiply by 3\nWhat is the last digit?")
    assert chain == arith.Chain(7, (("+", 5), ("*", 3)))
    text = "<think>\n1) 7+5=2\n\n2) 2*3=5\n</think>\n\nadd 5 gives 2\n\nmultiply by 3 gives 5\n\nThe result is \\boxed{5}"
    assert _rate(Check(), candidate(text, "6", chain.prompt)) == [[1, 0, 1, 0, 0]]
    with pytest.raises(InputError, match="problems of arith only"):
        _rate(Check(), candidate())
    (tmp_path / "own.py").write_text(
        "def rate(problem, thinking, response, answer):\n    return [0.5 for _ in thinking] + [1] * len(response)\n"
    )
    assert _rate(Check(f"{tmp_path}/own.py:rate"), candidate()) == [[0.5, 0.5, 1, 1]]
    (tmp_path / "bad.py").write_text("def rate(problem, thinking, response, answer):\n    return [2.0]\n")
    with pytest.raises(InputError, match=r"gave \[2.0\] for 4 steps"):
        _rate(Check(f"{tmp_path}/bad.py:rate"), candidate())


def test_every_chain_is_read_back_from_its_prompt():
    assert all(arith.read(chain.prompt) == chain for chain in arith.take("dev", 50))
    assert arith.read("Start with 7.\nWhat is the last digit?") is None


# the trajectory reward


def test_the_policy_answers_under_the_template_that_the_expert_extracts():
    asked = []

    def expert(prompt, seed):
        asked.append(prompt)
        return "<think>\nhm\n</think>\n\nAdd what there is."

    def policy(prompt, seed):
        asked.append(prompt)
        return f"\\boxed{{{4 if seed % 4 == 0 else 3}}}"

    guide = Guide(ScriptedEngine(expert), ScriptedEngine(policy), Grader(), Cache(None), n=8, max_tokens=100)
    template, share = asyncio.run(guide.reward(candidate()))
    assert template == "Add what there is."
    assert share == 0.25
    assert TEXT in asked[0]
    assert asked[1].startswith("2 + 2 = ?\n")
    assert "Add what there is." in asked[1]
    with pytest.raises(InputError, match="wrote no template"):
        asyncio.run(Guide(ScriptedEngine(lambda *_: ""), ScriptedEngine(policy), Grader(), Cache(None)).reward(candidate()))


# files


def test_every_term_stands_beside_the_target_that_it_is_part_of(tmp_path):
    out = tmp_path / "labelled.jsonl"
    label_file(Label(traces=arith_traces(tmp_path / "traces.jsonl"), out=out, quality="check", final="outcome"))
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


def test_terms_of_a_trace_are_those_of_its_steps_embeddings(tmp_path):
    """Negatives are steps of other problems; the first step follows the problem."""
    out = tmp_path / "labelled.jsonl"
    label_file(
        Label(
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


def test_rollouts_of_the_bundled_policy_see_an_error_where_it_is_made(tmp_path):
    """After the first wrong step hardly any completion is right; before it, more are."""
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
    label_file(Label(traces=write(tmp_path / "t.jsonl", rows), out=out, targets="quality", final="none", n=32, max_tokens=150))
    good, bad = rows_of(out)
    last = len(right) - 1
    assert good["step_targets"][last] > 0.8
    assert bad["step_targets"][last] < 0.1
    assert good["step_targets"][:last] == bad["step_targets"][:last]  # the same prefixes, the same samples


def test_rows_that_cannot_be_labelled_are_set_aside_with_the_reason(tmp_path):
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
    tally = label_file(Label(traces=traces, out=out, quality="check", final="outcome"))
    assert (tally.done, tally.rejected) == (3, 5)
    reasons = [row["error"] for row in rows_of(tmp_path / "labelled.rejected.jsonl")]
    for reason, expected in zip(
        reasons,
        [
            "not valid JSON",
            "has no thinking part",
            "has no response",
            "problems of arith only",
            "no answer, which --final outcome needs",
        ],
        strict=True,
    ):
        assert expected in reason
    out = tmp_path / "hard.jsonl"  # hard labels compare nothing
    tally = label_file(Label(traces=traces, out=out, quality="check", targets="hard", final="none"))
    assert (tally.done, tally.rejected) == (6, 2)
    assert {value for row in rows_of(out) for value in row["step_targets"]} <= {0.0, 1.0}


def test_one_problem_has_nothing_to_be_compared_with(tmp_path):
    traces = arith_traces(tmp_path / "traces.jsonl", 1)
    with pytest.raises(InputError, match="one problem at most"):
        label_file(Label(traces=traces, out=tmp_path / "out.jsonl", quality="check", final="none"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"traces": "absent.jsonl"}, "no file absent.jsonl"),
        ({"quality": "taste"}, "rollout, judge, check, or file.py:function"),
        ({"tau": 0.0}, "--tau is 0.0"),
        ({"n": 0}, "--n is 0"),
        ({"threshold": 2.0}, "--threshold is 2.0"),
        ({"field": ["x=y"]}, "--field x is no field"),
        ({"grader": "vibes"}, "no grader named 'vibes'"),
        ({"judge_prompt": "absent.txt", "quality": "judge"}, "cannot read the judge's prompt"),
    ],
)
def test_bad_settings_are_said(tmp_path, options, message):
    from pathlib import Path

    traces = Path(options.pop("traces", arith_traces(tmp_path / "traces.jsonl", 2)))
    with pytest.raises(InputError, match=message):
        label_file(Label(traces=traces, out=tmp_path / "out.jsonl", **options))


def test_a_killed_labelling_goes_on_to_the_same_rows(tmp_path):
    traces = arith_traces(tmp_path / "traces.jsonl", 120)
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    settings = Label(traces=traces, out=killed, quality="check", final="outcome")
    label_file(replace(settings, out=whole))
    options = ("--quality", "check", "--final", "outcome")
    run_killed("tts.data.stream:Files.add", 2, "label", traces, "--out", killed, *options)
    assert 0 < len(rows_of_whole_lines(killed)) < 120
    with killed.open("a") as file:
        file.write('{"id": "torn in the mid')
    assert label_file(replace(settings, resume=True)).resumed > 0
    expected, found = rows_of(whole), rows_of(killed)
    assert [row["id"] for row in found] == [row["id"] for row in expected]
    for a, b in zip(expected, found, strict=True):
        assert a["step_targets"] == pytest.approx(b["step_targets"], abs=1e-5)  # batches of another make, another last bit
    with pytest.raises(InputError, match=r"was begun with tau = 0\.1, not 0\.3"):
        label_file(replace(settings, resume=True, tau=0.3))


def rows_of_whole_lines(path):
    return path.read_bytes().split(b"\n")[:-1]


# public layouts of step labels


def test_trls_columns_come_in_and_go_out(tmp_path):
    row = {"prompt": "2 + 2 = ?", "completions": ["one", " ", "two\n\nthree"], "labels": [True, False, 0], "correct": False}
    [labelled] = parse_labelled(json.dumps(row), 1, {})
    assert labelled.trace.candidate.problem.prompt == "2 + 2 = ?"
    assert labelled.trace.candidate.trajectory.response == ("one", "two\nthree")  # a blank line would part it in two
    assert labelled.steps == (1.0, 0.0)
    assert labelled.correct is False
    assert trl_row(labelled) == {"prompt": "2 + 2 = ?", "completions": ["one", "two\nthree"], "labels": [True, False]}
    out = tmp_path / "trl.jsonl"
    label_file(
        Label(
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


def test_math_shepherds_columns_come_in():
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


def test_prm800ks_rows_come_in_with_every_rated_completion():
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


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem": "x", "text": "a\n\nb", "step_targets": [1.0]}, "1 labels for 2 steps"),
        ({"prompt": "x", "completions": ["a"], "labels": [1, 0]}, "2 labels for 1 steps"),
        ({"problem": "x", "text": "a", "step_targets": ["1"]}, "expected numbers, true or false, or null"),
        ({"problem": "x", "text": "a", "step_targets": [float("nan")]}, "NaN is no number of JSON's"),
        ({"problem": "x", "text": "a", "step_targets": 3}, "expected a list"),
        ({"problem": "x", "text": "a"}, "no targets in it"),
        ({"prompt": "x", "completions": "a", "labels": [1]}, "expected a list of texts"),
        ({"question": {"problem": "x"}, "label": {"steps": [{}]}}, "no completions with a text"),
        ({"problem": " ", "text": "a", "step_targets": [1.0]}, "no text under 'problem'"),
    ],
)
def test_rows_that_are_no_labels_are_said_with_their_line(tmp_path, row, message):
    path = write(tmp_path / "labels.jsonl", [{"problem": "x", "text": "a", "step_targets": [1]}, row])
    with pytest.raises(InputError, match="line 2: .*" + message):
        list(read_labelled(path))
