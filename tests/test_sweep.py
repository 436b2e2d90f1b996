from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import mean

import pytest

import tts
from tts.cli import main
from tts.errors import InputError
from tts.evals.cost import Shape, flops_of, shape_of
from tts.evals.intervals import estimate, estimate_difference
from tts.evals.summary import at_k
from tts.strategies.majority import Majority
from tts.strategies.weighted import Weighted
from tts.types import Preference, Reward, Usage


@pytest.fixture(scope="module")
def loaded(engine, prm):
    return {"engine_instance": engine, "scorer_instance": prm}


@pytest.fixture(scope="module")
def swept(loaded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "s"
    return tts.sweep(["bon", "weighted", "majority", "beam"], [1, 2, 4, 8], seeds=2, limit=8, width=2, out=folder, **loaded)


def value(sweep, strategy, n):
    [row] = [row for row in sweep.rows if (row.strategy, row.n) == (strategy, n)]
    return row


def test_sampling_strategies_share_one_pool_of_the_largest_n(swept):
    pools = {row.runs for row in swept.rows if row.strategy != "beam"}
    assert len(pools) == 1
    assert len({row.runs for row in swept.rows if row.strategy == "beam"}) == 3
    runs = [tts.load_run(folder) for folder in next(iter(pools))]
    generated = mean(record.usage.generated for run in runs for record in run.records)
    assert value(swept, "bon", 8).generated == pytest.approx(generated)
    assert value(swept, "bon", 2).generated == pytest.approx(generated / 4)
    assert value(swept, "majority", 8).scored == 0


def test_the_largest_n_is_what_a_run_would_have_found(swept):
    for strategy in ("bon", "majority"):
        row = value(swept, strategy, 8)
        runs = [tts.load_run(folder) for folder in row.runs]
        assert row.error == 0
        if strategy == "bon":
            assert row.accuracy.value == pytest.approx(mean(record.correct for run in runs for record in run.records))


def test_smaller_n_are_means_over_all_subsets_of_the_pool(swept):
    row = value(swept, "bon", 2)
    records = [record for folder in row.runs for record in tts.load_run(folder).records]

    def best(record, subset):
        candidates = record.candidates
        chosen = max(Preference.of(candidates[i].finish, candidates[i].score, i) for i in subset)
        return bool(candidates[-chosen.place].correct)

    brute = mean(mean(best(record, pair) for pair in combinations(range(8), 2)) for record in records)
    assert row.accuracy.value == pytest.approx(brute)


def test_weighted_votes_are_sampled_with_their_error_where_there_are_too_many_subsets(swept):
    assert value(swept, "weighted", 2).error == 0  # 28 subsets
    row = value(swept, "weighted", 4)  # 70
    assert 0 < row.error < 0.05
    records = [record for folder in row.runs for record in tts.load_run(folder).records]
    rewarded = lambda attempt: Reward(attempt.rewards, attempt.final)  # noqa: E731
    exact = []
    for record in records:
        groups, rewards = [a.group for a in record.candidates], [rewarded(a) for a in record.candidates]
        values = []
        for subset in combinations(range(8), 4):
            scores = Weighted().rank([rewards[i] for i in subset], [groups[i] for i in subset])
            values.append(record.candidates[subset[scores.index(max(scores))]].correct)
        exact.append(mean(values))
    assert row.accuracy.value == pytest.approx(mean(exact), abs=4 * row.error)


def test_sizes_and_strategies_have_paired_differences(swept):
    found = {(first, second): (difference, problems) for first, second, difference, problems in swept.differences}
    assert len(found) == (4 * 3 + 2) + (3 + 3 * 6)  # between sizes, of pass@N too; between 3 strategies at 1, 4 at 2, 4 and 8
    for ((one, n), (other, m)), (difference, problems) in found.items():
        assert (one == other) != (n == m)
        assert difference.value == pytest.approx(value(swept, other, m).accuracy.value - value(swept, one, n).accuracy.value)
        assert difference.low < difference.value < difference.high
        assert problems == 8
    by_problem = []
    for name in ("bon", "beam"):
        runs = [tts.load_run(folder).records for folder in value(swept, name, 8).runs]
        rows = [record for run in runs for record in run]
        by_problem.append({one.id: mean(r.correct for r in rows if r.id == one.id) for one in runs[0]})
    bon, beam = ([values[problem] for problem in by_problem[0]] for values in by_problem)
    assert found[("beam", 8), ("bon", 8)][0] == estimate_difference(beam, bon)


def test_strategies_whose_scorer_compares_candidates_are_run_for_each_size(engine, tmp_path):
    options = {"limit": 3, "max_tokens": 200, "scorer": "agreement", "engine_instance": engine}
    swept = tts.sweep(["bon", "majority"], [1, 2, 4], out=tmp_path / "s", **options)
    runs = {value(swept, "bon", n).runs for n in (1, 2, 4)}
    assert len(runs) == 3
    assert {len(record.candidates) for record in tts.load_run(value(swept, "bon", 2).runs[0]).records} == {2}
    assert value(swept, "majority", 2).runs == value(swept, "majority", 4).runs
    run = tts.run("bon", n=4, out=tmp_path / "r", **options)
    assert [point.k for point in run.curve] == [1, 4]
    assert run.curve[-1].strategy == run.accuracy == value(swept, "bon", 4).accuracy
    assert "compares candidates" in run.to_json()["omitted"]


def test_sizes_that_a_strategy_cannot_have_are_skipped_with_the_reason(swept):
    assert [reason.partition(":")[0] for reason in swept.skipped] == ["beam at n = 1"]


def test_a_sweep_continues_where_it_was_stopped(swept, loaded, monkeypatch):
    def refuse(*_):
        raise AssertionError("generated again")

    monkeypatch.setattr(loaded["engine_instance"], "generate", refuse)
    again = tts.sweep(
        ["bon", "weighted", "majority", "beam"], [1, 2, 4, 8], seeds=2, limit=8, width=2, out=swept.folder, **loaded
    )
    assert again.rows == swept.rows
    with pytest.raises(InputError, match=r"was started with --limit 8, not 9"):
        tts.sweep(["bon"], [8], limit=9, out=swept.folder, **loaded)


def test_the_numbers_are_kept_as_json_and_csv(swept, tmp_path):
    folder = tmp_path.__class__(swept.folder)
    kept = json.loads((folder / "sweep.json").read_text())
    rows = list(csv.DictReader(io.StringIO((folder / "sweep.csv").read_text())))
    differences = list(csv.DictReader(io.StringIO((folder / "differences.csv").read_text())))
    assert len(differences) == len(kept["differences"]) == len(swept.differences)
    for difference, one, other in zip(swept.differences, kept["differences"], differences, strict=True):
        assert one == json.loads(json.dumps(difference.to_json()))
        assert (other["strategy"], int(other["n"]), float(other["low"])) == (*difference.second, difference.difference.low)
    assert len(rows) == len(kept["rows"]) == len(swept.rows)
    for row, one, other in zip(swept.rows, kept["rows"], rows, strict=True):
        assert (one["strategy"], one["n"], one["accuracy"]) == (row.strategy, row.n, row.accuracy.value)
        assert (other["strategy"], float(other["accuracy"])) == (row.strategy, row.accuracy.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n", "1,two"], "--n is '1,two'; it should be sizes"),
        (["--n", "0,2"], "sizes of at least 1"),
        (["--strategy", "bon,beem"], "no strategy named 'beem'. Did you mean 'beam'?"),
        (["--strategy", "bon,beam", "--wings", "2"], "tts sweep has no option --wings"),
        (["--limit", "0"], "--limit is '0'; it should be a whole number, at least 1"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["tts", "sweep", *arguments])
    with pytest.raises(SystemExit) as ended:
        sys.exit(main(sys.argv[1:]))
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


# --- comparing


def test_a_comparison_pairs_problems(swept):
    bon, beam = value(swept, "bon", 8).runs[0], value(swept, "beam", 8).runs[0]
    found = tts.compare(bon, beam)
    right = [{r.id: r.correct for r in tts.load_run(folder).records} for folder in (bon, beam)]
    differences = [right[1][problem] - right[0][problem] for problem in right[0]]
    assert found.difference.value == pytest.approx(mean(differences))
    assert found.difference.low <= found.difference.value <= found.difference.high
    assert (found.only_second, found.only_first) == (differences.count(1), differences.count(-1))
    assert found.settings["strategy"] == ("bon", "beam")
    same = tts.compare(bon, bon)
    assert (same.difference.value, same.p, same.settings) == (0, 1, {})
    assert same.difference.low < 0 < same.difference.high
    assert found.to_json()["verdict"] == found.verdict


def test_each_problem_that_is_not_compared_counts_once(swept, tmp_path):
    whole, part = Path(value(swept, "bon", 8).runs[0]), tmp_path / "part"
    shutil.copytree(whole, part)
    first, _, *others = tts.load_run(whole).records
    failed = replace(first, candidates=(), choice=None, correct=None, error="ValueError: x")
    (part / "results.jsonl").write_text("".join(record.to_json() + "\n" for record in (failed, *others)))  # one is missing
    found = tts.compare(whole, part)
    assert (found.problems, found.left_out) == (len(others), 2)


def test_what_is_not_a_run_is_not_compared(tmp_path):
    with pytest.raises(InputError, match=r"is not a run folder .*; give a folder created by tts run"):
        tts.compare(tmp_path, tmp_path)


def test_runs_over_other_problems_are_not_compared(loaded, swept, tmp_path):
    (tmp_path / "q.jsonl").write_text(
        '{"problem": "1+1", "answer": "2", "id": "q"}\n{"problem": "x", "answer": "2", "id": "arith-1"}\n'
    )
    tts.run("single", benchmark=str(tmp_path / "q.jsonl"), limit=1, out=tmp_path / "a", **loaded)
    with pytest.raises(InputError, match="no graded problem in common"):
        tts.compare(tmp_path / "a", value(swept, "bon", 8).runs[0])
    tts.run("single", benchmark=str(tmp_path / "q.jsonl"), out=tmp_path / "b", **loaded)
    with pytest.raises(InputError, match="the problem 'arith-1' is not the same"):
        tts.compare(tmp_path / "b", value(swept, "bon", 8).runs[0])


def test_repetitions_of_a_problem_are_one_problem_but_other_ids_with_a_number_are_not(loaded, tmp_path):
    rows = [{"id": f"q#{i}", "problem": f"Start with {i}.\n1) add 1\nWhat is the last digit?", "answer": i + 1} for i in (2, 3)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tts.run("single", benchmark=str(tmp_path / "q.jsonl"), out=tmp_path / "numbered", **loaded)
    assert tts.compare(tmp_path / "numbered", tmp_path / "numbered").problems == 2
    tts.run("single", limit=3, repeat=4, out=tmp_path / "repeated", **loaded)
    found = tts.compare(tmp_path / "repeated", tmp_path / "repeated")
    assert (found.problems, found.left_out) == (3, 0)
    swept = tts.sweep(["bon"], [1, 2], limit=3, repeat=4, out=tmp_path / "swept", **loaded)
    [one, _] = [row for row in swept.rows if row.strategy == "bon"]
    records = tts.load_run(one.runs[0]).records
    by_problem = {}
    for record in records:
        by_problem.setdefault(record.id.partition("#")[0], []).append(mean(bool(a.correct) for a in record.candidates))
    assert len(by_problem) == 3
    assert one.accuracy == estimate([mean(values) for values in by_problem.values()])


# --- reading back, and cost


def test_a_run_is_read_back_as_objects_and_as_a_frame(swept):
    pandas = pytest.importorskip("pandas")
    run = tts.load_run(value(swept, "bon", 8).runs[0])
    frame = run.frame()
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) == sum(len(record.candidates) for record in run.records)
    chosen = frame[frame.chosen].set_index("problem").correct
    assert dict(chosen) == {record.id: record.correct for record in run.records}
    with pytest.raises(InputError, match="expected pandas or polars"):
        run.frame("excel")


@pytest.mark.slow
def test_parameters_and_flops_are_those_of_the_model(prm, engine):
    counted = sum(p.numel() for name, p in engine.model.named_parameters() if p.ndim == 2 and "embed" not in name)
    head = engine.model.config.vocab_size * engine.model.config.hidden_size  # tied to the embeddings
    assert shape_of(engine.model.config.to_dict()).parameters == counted + head
    shape = Shape(parameters=1000, layers=2, width=8)
    assert shape.flops(10, context=5) == 2 * 1000 * 10 + 4 * 2 * 8 * 5 * 10
    assert flops_of(Usage(generated=10, calls=1), 0.0, "nobody/knows", None).generator is None


def test_a_strategy_that_counts_votes_is_exact_at_every_size(swept):
    class Counting(Weighted):
        counts_votes = True

    record = tts.load_run(value(swept, "bon", 8).runs[0]).records[0]
    [counted, voted] = [at_k(strategy, record, 4, lambda attempt: Reward(())) for strategy in (Counting(), Majority())]
    assert counted == voted
    assert counted.error == 0


def test_at_the_size_of_the_pool_the_strategy_itself_chooses(swept):
    row = value(swept, "weighted", 8)
    for folder in row.runs:
        for record in tts.load_run(folder).records:
            at = at_k(Weighted(n=8), record, 8, lambda attempt: Reward(attempt.rewards, attempt.final))
            assert at.value in (0, 1)


# --- tracking


@pytest.mark.slow
def test_a_run_is_logged_to_the_real_trackio(tmp_path, monkeypatch, capsys):
    pytest.importorskip("trackio", reason="trackio IS NOT INSTALLED HERE")
    code = subprocess.run(
        [sys.executable, "-m", "tts.cli", "run", "--limit", "3", "--n", "4", "--out", "r", "--log", "trackio", "--json"],
        capture_output=True, text=True, env={**os.environ, "TRACKIO_DIR": str(tmp_path / "logged")},
    )  # fmt: skip
    assert code.returncode == 0, code.stderr
    printed = json.loads(code.stdout)  # trackio's own output goes to standard error
    rows = sqlite3.connect(tmp_path / "logged" / "tts.db").execute("select metrics from metrics").fetchall()
    logged = [json.loads(row) for (row,) in rows]
    assert any(row.get("accuracy") == printed["accuracy"] for row in logged)
    assert [row["curve/n"] for row in logged if "curve/n" in row] == [1, 2, 4]


def test_an_unknown_service_is_refused_before_anything_is_loaded(monkeypatch, capsys):
    for service, message in (("tensorboard", "expected trackio or wandb"), ("wandb", "pip install wandb")):
        if service == "wandb" and importlib.util.find_spec("wandb"):
            continue
        monkeypatch.setattr(sys, "argv", ["tts", "run", "--log", service])
        with pytest.raises(SystemExit) as ended:
            sys.exit(main(sys.argv[1:]))
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
