"""Traces that are longer than a model's context: what is in a window, and what is known of it afterwards."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import tts
from tts.cli import entry
from tts.demo import MODELS
from tts.errors import InputError
from tts.models.batching import groups
from tts.runs.score import score_file
from tts.runs.settings import ScoreSettings
from tts.scorers import load_scorer, windows
from tts.scorers.prm import PRM
from tts.scorers.reader import Query
from tts.types import Candidate, Problem, Step, Window

PROMPT = "Start with 7.\n1) multiply by 8\nWhat is the last digit?"
STEPS = [f"{i}) 7*{i}={7 * i}" for i in range(40)]
SMALL = 160
"""Tokens in a window that holds only some of STEPS."""
REAL = Path(__file__).parents[2] / "shared" / "data" / "r1_traces_95.jsonl"


def candidate(text, prompt=PROMPT):
    return Candidate(Problem("p", prompt), (Step(text, (), "stop"),))


# --- which parts are in a window


def test_spans_of_any_sizes_show_each_part_with_as_much_context_as_promised():
    rng = random.Random(0)
    for _ in range(300):
        room = rng.randint(2, 60)
        sizes = [rng.randint(1, rng.choice([3, 10, 80])) for _ in range(rng.randint(1, 60))]
        guesses = [max(1, size + rng.randint(-3, 3)) for size in sizes]

        def fits(begin, end, room=room, sizes=sizes):
            return sum(sizes[begin:end]) <= room

        found = list(windows.spans(guesses, room, fits))
        assert [i for span in found for i in range(span.rated, span.end)] == [*range(len(sizes))]
        for span in found:
            assert fits(span.begin, span.end) or (span.begin, span.end) == (span.rated, span.rated + 1)
            assert span.end == len(sizes) or not fits(span.begin, span.end + 1)  # it is as long as it can be
            assert not 0 < span.begin == span.rated or not fits(span.begin - 1, span.rated + 1)  # at least one step before
        cut = rng.randint(1, len(sizes))
        assert [s._replace(end=min(s.end, cut)) for s in found if s.rated < cut] == [*windows.spans(guesses[:cut], room, fits)]
        begin = windows.tail(guesses, room, fits)
        assert begin == len(sizes) - 1 or fits(begin, len(sizes))
        assert begin == 0 or not fits(begin - 1, len(sizes))


def test_spans_of_tokens_repeat_half_a_window():
    found = [*windows.spans([1] * 25, 10, lambda begin, end: end - begin <= 10)]
    assert found == [(0, 0, 10), (5, 10, 15), (10, 15, 20), (15, 20, 25)]


# --- the policy's own probabilities


@pytest.mark.parametrize("measure", ["logprob", "self-certainty", "confidence"])
async def test_likelihoods_in_windows_equal_their_definition(measure):
    scorer = load_scorer(measure, policy="arith-policy", options={"window": 64})
    whole = load_scorer(measure, policy="arith-policy")
    text = "1) 7*8=6\n\n" * 20
    problem = candidate(text).problem
    prompt, tokens = scorer.prompter.encode(problem), scorer.prompter.tokenize(text)
    room = 64 - len(prompt)
    assert len(tokens) > 2 * room > 8
    model = AutoModelForCausalLM.from_pretrained(MODELS["arith-policy"], attn_implementation="eager").eval()
    values, read = [], 0
    begin, end = 0, room
    while True:
        ids = [*prompt, *tokens[begin:end]]
        with torch.no_grad():
            rows = model(torch.tensor([ids])).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
        read += len(ids)
        for row, token in list(zip(rows, tokens[begin:end], strict=True))[len(values) - begin :]:
            values.append({
                "logprob": float(row[token]),
                "self-certainty": float(-(row + math.log(len(row))).mean()),
                "confidence": float(-row.sort().values[-20:].mean()),
            }[measure])  # fmt: skip
        if end == len(tokens):
            break
        begin, end = end - room // 2, min(len(tokens), end - room // 2 + room)
    [reward] = await scorer.score([candidate(text)])
    assert reward.final == pytest.approx(sum(values) / (1 if measure == "logprob" else len(values)), abs=1e-3)
    assert reward.tokens == read == sum(window.tokens for window in reward.windows)
    assert {window.of for window in reward.windows} == {"tokens"}
    assert [i for window in reward.windows for i in range(window.rated, window.end)] == [*range(len(tokens))]
    short = candidate(text[: len(text) // 10])
    assert await scorer.score([short, candidate(text)]) == [*await whole.score([short]), reward]


async def test_likelihoods_that_cannot_be_read():
    long = candidate("1) 7*8=6\n\n" * 400)
    with pytest.raises(InputError, match=r"a trace of \d+ tokens is longer than the 1024 .*omit --scorer-arg window=false"):
        await load_scorer("logprob", policy="arith-policy", options={"window": False}).score([long])
    with pytest.raises(InputError, match=r"the problem takes \d+ of the 1024 tokens"):
        await load_scorer("logprob", policy="arith-policy").score([candidate("a", "7 * 8 + " * 300)])


async def test_what_is_held_in_memory_is_bounded_and_changes_nothing(monkeypatch):
    scorer = load_scorer("logprob", policy="arith-policy", options={"window": 64})
    long = [candidate("1) 7*8=6\n\n" * count) for count in (20, 3, 9)]
    expected = await scorer.score(long)
    monkeypatch.setattr(type(scorer), "HELD", 100)
    assert await scorer.score(long) == expected
    assert [*map(list, groups([3, 4, 9, 1, 1], lambda size: size, 7))] == [[3, 4], [9], [1, 1]]


# --- what a reader of the results knows


def score(rows, out="out.jsonl", **settings):
    Path("t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tally = score_file(ScoreSettings(traces=Path("t.jsonl"), out=Path(out), **settings))
    return tally, [json.loads(line) for line in Path(out).read_text().splitlines()]


def test_rows_say_what_was_read_together_in_positions_of_the_given_steps():
    blank = [step for pair in zip(STEPS, [""] * len(STEPS), strict=True) for step in pair]
    rows = [{"problem": PROMPT, "text": "\n\n".join(STEPS)}, {"problem": PROMPT, "steps": ["<think>", *blank]}]
    rows += [{"problem": PROMPT, "steps": ["<think>", *blank, "</think>", *STEPS]}, {"problem": PROMPT, "text": STEPS[0]}]
    _, [text, given, _, short] = score(rows, scorer_args={"window": SMALL})
    assert "windows" not in short
    assert text["step_rewards"] == [reward for reward in given["step_rewards"] if reward is not None]
    for one, other in zip(text["windows"], given["windows"], strict=True):
        places = {"begin": 1 + 2 * one["begin"], "rated": 1 + 2 * one["rated"], "end": 2 * one["end"]}
        assert other == one | places
    _, rows = score(rows, "response.jsonl", scorer_args={"window": SMALL}, score_over="response")
    assert rows[2]["windows"][0]["begin"] == rows[2]["step_rewards"].index(rows[0]["step_rewards"][0])
    assert rows[2]["windows"][-1]["end"] == len(rows[2]["step_rewards"])


def test_a_scored_file_that_is_scored_again_does_not_keep_what_was_said_of_its_first_reading():
    _, first = score([{"problem": PROMPT, "text": "\n\n".join(STEPS), "final_missing": True}], scorer_args={"window": SMALL})
    assert "windows" in first[0]
    assert "final_missing" not in first[0]
    _, second = score(first, "again.jsonl")
    assert "windows" not in second[0]


def test_the_command_says_how_many_traces_were_read_in_windows(monkeypatch, capsys):
    rows = [{"problem": PROMPT, "text": "\n\n".join(STEPS)}] * 2 + [{"problem": PROMPT, "text": STEPS[0]}]
    Path("t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ["tts", "score", "t.jsonl", "--json", "--scorer-arg"]
    for window, windowed, code in ((f"{SMALL}", 2, 0), ("true", 0, 0)):
        monkeypatch.setattr(sys, "argv", [*common, f"window={window}", "--out", f"{window}.jsonl"])
        with pytest.raises(SystemExit) as ended:
            entry()
        captured = capsys.readouterr()
        assert (ended.value.code, json.loads(captured.out)["windowed"]) == (code, windowed)
        assert ("2 traces were longer than the context of arith-prm and read in windows" in captured.err) == (windowed > 0)


@pytest.mark.parametrize("scorer", ["arith-prm", "self-certainty"])
def test_a_run_keeps_the_windows_of_its_candidates(engine, scorer):
    common = {"limit": 3, "n": 4, "engine_instance": engine, "scorer": scorer}
    windowed = tts.run("bon", out="a", scorer_args={"window": SMALL}, **common)
    whole = tts.run("bon", out="b", **common)
    kept = [attempt for record in tts.data.store.RunStore.open(Path("a")).records() for attempt in record.candidates]
    assert windowed.windowed == sum(bool(attempt.windows) for attempt in kept) > 0
    assert windowed.failed == whole.failed == whole.windowed == 0
    assert windowed.to_json()["windowed"] == windowed.windowed
    assert all(isinstance(window, Window) for attempt in kept for window in attempt.reward().windows)
    assert '"windows"' not in Path("b/results.jsonl").read_text()
    _, rows = score([json.loads(line) for line in Path("a/results.jsonl").read_text().splitlines()], scorer="length")
    assert rows
    assert not any("windows" in row for row in rows)


def test_a_search_reads_solutions_longer_than_a_window(engine):
    summary = tts.run("beam", out="a", limit=2, n=4, engine_instance=engine, scorer_args={"window": SMALL})
    assert summary.failed == 0
    assert summary.windowed > 0


@pytest.mark.parametrize("over", ["all", "think", "response"])
@pytest.mark.parametrize("scorer_args", [{}, {"window": SMALL}])
def test_rows_of_traces_with_only_a_part(over, scorer_args):
    """Steps of the part that is rated have a reward; a trace without such steps has none, and no total."""
    thinking, response = "\n\n".join(STEPS[:20]), "\n\n".join(STEPS[20:])
    texts = {
        "both": f"<think>\n{thinking}\n</think>\n\n{response}",
        "only thinking": f"<think>\n{thinking}\n</think>",
        "unclosed": f"<think>\n{thinking}",
        "only response": response,
        "opened by the template": f"{thinking}\n</think>\n\n{response}",
    }
    _, rows = score([{"problem": PROMPT, "text": text} for text in texts.values()], score_over=over, scorer_args=scorer_args)
    for name, row in zip(texts, rows, strict=True):
        steps = 20 * (over != "response" and name != "only response")
        steps += 20 * (over != "think" and name in ("both", "only response", "opened by the template"))
        assert len(row["step_rewards"]) == steps, name
        assert (row["final"] is None) == (row["total"] is None) == row.get("final_missing", False) == (steps == 0), name
        assert ("windows" in row) == (bool(scorer_args) and steps > 0), name
    if over == "all":
        assert rows[0]["step_rewards"] == rows[4]["step_rewards"]


@pytest.mark.parametrize(("entry", "context"), [({"max_model_len": SMALL}, SMALL), ({"max_model_len": 4096}, 1024), ({}, 1024)])
async def test_a_server_may_have_a_shorter_context_than_the_model(monkeypatch, entry, context):
    prm, local = PRM("arith-prm", backend="server", url="http://127.0.0.1:1"), PRM("arith-prm", window=context)

    async def get(path):
        return {"data": [{"id": "m", **entry}]}

    async def ask(path, body, read, retries=None):
        ids = body["input"]
        [values] = await local.reader.read([Query(ids, range(len(ids)))])
        return read({"data": [{"data": [[1 - value, value] for value in values]}]})

    monkeypatch.setattr(prm.reader.client, "get", get)
    monkeypatch.setattr(prm.reader.client, "ask", ask)
    [reward], [expected] = [await scorer.score([candidate("\n\n".join(STEPS))]) for scorer in (prm, local)]
    assert (reward.windows, reward.tokens) == (expected.windows, expected.tokens)
    assert reward.steps == pytest.approx(expected.steps, abs=1e-5)
    assert prm.reader.context == context


# --- real traces


@pytest.mark.slow
@pytest.mark.parametrize("scorer", ["arith-prm", "logprob"])
def test_every_real_trace_gets_a_reward(scorer):
    """Also those that are repeated until they are longer, and their parts."""
    if not REAL.is_file():
        pytest.skip(f"{REAL} is not there: real traces are not scored")
    rows = [json.loads(line) for line in REAL.read_text().splitlines()]
    rows = sorted(rows, key=lambda row: len(row["text"]))[::24]
    longer = [row | {"text": row["text"] + 2 * ("\n\n" + row["text"])} for row in rows[:2]]
    parts = []
    for row in rows:
        thinking, _, response = row["text"].removeprefix("<think>").rpartition("</think>")
        given = {"thinking": thinking, "response": response}
        parts += [{"problem": row["problem"], name: text} for name, text in given.items() if text.strip()]
    tally, scored = score([*rows, *longer, *parts], scorer=scorer)
    assert tally.rejected == tally.unrated == 0
    assert len(scored) == len(rows) + len(longer) + len(parts) > 2 * len(rows)
    assert tally.windowed == sum("windows" in row for row in scored) > len(rows)
