"""Whole runs on the bundled models: the run folder, resuming, determinism, failures."""

from __future__ import annotations

import json
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import tts
from tests.killing import run_killed
from tts.data.records import Record
from tts.data.store import RunStore
from tts.runs.progress import Progress
from tts.types import Candidate, Result, Strategy

SMALL = {"limit": 12, "n": 4}


def rows(folder) -> list[str]:
    return sorted(Path(folder, "results.jsonl").read_text().splitlines())


@pytest.fixture(scope="module")
def loaded(engine, prm):
    return {"engine_instance": engine, "scorer_instance": prm}


def test_a_run_adds_up(loaded):
    summary = tts.run("bon", out="r", **SMALL, **loaded)
    records = RunStore.open(Path("r")).records()
    assert len(records) == summary.problems == summary.graded == 12
    assert summary.accuracy.value == pytest.approx(sum(r.correct for r in records) / 12)
    assert summary.pass_at_1.value == pytest.approx(sum(a.correct for r in records for a in r.candidates) / 48)
    assert summary.usage.generated == sum(sum(a.tokens) for r in records for a in r.candidates)
    assert summary.pass_at_1.value <= summary.pass_at_n.value
    assert summary.accuracy.low <= summary.accuracy.value <= summary.accuracy.high
    assert [p.k for p in summary.curve] == [1, 2, 4]
    assert summary.curve[-1].strategy == summary.accuracy
    assert summary.curve[0].strategy.value == pytest.approx(summary.pass_at_1.value)
    assert json.loads(Path("r/summary.json").read_text()) == json.loads(json.dumps(summary.to_json()))


def test_rows_hold_every_candidate_with_its_steps_and_rewards(loaded):
    tts.run("bon", out="r", limit=3, n=4, **loaded)
    for record in RunStore.open(Path("r")).records():
        assert len(record.candidates) == 4
        scores = [a.score for a in record.candidates]
        assert scores[record.choice] == max(scores)
        assert record.candidates[record.choice].correct == record.correct
        for attempt in record.candidates:
            trajectory = tts.trajectory.parse(attempt.text)
            assert len(attempt.rewards) == len(trajectory.thinking) + len(trajectory.response)
            assert attempt.score == pytest.approx(sum(attempt.rewards) / len(attempt.rewards) + attempt.final)
            assert len(attempt.steps) == len(attempt.tokens)


@pytest.mark.parametrize(
    "strategy", ["bon", *(pytest.param(name, marks=pytest.mark.slow) for name in ("weighted", "majority"))]
)
def test_results_do_not_depend_on_concurrency(loaded, strategy):
    for concurrency in (1, 8, 64):
        tts.run(strategy, out=f"c{concurrency}", concurrency=concurrency, **SMALL, **loaded)
    assert rows("c1") == rows("c8") == rows("c64")


def test_another_seed_gives_other_samples(loaded):
    tts.run("bon", out="a", limit=3, n=2, **loaded)
    tts.run("bon", out="b", limit=3, n=2, seed=1, **loaded)
    assert rows("a") != rows("b")


def test_majority_of_the_table_is_what_the_majority_strategy_gets(loaded):
    bon = tts.run("bon", out="bon", limit=24, n=8, **loaded)
    majority = tts.run("majority", out="majority", limit=24, n=8, **loaded)
    assert bon.majority == majority.accuracy


def test_greedy_single(loaded):
    summary = tts.run("single", temperature=0.0, limit=4, out="g", **loaded)
    assert (summary.n, summary.curve, summary.usage.scored) == (1, (), 0)


def comparable(summary):
    """A summary without what may differ between equal runs: times, the folder, and what happened to be cached."""
    return replace(summary, seconds=None, run="", usage=replace(summary.usage, cached=0), flops=None)


@pytest.mark.slow
def test_kill_9_and_resume_ends_like_an_undisturbed_run(loaded):
    command = ("run", "--limit", "24", "--n", "4", "--concurrency", "4", "--out", "killed")
    run_killed("tts.data.store:RunStore.append", 5, *command)
    results = Path("killed/results.jsonl")
    before = results.read_text().splitlines()
    assert len(before) == 5
    with results.open("a") as file:
        file.write('{"id": "arith-9", "problem": "torn in the mid')
    resumed = tts.run(resume="killed", **loaded)
    undisturbed = tts.run("bon", limit=24, n=4, out="whole", **loaded)
    assert rows("killed") == rows("whole")
    assert set(before) <= set(rows("killed"))
    assert comparable(resumed) == comparable(undisturbed)
    assert resumed.seconds.total > 0


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_like_an_undisturbed_one(loaded):
    settings = ["--limit", "60", "--n", "4", "--concurrency", "3"]
    rng, kept, kills = random.Random(0), 0, 0
    while kills < 20:
        begun = Path("killed/run.json").exists()
        command = [
            sys.executable,
            "-m",
            "tts.cli",
            "run",
            *(["--resume", "killed"] if begun else [*settings, "--out", "killed"]),
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        results = Path("killed/results.jsonl")
        more = rng.choice((0, 0, 1, 3))  # rows to wait for; without any it dies while it starts
        while process.poll() is None and (
            (len(results.read_text().splitlines()) if results.exists() else 0) < kept + more or not more
        ):
            time.sleep(0.01)
            if not more and rng.random() < 0.02:
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        now = len(results.read_text().split("\n")) - 1 if results.exists() else 0
        assert now >= kept, "a finished problem was lost"
        kept = now
    tts.run(**({"resume": "killed"} if Path("killed/run.json").exists() else {"limit": 60, "n": 4, "out": "killed"}), **loaded)
    tts.run("bon", limit=60, n=4, out="whole", **loaded)
    assert rows("killed") == rows("whole")


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_loses_nothing(loaded):
    limit = 20_000  # bytes per file, which has the effect of a full disk

    def no_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "tts.cli", "run", "--limit", "30", "--n", "4", "--concurrency", "2", "--out", "full"]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=no_room)
    assert done.returncode == 2
    assert "cannot write to full" in done.stderr
    assert "--resume full" in done.stderr
    assert "Traceback" not in done.stderr
    kept = Path("full/results.jsonl").read_text().split("\n")[:-1]
    assert 0 < len(kept) < 30
    tts.run(resume="full", **loaded)
    tts.run("bon", limit=30, n=4, out="whole", **loaded)
    assert rows("full") == rows("whole")
    assert set(kept) <= set(rows("full"))


def test_resuming_a_finished_run_solves_nothing(loaded):
    tts.run("bon", out="r", **SMALL, **loaded)
    first = rows("r")
    progress = Progress()
    tts.run(resume="r", progress=progress, **loaded)
    assert rows("r") == first
    assert (progress.resumed, progress.generated) == (12, 0)


@dataclass(frozen=True)
class Fragile(Strategy):
    """Fails on some problems until it is fixed."""

    uses_scorer = False

    async def solve(self, problem, generator, scorer):
        if problem.id.endswith("1") and not Path("fixed").exists():
            raise RuntimeError(f"cannot solve {problem.id}")
        return Result(await generator.finish(Candidate(problem)))


def test_a_run_that_cannot_be_summarized_loses_nothing(engine):
    mine = """
from tts.strategies.majority import Majority

class Mine(Majority):
    counts_votes = False

    def rank(self, rewards, groups):
        if len(groups) < self.n:
            raise ZeroDivisionError("too few")
        return super().rank(rewards, groups)
"""
    Path("mine.py").write_text(mine)
    with pytest.raises(tts.InputError, match=r"kept in r, but cannot .*: ZeroDivisionError: too few.*tts run --resume r"):
        tts.run("mine.py:Mine", n=4, limit=3, out="r", engine_instance=engine)
    kept = rows("r")
    assert len(kept) == 3
    assert not Path("r/summary.json").exists()
    Path("mine.py").write_text(mine.replace("< self.n", "< 0"))
    summary = tts.run(resume="r", accept_changes=True, engine_instance=engine)
    assert (summary.graded, rows("r")) == (3, kept)
    assert summary.curve[-1].strategy == summary.accuracy


def test_a_failed_problem_is_a_row_and_is_tried_again_on_resume(loaded):
    summary = tts.run(Fragile(), out="r", limit=12, **loaded)
    failed = [r for r in RunStore.open(Path("r")).records() if r.error]
    assert (summary.failed, len(failed), summary.problems, summary.graded) == (2, 2, 12, 10)
    assert failed[0].error.startswith("RuntimeError: cannot solve arith-1")
    Path("fixed").touch()
    again = tts.run(Fragile(), resume="r", **loaded)
    assert (again.failed, again.graded) == (0, 12)
    assert len(rows("r")) == 12


def test_records_survive_a_round_trip_through_json(loaded):
    tts.run("bon", out="r", limit=2, n=2, **loaded)
    for record in RunStore.open(Path("r")).records():
        assert Record.from_json(record.to_json()) == record


def test_a_problem_with_half_a_surrogate_pair_is_kept(loaded):
    Path("odd.jsonl").write_text(
        '{"problem": "caf\\u00e9 \\ud800", "answer": "1"}\n{"problem": "\\u2028 1+1?", "answer": "2"}\n'
    )
    tts.run("single", benchmark="odd.jsonl", max_tokens=5, out="r", **loaded)
    assert len(RunStore.open(Path("r")).records()) == 2


def test_problems_without_an_answer_are_solved_but_not_graded(loaded):
    Path("mine.jsonl").write_text(
        '{"problem": "Start with 1.\\n1) add 2\\nWhat is the last digit?"}\n{"problem": "x", "answer": 3}\n'
    )
    summary = tts.run("bon", benchmark="mine.jsonl", n=2, max_tokens=60, out="r", **loaded)
    assert (summary.problems, summary.graded) == (2, 1)
    assert [r.correct is None for r in sorted(RunStore.open(Path("r")).records(), key=lambda r: r.id)] == [True, False]


def test_truncated_candidates_are_counted(loaded):
    summary = tts.run("bon", limit=2, n=3, max_tokens=10, out="r", **loaded)
    assert summary.truncated == 6
    assert summary.usage.generated == 60


def test_it_runs_inside_an_event_loop_as_in_a_notebook(loaded):
    import asyncio

    async def notebook():
        return tts.run("bon", limit=2, n=2, out="r", **loaded)

    assert asyncio.run(notebook()).problems == 2


@pytest.mark.parametrize("keyword", ["concurrency", "limit", "max_tokens"])
def test_numbers_below_one_are_refused(keyword, loaded):
    with pytest.raises(tts.InputError, match=f"--{keyword.replace('_', '-')} is 0; it should be a whole number, at least 1"):
        tts.run("bon", **{keyword: 0}, **loaded)
    assert not Path("runs").exists()
