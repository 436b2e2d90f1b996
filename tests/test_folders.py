"""What is written to disk: torn files, one writer at a time, data and models that change, problems without ids."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import tts
from tests.scripted import ScriptedEngine
from tts.data.files import repair, writing
from tts.data.identity import content_of
from tts.data.lock import Lock, lock_of
from tts.data.store import RunStore
from tts.data.stream import FileSink, Rejected, rejected_of
from tts.evals.benchmarks import load_benchmark
from tts.grading.pool import Verdict
from tts.models import checkpoints, hashes
from tts.runs import runner
from tts.runs.settings import RunSettings, ScoreSettings
from tts.types import Candidate, Result, Strategy


@dataclass(frozen=True)
class Plain(Strategy):
    """Two samples for each problem, at once."""

    uses_scorer = False

    async def solve(self, problem, generator, scorer):
        return Result([(await generator.finish(Candidate(problem)))[0] for _ in range(2)])


class NoGrader:
    """Calls the first candidate right, without a process."""

    async def judge(self, candidates):
        return [Verdict("é", 0, i == 0) for i in range(len(candidates))]

    async def close(self):
        pass


@pytest.fixture
def solve(monkeypatch):
    """Solves 12 problems in an instant, with characters of several bytes."""
    Path("p.jsonl").write_text("".join(json.dumps({"problem": f"Größe {i}? ∑", "answer": "é"}) + "\n" for i in range(12)))
    monkeypatch.setattr(runner, "Grader", NoGrader)

    def solve(**settings):
        engine = ScriptedEngine(lambda prompt, seed: f"Lösung {seed % 9} für {prompt} 🙂\n\n\\boxed{{é}}")
        where = settings if "resume" in settings else {"benchmark": "p.jsonl", **settings}
        return tts.run(Plain(), engine_instance=engine, **where)

    return solve


def rows(folder) -> list[bytes]:
    return sorted(Path(folder, "results.jsonl").read_bytes().splitlines(keepends=True))


GARBAGE = (
    b"",
    b"\0" * 4096,
    b"\xff\xfe garbage",
    b'{"id": "x", "prob',
    b"\n\n",
    b"\0\0\n",
    "é".encode()[:1],
    b"[1, 2]\n",
    b"{}\n",
)


def damage(path: Path, rng: random.Random) -> None:
    """Cut a file, end it in garbage, overwrite something inside, or let an editor have been at it."""
    whole = path.read_bytes()
    match rng.randrange(5):
        case 0 | 1:
            path.write_bytes(whole[: rng.randrange(len(whole) + 1)] + rng.choice(GARBAGE))
        case 2:
            path.write_bytes(whole + rng.choice(GARBAGE))
        case 3:
            at, size = rng.randrange(len(whole)), rng.randrange(1, 300)
            path.write_bytes(whole[:at] + rng.choice((b"\0", b"\xff", b"\n")) * size + whole[at + size :])
        case 4:
            path.write_bytes(whole.replace(b"\n", b"\r\n")[: len(whole) - rng.randrange(3)])


@pytest.mark.slow
def test_200_damaged_run_folders_resume_to_the_undisturbed_rows(solve):
    """Bytes of a row's texts that were overwritten with others cannot be noticed, and NULs and \\xff are no JSON."""
    undisturbed = solve(out="whole")
    rng = random.Random(0)
    for attempt in range(200):
        shutil.rmtree("torn", ignore_errors=True)
        shutil.copytree("whole", "torn")
        Path("torn/summary.json").unlink()
        damage(Path("torn/results.jsonl"), rng)
        damage(Path("torn/timings.jsonl"), rng)
        summary = solve(resume="torn")
        assert rows("torn") == rows("whole"), attempt
        assert (summary.accuracy, summary.problems, summary.failed) == (undisturbed.accuracy, 12, 0)
        assert summary.usage.generated == undisturbed.usage.generated


@pytest.mark.parametrize(
    ("tear", "left", "damaged"),
    [
        (lambda whole: whole[:-1], 12, 0),  # only the line end is missing
        (lambda whole: whole + "{é".encode()[:-1], 12, 0),
        (lambda whole: whole[: whole.rindex("🙂".encode()) + 2], 11, 0),  # within a character
        (lambda whole: whole + b"\0" * 100, 12, 0),
        (lambda whole: b"\0" * 100 + whole, 12, 0),
        (lambda whole: whole.replace(b"\n", b"\r\n"), 12, 0),
        (lambda whole: whole.replace(b'"candidates"', b'"candidat', 1), 11, 1),
        (lambda whole: whole.replace(b"\n", b"\n]]]\n", 3), 12, 3),
        (lambda whole: whole + whole, 12, 0),  # as two writers leave it
        (lambda whole: whole + b"[" * 100_000 + b"\n", 12, 1),
        (lambda whole: b"", 0, 0),
    ],
)
def test_a_damaged_file_of_rows_keeps_what_is_sound(solve, tear, left, damaged):
    solve(out="r")
    results = Path("r/results.jsonl")
    before, whole = rows("r"), results.read_bytes()
    results.write_bytes(tear(whole))
    kept, found = RunStore.open(Path("r")).recover()
    assert (len(kept), found) == (left, damaged)
    assert rows("r") == [row for row in before if json.loads(row)["id"] in kept]
    progress = runner.Progress()
    solve(resume="r", progress=progress)
    assert (progress.resumed, progress.done, progress.damaged) == (left, 12, 0)
    assert rows("r") == before


def test_a_sound_file_is_not_rewritten_and_a_bad_end_is_cut_off_in_place(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n')
    inode = path.stat().st_ino
    assert repair(path, lambda line: True) == 0
    path.write_bytes(path.read_bytes() + b'{"a": 3}\n{"a"')
    assert repair(path, lambda line: json.loads(line)["a"] < 3) == 0
    assert (path.read_bytes(), path.stat().st_ino) == (b'{"a": 1}\n{"a": 2}\n', inode)
    assert repair(path, lambda line: json.loads(line)["a"] > 1) == 0
    assert path.read_bytes() == b'{"a": 2}\n'


def test_a_run_with_a_damaged_run_json_or_summary(solve):
    solve(out="r")
    before = Path("r/summary.json").read_text()
    Path("r/summary.json").write_text(before[:40])
    solve(resume="r")
    assert json.loads(Path("r/summary.json").read_text())["accuracy"] == json.loads(before)["accuracy"]
    for text in ("", '{"schema": 1, "sett', '{"schema": 1}', "\0" * 9):
        Path("r/run.json").write_text(text)
        with pytest.raises(tts.InputError, match=r"r/run\.json|layout version"):
            solve(resume="r")
    for file in Path("r").iterdir():
        file.unlink()
    Path("r/run.json.part").write_text('{"schema"')  # killed before run.json was there
    solve(out="r")
    assert not list(Path("r").glob("*.part"))


@pytest.mark.parametrize("seed", range(60))
def test_damaged_outputs_of_score_and_label_resume_to_the_same_rows(tmp_path, seed):
    out, rng = tmp_path / "o.jsonl", random.Random(seed)
    Path(tmp_path, "in.jsonl").write_text("{}\n")
    settings = ScoreSettings(traces=tmp_path / "in.jsonl", out=out)

    def write(*, resume):
        sink = FileSink.open(out, settings, resume=resume, command="tts score")
        for number in range(sink.first_line, 31):  # every third line is refused, others have up to three rows
            refused = [Rejected(number, "schlecht", "übel\n")] if number % 3 == 0 else []
            sink.add([{"id": f"ä{number}/{i}", "line": number} for i in range(number % 3 and number % 4)], refused)
        sink.close()

    write(resume=False)
    whole, refused = out.read_bytes(), rejected_of(out).read_bytes()
    damage(out, rng)
    if seed % 3 == 0:
        rejected_of(out).write_bytes(refused[: rng.randrange(len(refused))])
        out.write_bytes(whole[: rng.randrange(9)])  # rows are written after the lines that are rejected
    write(resume=True)
    assert out.read_bytes() == whole
    assert rejected_of(out).read_bytes() == refused


HOLD = """
import sys, time
from pathlib import Path
from tts.data.lock import Lock
lock = Lock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_writer_is_refused_with_the_first_ones_name_until_it_is_killed(solve):
    solve(out="r")
    other = subprocess.Popen([sys.executable, "-c", HOLD, "r"], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(tts.InputError, match=rf"r is being written by process {other.pid} \(since .*; wait for it"):
            solve(resume="r")
        assert len(tts.load_run("r").records) == 12  # a reader is not kept waiting
        about = json.loads(lock_of(Path("r")).read_text())
        lock_of(Path("r")).write_text(json.dumps({**about, "host": "elsewhere"}))
        with pytest.raises(tts.InputError, match=f"process {other.pid} on elsewhere, which is another machine"):
            solve(resume="r")
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
        other.stdout.close()
    assert lock_of(Path("r")).exists()
    solve(resume="r")
    assert not lock_of(Path("r")).exists()


def test_a_lock_goes_with_its_holder_and_not_with_a_child_of_it(tmp_path):
    with Lock(tmp_path), pytest.raises(tts.InputError, match=f"process {os.getpid()}"):
        Lock(tmp_path)
    lock = Lock(tmp_path)
    child = os.fork()
    if not child:
        signal.pause()
    try:
        lock.release()
        Lock(tmp_path).release()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_lock_that_its_holder_removes_is_not_taken_for_a_free_one(tmp_path):
    first = Lock(tmp_path)
    late = os.open(lock_of(tmp_path), os.O_RDWR)  # has opened it, and will lock it too late
    first.release()
    with Lock(tmp_path), pytest.raises(tts.InputError):
        Lock(tmp_path)
    os.close(late)


def test_outputs_that_are_being_written_are_refused(tmp_path, solve):
    settings = ScoreSettings(traces=Path("p.jsonl"), out=tmp_path / "s.jsonl")
    sink = FileSink.open(settings.out, settings, resume=False, command="tts score")
    with pytest.raises(tts.InputError, match=r"s\.jsonl is being written by process"):
        FileSink.open(settings.out, settings, resume=True, command="tts score")
    sink.close()
    FileSink.open(settings.out, settings, resume=True, command="tts score").close()
    assert sorted(file.name for file in tmp_path.iterdir() if file.name.startswith("s.")) == [
        "s.jsonl",
        "s.jsonl.settings.json",
    ]


def test_resume_notices_that_the_data_has_changed(solve):
    solve(out="r")
    data = Path("p.jsonl")
    before = data.read_text()
    data.write_text(before.replace('"problem": "Gr\\u00f6\\u00dfe 3?', '"problem": "Gr\\u00f6\\u00dfe 333?'))
    assert data.read_text() != before
    with pytest.raises(
        tts.InputError, match=r"r was started with other content: --benchmark was sha256 .{12} of 12 problems and is"
    ):
        solve(resume="r")
    solve(resume="r", accept_changes=True)
    run = json.loads(Path("r/run.json").read_text())
    assert run["content"]["benchmark"] != run["earlier_content"][0]["benchmark"]
    assert len(rows("r")) == 13  # the new problem has an id of its own
    data.write_text(before)
    del run["content"], run["earlier_content"]
    Path("r/run.json").write_text(json.dumps(run))  # a folder of an earlier version is resumed without a look
    solve(resume="r")


def test_resume_notices_what_a_server_says(solve):
    class Served(ScriptedEngine):
        served = None

        async def generate(self, *arguments):
            self.served = name
            return await super().generate(*arguments)

    def run(**where):
        engine = Served(lambda prompt, seed: f"{seed}")
        return tts.run(Plain(), engine_instance=engine, benchmark="p.jsonl", **where)

    name = "small, root /models/a"
    run(out="r")
    assert json.loads(Path("r/run.json").read_text())["content"]["url"] == name
    Path("r/results.jsonl").write_bytes(b"".join(rows("r")[:5]))
    name = "small, root /models/b"
    with pytest.raises(tts.InputError, match="--url was small, root /models/a and is small, root /models/b"):
        run(resume="r")
    assert len(rows("r")) == 5
    run(resume="r", accept_changes=True)
    assert len(rows("r")) == 12


def test_content_of_files_models_and_plugins(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = tmp_path / "model"
    shutil.copytree(checkpoints.locate("arith-policy"), model)
    mine = tmp_path / "mine.py"
    mine.write_text("x = 1\n")
    settings = RunSettings(
        model=str(model), strategy=f"{mine}:Own", scorer_args={"file": str(mine), "window": True}, grader="math"
    )
    before = content_of(settings)
    assert set(before) == {"model", "scorer", "strategy", "scorer-arg file"}
    assert content_of(settings) == before
    (model / "training.json").write_text("{}")
    assert content_of(settings) == before
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1  # one bit, in the middle
    weights.write_bytes(content)
    mine.write_text("x = 2\n")
    now = content_of(settings)
    assert {name for name in now if now[name] != before[name]} == {"model", "strategy", "scorer-arg file"}


def test_large_files_are_hashed_once_and_anew_when_they_change(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "REMEMBERED", 10)
    monkeypatch.setattr(hashes, "RECENT", -1e9)
    file, read = tmp_path / "f", []
    original = hashes._digest
    monkeypatch.setattr(hashes, "_digest", lambda *arguments: read.append(1) or original(*arguments))
    file.write_bytes(b"a" * 100)
    assert hashes.hash_of_file(file) == hashes.hash_of_file(file)
    assert len(read) == 1
    file.write_bytes(b"b" * 100)
    os.utime(file, ns=(1, 1))
    assert hashes.hash_of_file(file) == original(file, 100)
    assert len(read) == 2
    monkeypatch.setattr(hashes, "WHOLE", 50)
    monkeypatch.setattr(hashes, "BLOCK", 10)
    sampled = hashes.hash_of_file(file)
    file.write_bytes(b"b" * 99 + b"c")
    os.utime(file, ns=(2, 2))
    assert hashes.hash_of_file(file) != sampled


def test_a_file_that_is_scored_may_grow_but_not_change(tmp_path):
    traces, out = tmp_path / "t.jsonl", tmp_path / "o.jsonl"
    traces.write_text('{"problem": "a", "text": "b"}\n')
    settings = ScoreSettings(traces=traces, out=out)
    FileSink.open(out, settings, resume=False, command="tts score").close()
    traces.write_text(traces.read_text() * 2)
    FileSink.open(out, settings, resume=True, command="tts score").close()
    traces.write_text(traces.read_text().replace("b", "c"))
    with pytest.raises(tts.InputError, match="--traces was sha256"):
        FileSink.open(out, settings, resume=True, command="tts score")
    accepting = ScoreSettings(traces=traces, out=out, accept_changes=True)
    FileSink.open(out, accepting, resume=True, command="tts score").close()


def test_a_problem_has_the_same_samples_in_whatever_file_it_stands(solve):
    texts = [json.loads(line)["problem"] for line in Path("p.jsonl").read_text().splitlines()]
    other = [{"problem": "neu", "answer": "1"}, *({"problem": text} for text in reversed(texts[:4])), {"problem": texts[0]}]
    Path("q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in other))
    ids = [problem.id for problem in load_benchmark("q.jsonl").problems]
    assert ids[1:5] == [problem.id for problem in load_benchmark("p.jsonl").problems[3::-1]]
    assert ids[5] == f"{ids[4]}-2"
    solve(out="p")
    solve(out="q", benchmark="q.jsonl")
    drawn = [
        {record.id: [a.text for a in record.candidates] for record in tts.load_run(folder).records} for folder in ("p", "q")
    ]
    assert {name: drawn[1][name] for name in ids[1:5]} == {name: drawn[0][name] for name in ids[1:5]}
    assert [problem.id for problem in load_benchmark("q.jsonl", numbered=True).problems] == list("123456")


def test_only_errors_of_writing_are_taken_for_such():
    for error in (ConnectionResetError("gone"), RuntimeError("no"), KeyError("x")):
        with pytest.raises(type(error)), writing(Path("x"), "make room"):
            raise error
    for error in (OSError(28, "No space left on device"), ExceptionGroup("", [ValueError(), OSError(28, "No space")])):
        with pytest.raises(tts.InputError, match="cannot write to x: No space"), writing(Path("x"), "make room"):
            raise error


@pytest.fixture
def disk(tmp_path):
    """Mounts a file system of so many KiB and returns its folder; called again, it changes the size."""
    place, mounted = tmp_path / "disk", False

    def resize(kib: int) -> Path:
        nonlocal mounted
        place.mkdir(exist_ok=True)
        options = f"remount,size={kib}k" if mounted else f"size={kib}k"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(place)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"A FULL DISK WAS NOT TESTED: no file system can be mounted here ({done.stderr.strip()})")
        mounted = True
        return place

    yield resize
    if mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


LABELLED = {
    "problem": "1+1?", "text": "<think>\na\n\nb\n</think>\n\n\\boxed{2}", "step_targets": [1, 0, 1], "final_target": 1,
}  # fmt: skip
TRACES = [{"problem": f"{i}+1?", "answer": "2", "text": "ä" * 300} for i in range(60)]
TRAINING = ["--max-steps", "4", "--save-steps", "2", "--batch-size", "2", "--device", "cpu"]
LABELS = ["--targets", "quality", "--final", "outcome", "--n", "1", "--max-tokens", "40"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kib", "command", "result"),
    [
        (24, ["run", "--limit", "20", "--n", "2", "--max-tokens", "80"], "results.jsonl"),
        (24, ["sweep", "--limit", "20", "--n", "1,2", "--max-tokens", "80"], "sweep.csv"),
        (16, ["score", "t.jsonl"], None),
        (68, ["label", "t.jsonl", *LABELS], None),
        (16, ["select", "t.jsonl", "--scorer", "arith-prm"], None),
        (3000, ["train-prm", "l.jsonl", *TRAINING], "model.safetensors"),  # within the first checkpoint
        (9000, ["train-prm", "l.jsonl", *TRAINING], "model.safetensors"),  # within the second
        (12600, ["train-prm", "l.jsonl", *TRAINING], "model.safetensors"),  # within the model
        (9000, ["sft", "l.jsonl", *TRAINING], "model.safetensors"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_on_a_full_disk_a_command_says_so_in_a_line_and_resumes_when_there_is_room(disk, kib, command, result):
    Path("l.jsonl").write_text((json.dumps(LABELLED) + "\n") * 8)
    Path("t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TRACES))
    place = disk(kib)

    def tts(*words):
        line = [sys.executable, "-m", "tts.cli", *map(str, words), "--quiet"]
        return subprocess.run(line, capture_output=True, text=True)

    full = tts(*command, "--out", place / "o")
    said = [line for line in full.stderr.splitlines() if "cannot write to" in line]
    assert (full.returncode, len(said), "Traceback" in full.stderr) == (2, 1, False), full.stderr
    disk(100_000)
    again = {"run": ["run", "--resume", place / "o"], "sweep": [*command, "--out", place / "o"]}
    resumed = tts(*again.get(command[0], [*command, "--out", place / "o", "--resume"]))
    assert resumed.returncode == 0, resumed.stderr
    assert tts(*command, "--out", "whole").returncode == 0
    found, expected = (Path(out, result) if result else Path(out) for out in (place / "o", "whole"))
    assert sorted(found.read_bytes().splitlines()) == sorted(expected.read_bytes().splitlines())
    assert not list(place.rglob("*.part"))


def test_a_checkpoint_that_was_cut_off_is_not_taken_for_a_whole_one(tmp_path):
    import torch
    from safetensors.torch import save_file

    from tts.train.whole import broken_checkpoints, newest_checkpoint

    for step in (2, 10):
        folder = tmp_path / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        save_file({"a": torch.ones(100), "b": torch.zeros(3, 3)}, folder / "model.safetensors")
        torch.save({"step": step}, folder / "optimizer.pt")
        (folder / "trainer_state.json").write_text('{"global_step": 2}')
    assert newest_checkpoint(tmp_path) == folder
    for name in ("model.safetensors", "optimizer.pt", "trainer_state.json"):
        whole = (folder / name).read_bytes()
        for torn in (whole[:-1], whole[: len(whole) // 2], b"", b"\0" * len(whole)):
            (folder / name).write_bytes(torn)
            assert newest_checkpoint(tmp_path).name == "checkpoint-2"
            assert broken_checkpoints(tmp_path) == [folder]
        (folder / name).write_bytes(whole)
    (folder / "trainer_state.json").unlink()
    assert newest_checkpoint(tmp_path).name == "checkpoint-2"
