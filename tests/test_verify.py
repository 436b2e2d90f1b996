"""`tts verify`: an untouched run verifies, whatever drew it; an edit of a row, of the summary or of the data is found."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import tts
from tts.cli import main
from tts.errors import InputError
from tts.evals.agreement import changes_found, first_difference
from tts.runs.verify import verify

LIMIT = 10


@pytest.fixture(scope="module")
def loaded(engine, prm):
    return {"engine_instance": engine, "scorer_instance": prm}


@pytest.fixture(scope="module")
def finished(loaded, tmp_path_factory):
    """A run of best-of-4, which tests copy before they edit it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    tts.run("bon", limit=LIMIT, n=4, out=folder, **loaded)
    return folder


@pytest.fixture
def run(finished):
    shutil.copytree(finished, "run")
    return Path("run")


def edit(run, change, which=3):
    """Apply `change` to the JSON object of one row; return its id."""
    lines = (run / "results.jsonl").read_text().splitlines()
    row = json.loads(lines[which])
    change(row)
    lines[which] = json.dumps(row, ensure_ascii=False)
    (run / "results.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return row["id"]


class Inexact:
    """An engine whose answers vary from call to call, as those of a server may."""

    exact = False

    def __init__(self, engine, seed=1):
        self._engine, self._rng = engine, random.Random(seed)

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def for_problem(self, problem):
        return self

    async def generate(self, prefix, n, sampling):
        return await self._engine.generate(prefix, n, replace(sampling, seed=self._rng.randrange(2**60)))


def test_an_untouched_run_is_verified_byte_for_byte(run, loaded):
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    found = verify(run, share=0.4, seed=5, **loaded)
    assert found.verified
    assert (found.method, found.rows, found.checked, found.identical, found.summary) == ("bytes", LIMIT, 4, 4, True)
    assert found.warnings == ()
    assert {file.name: file.read_bytes() for file in run.iterdir()} == before
    assert json.loads(json.dumps(found.to_json()))["verified"] is True


@pytest.mark.parametrize(
    ("strategy", "options"),
    [("beam", {"n": 4, "width": 2}), ("majority", {"n": 4, "repeat": 2}), ("adaptive", {"n": 8, "shuffle": True}),
     ("bon", {"n": 4, "budget": 150, "concurrency": 3})],
)  # fmt: skip
def test_a_row_is_redrawn_alone_whatever_was_solved_beside_it(loaded, strategy, options):
    tts.run(strategy, limit=6, out="r", **options, **loaded)
    for seed in range(2):
        found = verify("r", count=1, seed=seed, **loaded)
        assert found.verified, found.differences
        assert (found.method, found.checked) == ("bytes", 1)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("candidates[1].rewards[0]", lambda row: row["candidates"][1]["rewards"].__setitem__(0, 0.123)),
        ("candidates[2].answer", lambda row: row["candidates"][2].update(answer="77")),
        ("candidates[0].steps[0]", lambda row: row["candidates"][0]["steps"].__setitem__(0, "<think>\nno\n\n")),
        ("correct", lambda row: row.update(correct=not row["correct"])),
        ("problem", lambda row: row.update(problem="What is 1 + 1?")),
        ("answer", lambda row: row.update(answer="77")),
        ("usage.generated", lambda row: row["usage"].update(generated=1)),
        ("note", lambda row: row.update(note="added")),
    ],
)
def test_an_edited_row_is_found(run, loaded, field, change):
    name = edit(run, change)
    found = verify(run, share=1, **loaded)
    assert not found.verified
    assert [d.field for d in found.differences if d.where == name] == [field]
    assert found.identical == LIMIT - 1


def test_an_edited_row_is_found_by_its_checksum_though_it_was_not_chosen(run, loaded):
    rewards = iter([0.123, 0.321])
    names = {edit(run, lambda row: row["candidates"][1]["rewards"].__setitem__(0, next(rewards)), which) for which in (3, 5)}
    for seed in range(3):
        found = verify(run, count=1, seed=seed, method="statistics", **loaded)
        assert {d.where for d in found.differences} >= names
    timings = run / "timings.jsonl"
    rows = [json.loads(line) for line in timings.read_text().splitlines()]
    timings.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "crc"}) + "\n" for row in rows))
    found = verify(run, count=1, seed=0, method="statistics", **loaded)  # a run of an early version
    assert not {d.where for d in found.differences} & names


def test_bytes_are_compared_not_only_values(run, loaded):
    lines = (run / "results.jsonl").read_text().splitlines()
    lines[0] = lines[0].replace('"candidates": [', '"candidates":[', 1)
    (run / "results.jsonl").write_text("\n".join(lines) + "\n")
    found = verify(run, share=1, **loaded)
    assert [d.where for d in found.differences] == [json.loads(lines[0])["id"]]


def test_rows_that_are_missing_doubled_or_foreign_are_found_without_redrawing_them(run, loaded):
    path = run / "results.jsonl"
    first, second, third, *rest = path.read_text().splitlines(keepends=True)
    foreign = third.replace(json.loads(third)["id"], "arith-999", 1)
    path.write_text("".join([first, second, second, foreign, *rest]))
    found = verify(run, count=1, **loaded)
    places = {d.where for d in found.differences}
    assert {json.loads(second)["id"], "arith-999", json.loads(third)["id"]} <= places


@pytest.mark.parametrize("edited", ["accuracy", "curve", "usage", "failed"])
def test_an_edited_summary_is_found(run, loaded, edited):
    summary = json.loads((run / "summary.json").read_text())
    match summary[edited]:
        case list() as points:
            points[0]["accuracy"] += 0.01
        case dict() as usage:
            usage["generated"] -= 1
        case number:
            summary[edited] = number + 0.01
    (run / "summary.json").write_text(json.dumps(summary))
    found = verify(run, count=1, **loaded)
    assert not found.verified
    assert found.summary is False
    assert found.differences[0].where == "summary.json"
    assert found.differences[0].field.startswith(edited)


def test_changed_data_are_found(loaded):
    rows = [
        {"id": str(i), "problem": f"Start with {i}.\n1) add 4\nWhat is the last digit?", "answer": str(i + 4)} for i in range(4)
    ]
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tts.run("bon", n=2, benchmark="data.jsonl", out="r", **loaded)
    assert verify("r", share=1, **loaded).verified
    rows[2]["answer"] = "9"
    Path("elsewhere.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = verify("r", share=1, benchmark="elsewhere.jsonl", **loaded)
    assert ("2", "answer", "6", "9") in found.differences


def test_an_inexact_engine_is_compared_by_statistics(finished, run, engine, prm):
    found = verify(run, share=1, engine_instance=Inexact(engine), scorer_instance=prm)
    assert (found.method, found.different, found.checked) == ("statistics", 0, LIMIT)
    assert found.verified
    assert {c.name for c in found.compared} >= {"accuracy", "pass@1", "tokens generated", "reward"}
    assert all(0 < c.p <= 1 for c in found.compared)
    # what the engine did not draw is found all the same: grades follow from texts
    name = edit(run, lambda row: row["candidates"][0].update(answer="77", correct=True))
    found = verify(run, share=1, engine_instance=Inexact(engine), scorer_instance=prm)
    assert (name, "candidates[0].answer") in [d[:2] for d in found.differences]


@pytest.mark.slow
def test_statistics_find_a_run_with_other_settings(run, engine, prm):
    """A run that claims temperature 1 and was drawn at 0.1: the same texts again and again, so other lengths and answers."""
    tts.run("bon", limit=40, n=4, temperature=0.2, out="cold", engine_instance=engine, scorer_instance=prm)
    claims = json.loads(Path("cold/run.json").read_text())
    claims["settings"]["temperature"] = 2.0
    Path("cold/run.json").write_text(json.dumps(claims))
    found = verify("cold", share=1, engine_instance=Inexact(engine), scorer_instance=prm)
    assert found.suspicious
    assert not found.verified


def test_an_inexact_engine_that_repeats_every_row_counts_as_bytes(run, engine, prm, monkeypatch):
    monkeypatch.setattr(engine, "exact", False)
    found = verify(run, share=1, engine_instance=engine, scorer_instance=prm)
    assert (found.method, found.identical) == ("bytes", LIMIT)
    found = verify(run, share=1, method="statistics", engine_instance=engine, scorer_instance=prm)
    assert found.method == "statistics"
    assert {c.p for c in found.compared} == {1.0}
    assert {c.detects for c in found.compared} == {None}


def test_runs_under_a_run_budget_are_only_graded_again(loaded):
    tts.run("bon", limit=4, n=4, run_budget=400, out="r", **loaded)
    found = verify("r", share=1, **loaded)
    assert (found.method, found.identical) == ("grades", 0)
    assert "--run-budget" in found.reason
    name = edit(Path("r"), lambda row: row["candidates"][0].update(correct=not row["candidates"][0]["correct"]), which=0)
    assert (name, "candidates[0].correct") in [d[:2] for d in verify("r", share=1, **loaded).differences]


def test_what_is_not_as_it_was_is_a_warning(run, loaded):
    facts = json.loads((run / "run.json").read_text())
    facts["versions"]["torch"] = "0.1"
    (run / "run.json").write_text(json.dumps(facts))
    found = verify(run, count=1, **loaded)
    assert found.verified
    assert any("torch" in warning and "0.1" in warning for warning in found.warnings)


def test_a_policy_that_is_not_there_is_bad_input(run, loaded):
    with pytest.raises(InputError):
        verify(run, model="nowhere/at-all/of-three")
    with pytest.raises(InputError, match="not a run folder"):
        verify("nowhere", **loaded)


def test_the_power_is_that_of_drawing_rows_without_replacement():
    rng, rows, checked = random.Random(0), 60, 6
    changed = changes_found(rows, checked)

    def share_found(changed):
        return sum(min(rng.sample(range(rows), checked)) < changed for _ in range(20_000)) / 20_000

    assert share_found(changed - 1) < 0.955
    assert share_found(changed) > 0.945
    assert changes_found(60, 60) == 1
    assert changes_found(0, 0) is None


def test_the_first_difference_of_two_values():
    a = {"x": [1, {"y": "z"}], "n": 0.1}
    assert first_difference(a, json.loads(json.dumps(a))) is None
    assert first_difference(a, {**a, "x": [1, {"y": "w"}]}) == ("x[1].y", "z", "w")
    assert first_difference(a, {**a, "n": 0.1 + 1e-12}) is None
    assert first_difference(a, {**a, "n": 0.1 + 1e-12}, tolerance=0) == ("n", 0.1, 0.1 + 1e-12)
    assert first_difference([1, 2], [1]) == ("", [1, 2], [1])
    assert first_difference({"a": None}, {}) is None
    assert first_difference({"a": True}, {"a": 1}) == ("a", True, 1)


def test_the_command_reports_and_ends_with_the_outcome(run, capsys):
    assert main(["verify", "run", "--share", "20%", "--seed", "1"]) == 0
    shown = capsys.readouterr().out
    assert "2 of 10 rows, chosen by --seed 1" in shown
    assert "verified: nothing differs" in shown
    name = edit(run, lambda row: row["candidates"][0].update(score=9.0))
    assert main(["verify", "run", "--share", "1", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["verified"] is False
    assert [(d["where"], d["field"], d["recorded"]) for d in found["differences"]] == [(name, "candidates[0].score", 9.0)]
    assert main(["verify", "run", "--share", "1"]) == 1
    assert name in capsys.readouterr().out
    for words in (["verify", "nowhere"], ["verify", "run", "--share", "200%"], ["verify"]):
        assert main(words) == 2
