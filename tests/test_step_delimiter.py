"""--step-delimiter from end to end: one rule for a run, its rows, its rewards, and every command that reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tts
from tests.scripted import ScriptedEngine, ScriptedScorer
from tts.cli import main
from tts.data.labelled import read_labelled
from tts.data.traces import BadRowError, parse_line
from tts.runs.score import score_file
from tts.runs.settings import RunSettings, ScoreSettings
from tts.train.label.labeller import label_file
from tts.train.settings import LabelSettings

LINES = "<think>\n1) 7*8=6\n2) 6*5=0\n</think>\nmultiply by 8 gives 6\nThe result is \\boxed{0}"
PROMPT = "Start with 7.\n1) multiply by 8\n2) multiply by 5\nWhat is the last digit?"
ENGINE = f"""
from tests.scripted import ScriptedEngine


class Lines(ScriptedEngine):
    def __init__(self, model):
        super().__init__(lambda *_: {LINES!r})
"""


@pytest.fixture(autouse=True)
def _problems():
    Path("problems.jsonl").write_text(json.dumps({"id": "p", "problem": PROMPT, "answer": "0"}) + "\n")


def solve(strategy="bon", **options):
    engine, scorer = ScriptedEngine(lambda *_: LINES), ScriptedScorer(lambda text: 0.5)
    return tts.run(
        strategy, n=2, engine_instance=engine, scorer_instance=scorer, benchmark="problems.jsonl", max_tokens=300, **options
    )


def rows(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def rewards_of(path, **options):
    lines: list[str] = []
    scorer = ScriptedScorer(lambda text: 0.5)
    score_file(ScoreSettings(traces=path, **options), write=lines.append, scorer_instance=scorer)
    return [json.loads(line) for line in lines]


def test_a_run_is_split_and_rated_by_its_delimiter_and_its_rows_say_so():
    solve(step_delimiter="\\n", out="line")
    solve(out="blank")
    for folder, steps in (("line", 4), ("blank", 2)):
        [row] = rows(f"{folder}/results.jsonl")
        assert [len(candidate["rewards"]) for candidate in row["candidates"]] == [steps] * 2
        assert tts.load_run(folder).records[0].candidates[0].text == LINES
        assert [len(scored["step_rewards"]) for scored in rewards_of(f"{folder}/results.jsonl")] == [steps] * 2
    [candidate, _] = rows("line/results.jsonl")[0]["candidates"]
    assert candidate["steps"] == LINES.splitlines(keepends=True)
    assert tts.load_run("line").settings["step_delimiter"] == "line"
    assert rows("line/results.jsonl")[0]["step_delimiter"] == "line"
    assert "step_delimiter" not in rows("blank/results.jsonl")[0]


def test_a_search_branches_at_the_delimiter():
    def rounds(**options):
        solve("beam", width=2, **options)
        [row] = rows(f"{options['out']}/results.jsonl")
        return 1 + max(branch["round"] for branch in row["tree"])

    assert rounds(out="blank") == 1
    assert rounds(out="line", step_delimiter="line") == 4
    assert rounds(out="own", think_delimiter="line") == 3  # of the thinking alone; the response is drawn in one go


def test_a_run_from_before_there_were_delimiters_resumes_with_blank_lines():
    solve("beam", width=2, out="old")
    begun = json.loads(Path("old/run.json").read_text())
    del begun["settings"]["step_delimiter"]
    begun["settings"]["options"] |= {"think_delimiter": "\n\n", "response_delimiter": "\n\n"}
    Path("old/run.json").write_text(json.dumps(begun))
    before = Path("old/results.jsonl").read_bytes()
    Path("old/results.jsonl").write_bytes(b"")
    engine, scorer = ScriptedEngine(lambda *_: LINES), ScriptedScorer(lambda text: 0.5)
    tts.run(resume="old", engine_instance=engine, scorer_instance=scorer)
    assert Path("old/results.jsonl").read_bytes() == before


def test_a_run_resumes_under_its_delimiter_alone():
    solve(out="r", step_delimiter="line")
    with pytest.raises(tts.errors.InputError, match="r was started with --step-delimiter line, not sentence"):
        tts.run(resume="r", step_delimiter="sentence")
    assert RunSettings(step_delimiter="reasonflux").step_delimiter == RunSettings().step_delimiter == "blank-line"


def test_a_trace_names_its_delimiter_and_an_option_overrides_it():
    Path("t.jsonl").write_text(
        "".join(
            json.dumps({"problem": PROMPT, "text": LINES, "answer": "0"} | more) + "\n"
            for more in ({}, {"step_delimiter": "line"}, {"steps": ["a\nb", "c"]})
        )
    )
    assert [len(row["step_rewards"]) for row in rewards_of("t.jsonl")] == [2, 4, 2]
    scored = rewards_of("t.jsonl", step_delimiter="line")
    assert [len(row["step_rewards"]) for row in scored] == [4, 4, 2]  # steps that are given stay as they are
    assert [row.get("step_delimiter") for row in scored] == ["line", "line", None]
    back = rewards_of("t.jsonl", step_delimiter="blank-line")
    assert [len(row["step_rewards"]) for row in back] == [2, 2, 2]
    Path("scored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scored))
    assert main(["select", "scored.jsonl", "--by", "response", "--out", "best.jsonl"]) == 0
    assert {len(parse_line(json.dumps(row), 1, {})[0].candidate.trajectory.steps) for row in rows("best.jsonl")} == {4, 2}


def test_labels_of_lines_are_read_as_labels_of_lines():
    row = {"problem": PROMPT, "text": LINES, "answer": "0"}
    Path("t.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"problem": f"{PROMPT} "}) + "\n")
    settings = LabelSettings(
        traces="t.jsonl", out="labelled.jsonl", quality="check", targets="quality", final="outcome", step_delimiter="line"
    )
    assert label_file(settings).done == 2
    for labelled in read_labelled(Path("labelled.jsonl")):
        assert labelled.steps == (1, 1, 1, 1)
        assert labelled.trace.candidate.trajectory.response == tuple(LINES.splitlines()[-2:])


@pytest.mark.parametrize("value", [3, "", ["line"]])
def test_a_trace_whose_delimiter_is_none_is_set_aside(value):
    with pytest.raises(BadRowError, match=r"'step_delimiter' is .*; expected what ends a step: blank-line, line, sentence"):
        parse_line(json.dumps({"problem": "?", "text": "a", "step_delimiter": value}), 1, {})


def test_a_run_whose_candidates_have_one_step_says_what_to_do(capsys):
    one = "1) 7*8=6\n2) 6*5=0\nThe result is \\boxed{0}"
    Path("mine.py").write_text(ENGINE.replace(repr(LINES), repr(one)))
    common = ["run", "--benchmark", "problems.jsonl", "--engine", "mine.py:Lines", "-n", "2", "--max-tokens", "300", "--json"]
    for more, found in (
        ([], True),
        (["--strategy", "beam", "--width", "2"], True),
        (["--step-delimiter", "line"], False),
        (["--strategy", "majority"], False),  # no step counts here
    ):
        assert main([*common, *more]) == 0
        out, err = capsys.readouterr()
        summary = json.loads(out)
        assert summary["candidates"] >= 1
        assert summary["one_step"] == (summary["candidates"] if found else 0)
        assert err.count("candidates have one step only") == err.count("--step-delimiter: line, sentence") == found


def test_steps_of_a_run_are_shown_as_they_were_rated(capsys):
    solve(out="r", step_delimiter="line")
    assert main(["show", "r", "p"]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["0.500", *["multiply", "by", "8", "gives", "6"]] in shown
    assert main(["report", "r", "--out", "r.html"]) == 0


def test_an_empty_delimiter_is_refused(capsys):
    assert main(["run", "--step-delimiter", ""]) == 2
    assert "a step delimiter must not be empty" in capsys.readouterr().err
