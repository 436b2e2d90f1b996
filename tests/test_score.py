from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tts
from tests.killing import run_killed
from tts.cli import entry
from tts.errors import InputError
from tts.runs.score import score_file
from tts.runs.settings import ScoreSettings
from tts.scorers.prm import PRM
from tts.types import Candidate, Problem, Step

PROMPT = "Start with 7.\n1) multiply by 8\n2) multiply by 5\nWhat is the last digit?"
THINKING, RESPONSE = "1) 7*8=6\n\n2) 6*5=0", "multiply by 8 gives 6\n\nThe result is \\boxed{0}"
TEXT = f"<think>\n{THINKING}\n</think>\n\n{RESPONSE}"


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def score(path, out="out.jsonl", prm=None, **settings):
    tally = score_file(ScoreSettings(traces=Path(path), out=Path(out), **settings), scorer_instance=prm)
    return tally, read(out)


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["tts", *arguments])
    with pytest.raises(SystemExit) as ended:
        entry()
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


def test_the_three_ways_to_write_a_trace_have_the_same_rewards(tmp_path, prm):
    path = write(
        tmp_path / "t.jsonl",
        {"problem": PROMPT, "text": TEXT},
        {"problem": PROMPT, "thinking": THINKING, "response": RESPONSE},
        {"problem": PROMPT, "text": RESPONSE},
        {"problem": PROMPT, "steps": RESPONSE.split("\n\n")},
    )
    _, rows = score(path, prm=prm)
    for one, other in ((rows[0], rows[1]), (rows[2], rows[3])):
        assert one["step_rewards"] == other["step_rewards"]
        assert one["final"] == other["final"]
    assert [len(row["step_rewards"]) for row in rows] == [4, 4, 2, 2]
    assert all(row["total"] == pytest.approx(sum(r := row["step_rewards"]) / len(r) + row["final"]) for row in rows)


def test_rewards_are_those_of_the_scorer_in_the_order_of_the_file(tmp_path, prm):
    texts = [f"1) 7*8={i % 10}\n\n" * (1 + i % 7) for i in range(300)]
    path = write(tmp_path / "t.jsonl", *({"id": i, "problem": PROMPT, "text": text} for i, text in enumerate(texts)))
    tally, rows = score(path, prm=prm, alpha=0.5, aggregate="min")
    assert [row["id"] for row in rows] == [str(i) for i in range(300)]
    assert tally.done == 300
    import asyncio

    for i in (0, 6, 299):
        [reward] = asyncio.run(prm.score([Candidate(Problem("x", PROMPT), (Step(texts[i], (), "stop"),))]))
        assert rows[i]["step_rewards"] == pytest.approx(list(reward.steps), abs=1e-6)
        assert rows[i]["total"] == pytest.approx(min(reward.steps) + 0.5 * reward.final, abs=1e-6)


def test_a_run_is_scored_as_it_was_written(tmp_path, prm, engine):
    tts.run("bon", n=3, limit=2, engine_instance=engine, scorer_instance=prm, out=tmp_path / "run")
    _, rows = score(tmp_path / "run" / "results.jsonl", prm=prm)
    records = tts.data.store.RunStore.open(tmp_path / "run").records()
    kept = {f"{r.id}/{i}": attempt for r in records for i, attempt in enumerate(r.candidates)}
    assert len(rows) == 6
    for row in rows:
        assert row["step_rewards"] == pytest.approx(list(kept[row["id"]].rewards), abs=1e-6)
        assert row["correct"] == kept[row["id"]].correct


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        (["a", "", "b"], "a\n\n{}\n\nb"),
        (["a\n\nb", "", " c\r\n \r\nd ", "\n"], "a\nb\n\n{}\n\nc\nd\n\n{}"),
        (["<think>", "a", " ", "b", "</think>", "c"], "<think>\n{}\na\n\n{}\n\nb\n</think>\n{}\n\nc"),
        (["<think>\na", "b\n</think>", "", "c"], "<think>\na\n\nb\n</think>\n\n{}\n\nc"),
        (["<think>", "a"], "<think>\n{}\na"),
    ],
)
@pytest.mark.parametrize("over", ["all", "think", "response"])
def test_given_steps_keep_their_positions(tmp_path, prm, over, steps, text):
    """One reward per given step: what the same trace gets as a text, and null where there is nothing to rate."""
    given, whole = {"problem": PROMPT, "steps": steps}, {"problem": PROMPT, "text": text.replace("{}", "")}
    part = PRM("arith-prm", over=over)
    _, [row, other] = score(write(tmp_path / "t.jsonl", given, whole), prm=part)
    assert len(row["step_rewards"]) == len(steps)
    known = [reward for reward in row["step_rewards"] if reward is not None]
    assert known == pytest.approx(other["step_rewards"], abs=1e-6)
    assert row["total"] == (None if not known else pytest.approx(other["total"], abs=1e-6))
    thinking = steps.index("</think>") if "</think>" in steps else len(steps) if "<think>" in steps else 0
    if "<think>\na" in steps:
        thinking = 2
    rated = {"all": range(len(steps)), "think": range(thinking), "response": range(thinking, len(steps))}[over]
    empty = {"", " ", "\n", "<think>", "</think>"}
    expected = [i in rated and step not in empty for i, step in enumerate(steps)]
    assert [reward is not None for reward in row["step_rewards"]] == expected


def test_bad_rows_are_set_aside_with_their_line_numbers(tmp_path, prm):
    path = write(
        tmp_path / "t.jsonl",
        "nonsense", "[1]", {"problem": 3}, {"problem": "p"}, {"problem": "p", "text": " "}, {"problem": "p", "steps": "a"},
        {"problem": "p", "steps": ["<think>a</think>b"]}, {"problem": "p " * 2000, "text": "a"},
        {"id": [1], "problem": "p", "text": "a"}, {"problem": "p", "candidates": [{"steps": 1}]},
        {"problem": "p", "text": "a", "score": float("nan")}, "[" * 100_000,
        {"problem": "p", "text": "good"},
    )  # fmt: skip
    tally, rows = score(path, prm=prm)
    assert [row["line"] for row in rows] == [13]
    rejected = read("out.rejected.jsonl")
    assert tally.rejected == 12
    assert [row["line"] for row in rejected] == [*range(1, 13)]
    expected = [
        "not valid JSON", "not a JSON object", "no string under 'problem'", "the line has no trace", "the trace is empty",
        "'steps' is \"a\"; expected a list", "the thinking tags in 'steps'",
        "the problem takes", "the id is [1]",
        "candidate 0 has no list of strings", "not valid JSON: NaN", "not valid JSON: nested too deeply",
    ]  # fmt: skip
    assert all(row["error"].startswith(start) for row, start in zip(rejected, expected, strict=True))
    assert rejected[0]["row"] == "nonsense"


def test_fields_may_have_other_names_and_other_fields_are_kept(tmp_path, prm):
    path = write(tmp_path / "t.jsonl", {"question": PROMPT, "reasoning": THINKING, "answer_text": RESPONSE, "source": "s1k"})
    names = {"problem": "question", "thinking": "reasoning", "response": "answer_text"}
    _, [row] = score(path, prm=prm, fields=names)
    assert len(row["step_rewards"]) == 4
    assert row["source"] == "s1k"
    _, [bare] = score(path, "bare.jsonl", prm, fields=names, bare=True)
    assert set(bare) == {"id", "step_rewards", "final", "total", "line"}


@pytest.mark.slow
def test_a_killed_scoring_goes_on_and_ends_as_if_undisturbed(tmp_path, prm):
    rows = [{"problem": PROMPT, "text": "1) 7*8=6\n\n" * (1 + i % 5)} for i in range(1000)]
    rows[7] = rows[900] = "nonsense"
    path = write(tmp_path / "t.jsonl", *rows)
    score(path, "whole.jsonl", prm)
    run_killed("tts.data.stream:FileSink.add", 3, "score", path, "--out", "out.jsonl")
    out = Path("out.jsonl")
    torn = out.read_bytes()
    assert 0 < torn.count(b"\n") < 998
    out.write_bytes(torn[:-30])  # as if the disk had taken only a part of the last write
    score_file(ScoreSettings(traces=Path(path), out=out, resume=True), scorer_instance=prm)
    resumed, whole = read(out), read("whole.jsonl")
    assert [row["line"] for row in resumed] == [row["line"] for row in whole]
    for one, other in zip(resumed, whole, strict=True):
        assert one["step_rewards"] == pytest.approx(other["step_rewards"], abs=1e-6)
    assert [row["line"] for row in read("out.rejected.jsonl")] == [8, 901]


def test_a_file_goes_on_only_under_its_settings(tmp_path, prm):
    path = write(tmp_path / "t.jsonl", {"problem": "p", "text": "a"})
    score(path, prm=prm)
    with pytest.raises(InputError, match=r"out\.jsonl exists; continue it with --resume"):
        score(path, prm=prm)
    with pytest.raises(InputError, match=r"was started with --alpha 1\.0, not 0\.5"):
        score_file(ScoreSettings(traces=path, alpha=0.5, out="out.jsonl", resume=True), scorer_instance=prm)
    with pytest.raises(InputError, match="was not started by tts score"):
        score_file(ScoreSettings(traces=path, out="other.jsonl", resume=True), scorer_instance=prm)


def test_the_command_writes_rows_to_standard_output_and_complaints_beside(tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "t.jsonl", {"problem": "p", "text": "a"}, "nonsense", {"problem": "p", "text": "b"})
    code, out, err = command(monkeypatch, capsys, "score", path, "--scorer", "length")
    assert [json.loads(line)["total"] for line in out.splitlines()] == [-1, -1]
    assert "tts: line 2: not valid JSON" in err
    assert "1 of 3 traces could not be read" in err
    assert code == 1


def test_shown_traces_have_their_rewards_before_their_steps(tmp_path, monkeypatch, capsys):
    rows = [{"problem": PROMPT, "text": TEXT + "\n\n[red]not markup[/red]"}] * 3
    path = write(tmp_path / "t.jsonl", *rows)
    code, out, _ = command(monkeypatch, capsys, "score", path, "--show", "--limit", "2", "--score-over", "response")
    assert code == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines.count("thinking") == 2  # of two traces
    assert "1) 7*8=6" in lines  # shown, and not rated
    assert any(line.startswith(("0.", "1.")) and line.endswith("[red]not markup[/red]") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.jsonl"], "no file nothing.jsonl"),
        (["t.jsonl", "--scorer", "agreement"], "agreement compares solutions of one problem"),
        (["t.jsonl", "--resume"], "--resume continues a file; name it with --out"),
        (["t.jsonl", "--field", "prompt=question"], "--field prompt is not a field of a trace; these are: id, problem"),
        (
            ["t.jsonl", "--scorer-format", "qwen"],
            "no format named 'qwen'. Did you mean 'qwen-math'? Known: qwen-math, reasonflux",
        ),
        (["t.jsonl", "--scorer-arg", "batch_tokens=many"], "batch_tokens is 'many'; it should be a whole number, at least 1"),
        (["t.jsonl", "--scorer-arg", "cache_gib=-1"], "cache_gib is -1; it should be a number, at least 0"),
        (["t.jsonl", "--scorer-arg", "window=yes"], "window is 'yes'; it should be true, false, or a number of tokens"),
        (["t.jsonl", "--scorer", "judge", "--scorer-arg", "draws=0"], "draws is 0; it should be a whole number, at least 1"),
        (["t.jsonl", "--scorer-arg", "wings=2"], "does not accept 'wings'"),
        (["t.jsonl", "--scorer-arg", "dtype=int3"], "dtype is 'int3'; expected one of auto, float32"),
        (["t.jsonl", "--scorer-engine", "server"], "--scorer-engine server needs --scorer-url"),
        (["t.jsonl", "--scorer", "length", "--score-over", "think"], "--score-over are for reward models; length is not one"),
        (["t.jsonl", "--scorer", "length", "--alpha", "0"], "rates a trace as a whole; --alpha 0 leaves nothing"),
        (["t.jsonl", "--out", "/proc/none/x.jsonl"], "cannot write to"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, message):
    write(Path("t.jsonl"), {"problem": "p", "text": "a"})
    code, _, err = command(monkeypatch, capsys, "score", *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


async def test_scored_text_is_not_cut_where_a_part_is_rated(prm):
    candidate = Candidate(Problem("x", PROMPT), (Step(TEXT, (), "stop"),))
    [think] = await PRM("arith-prm", over="think").score([candidate])
    [every] = await prm.score([candidate])
    assert think.steps == pytest.approx(every.steps[:2], abs=1e-6)  # what comes later is not seen


def test_a_person_at_a_terminal_sees_it_go_on(tmp_path):
    path = write(tmp_path / "t.jsonl", *[{"problem": PROMPT, "text": TEXT}] * 1500)
    controller, terminal = pty.openpty()
    arguments = [sys.executable, "-m", "tts.cli", "score", path, "--out", "out.jsonl"]
    process = subprocess.Popen(arguments, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    seen = b""
    while True:
        try:
            chunk = os.read(controller, 65536)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        seen += chunk
    assert process.wait() == 0
    assert b"Traceback" not in seen
    assert re.search(rb"[0-9]+ traces .* tokens/s .* left", seen)
    assert b"1500 traces scored: out.jsonl" in seen


PLUGIN = """
from tts import Reward, Scorer


class Odd(Scorer):
    def __init__(self, *, kind: str = "none"):
        self.kind = kind

    async def score(self, candidates):
        return [self.one(candidate) for candidate in candidates][: -1 if self.kind == "lost" else None]

    def one(self, candidate):
        steps = candidate.trajectory.steps
        if candidate.text == "good":
            return Reward((0.5,), 0.5)
        return {
            "none": Reward((0.5, *[None] * (len(steps) - 1)), final_missing=True), "nan": Reward((float("nan"),) * len(steps)),
            "few": Reward((0.5,)), "lost": Reward((0.5,) * len(steps)), "whole": Reward((), 0.25),
        }[self.kind]


def maybe(problem, text):
    return 0.25 if text == "good" else None
"""


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("nan", "the scorer returned a reward that is not finite"),
        ("few", "the scorer returned 1 step rewards for a trace with 2 steps to rate; expected one for each"),
        ("lost", "the scorer returned 0 rewards for 1 candidates"),
    ],
)
def test_rewards_that_cannot_be_used_are_set_aside_with_the_reason(tmp_path, kind, error):
    (tmp_path / "odd.py").write_text(PLUGIN)
    path = write(tmp_path / "t.jsonl", {"problem": "p", "text": "a\n\nb"}, {"problem": "p", "text": "good"})
    _, rows = score(path, scorer=f"{tmp_path / 'odd.py'}:Odd", scorer_args={"kind": kind})
    assert [row["line"] for row in rows] == ([] if kind == "lost" else [2])
    assert read("out.rejected.jsonl")[0]["error"].startswith(error)


def test_verdicts_that_are_missing_are_null_and_counted(tmp_path, monkeypatch, capsys):
    (tmp_path / "odd.py").write_text(PLUGIN)
    path = write(tmp_path / "t.jsonl", {"problem": "p", "text": "a\n\nb"}, {"problem": "p", "steps": ["", "good"]})
    common = (path, "--scorer", f"{tmp_path / 'odd.py'}:Odd", "--out")
    code, out, err = command(monkeypatch, capsys, "score", *common, "one.jsonl", "--json")
    assert code == 0
    counts = json.loads(out)
    assert (counts["done"], counts["missing_verdicts"], counts["unrated"]) == (2, 2, 0)
    assert "the scorer gave no verdict 2 times (null), and none at all on 0 traces" in err
    one, two = read("one.jsonl")
    assert (one["step_rewards"], one["final"], one["final_missing"], one["total"]) == ([0.5, None], None, True, 1.0)
    assert (two["step_rewards"], two["total"], "final_missing" in two) == ([None, 0.5], 1.0, False)
    code, out, _ = command(
        monkeypatch, capsys, "score", path, "--scorer", f"{tmp_path / 'odd.py'}:maybe", "--json", "--out", "b"
    )
    assert (json.loads(out)["unrated"], json.loads(out)["missing_verdicts"]) == (1, 1)
    assert [(row["step_rewards"], row["final"], row["total"]) for row in read("b")] == [([], None, None), ([], 0.25, 0.25)]
    _, shown, _ = command(monkeypatch, capsys, "score", path, "--scorer", f"{tmp_path / 'odd.py'}:maybe", "--show")
    assert "no verdict" in shown
