"""The experiment of `make reproduce`, in the smallest size at which every stage still has something to do."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from tts.commands import COMMANDS
from tts.commands.line import Line
from tts.errors import InputError
from tts.evals.intervals import estimate
from tts.models.checkpoints import locate
from tts.reproduce.experiments import Plan, reproduce, stages
from tts.reproduce.report import Range, over_seeds

TINY = {
    "problems": 12, "samples": 2, "prm_steps": 2, "prm_joint_steps": 1, "prm_batch": 4, "test": 4, "n": 4, "top": "50%",
    "sft_steps": 1, "sft_batch": 2, "evaluated": 2, "rl_steps": 1, "rl_problems": 2, "group": 2,
    "rl_eval": 2, "rl_eval_steps": 1, "betas": [0.0, 0.5], "max_tokens": 200,
}  # fmt: skip


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    """A finished experiment. It uses the bundled policy instead of training one."""
    folder = tmp_path_factory.mktemp("reproduction")
    work = folder / "work"
    (work / "done").mkdir(parents=True)
    shutil.copytree(locate("arith-policy"), work / "policy")
    (work / "done/policy.json").write_text('{"seconds": 0, "command": ""}')
    settings = [part for name, value in TINY.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    command = [
        sys.executable,
        "-m",
        "tts.reproduce",
        "--work",
        work,
        "--out",
        folder / "report.md",
        "--seeds",
        "2",
        *settings,
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, command, done.stdout


@pytest.mark.slow
def test_the_report_has_the_numbers_of_every_finding(reproduced):
    folder, _, _ = reproduced
    report = (folder / "report.md").read_text()
    for heading in (
        "What appears",
        "1. Test-time scaling",
        "2. Data selection",
        "3. Reinforcement learning",
        "4. Ablations",
    ):
        assert f"## {heading}\n" in report
    for row in (
        "best-of-N, trajectory-aware PRM", "best-of-N, response-only PRM", "majority", "the trajectory-aware PRM's best",
        "the response-only PRM's best", "random choice", "all data", "right ones (oracle)", "alpha = 1.5", "final alone",
    ):  # fmt: skip
        [line] = re.findall(rf"^\| {re.escape(row)} \|.*", report, re.MULTILINE)
        assert re.search(r"\d+\.\d \[\d+\.\d, \d+\.\d\]", line)
    assert (folder / "report.png").stat().st_size > 10_000
    assert "nan" not in report


received = []


def record(settings, output):
    """Take the place of a command's work."""
    received.append(settings)
    return 0


@pytest.mark.slow
def test_every_command_in_the_report_makes_the_settings_of_its_stage(reproduced, monkeypatch):
    folder, _, _ = reproduced
    report = (folder / "report.md").read_text()
    printed = re.search(r"```sh\n(.*?)```", report, re.DOTALL)[1].splitlines()
    for name, command in COMMANDS.items():
        monkeypatch.setitem(COMMANDS, name, replace(command, work="tests.test_reproduce:record"))
    first = [stage for stage in stages(folder / "work", Plan(**TINY), 1) if stage.command.startswith("tts ")]
    lines = [line.partition("  # ")[0] for line in printed if line.startswith("tts ")]
    assert lines == [stage.command for stage in first]
    kinds = set()
    for stage in first:
        _, kind, *words = shlex.split(stage.command)
        kinds.add(kind)
        received.clear()
        assert Line([kind, *words]).run() == 0
        if kind == "run":
            assert received == [{name: str(value) for name, value in stage.arguments.items()}]
        else:
            expected = stage.arguments["settings"]
            assert [vars(settings) for settings in received] == [vars(expected) | extra_options(received[0], expected)]
    assert kinds == {"run", "label", "train-prm", "score", "select", "sft", "rl"}


def extra_options(settings, expected):
    """What a command's own settings have beyond those of the stage."""
    return {name: value for name, value in vars(settings).items() if name not in vars(expected)}


def test_a_wrong_setting_is_named(tmp_path):
    with pytest.raises(InputError, match=r"prm_stepps.*prm_steps"):
        reproduce(work=tmp_path, plan=["prm_stepps=1"])


@pytest.mark.slow
def test_an_interrupted_experiment_runs_only_the_unfinished_stages(reproduced):
    folder, command, first = reproduced
    stages_done = re.findall(r"^ *\d+/\d+ ", first, re.MULTILINE)
    every = list(stages(folder / "work", Plan(betas=(0.0, 0.5)), 2))
    assert len(stages_done) == len(every) - 1  # the policy was finished before
    before = (folder / "report.md").read_text()
    (folder / "work/done/1-sft-random.json").unlink()
    (folder / "work/done/1-sft-random-test.json").unlink()
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    again = re.findall(r"^ *\d+/\d+ .* (\S+)$", done.stdout, re.MULTILINE)
    assert again == ["1/sft-random", "1/sft-random-test"]

    def numbers(report):
        return re.findall(r"\| [^|]*\[[^|]*\|", report)

    assert numbers((folder / "report.md").read_text()) == numbers(before)  # the same seeds, the same results


def test_intervals_are_over_seeds_and_problems():
    rng = np.random.default_rng(0)
    assert over_seeds(np.ones((3, 50))) == Range(*estimate([1.0] * 50))
    same_seeds = np.tile(rng.integers(0, 2, 100).astype(float), (3, 1))
    noisy_seeds = same_seeds + np.array([[-0.3], [0.0], [0.3]])
    alike, apart = over_seeds(same_seeds), over_seeds(noisy_seeds)
    assert alike.value == pytest.approx(apart.value)
    assert alike.high - alike.low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 100), rel=0.15)  # the interval over problems alone
    assert apart.high - apart.low > 1.5 * (alike.high - alike.low)


def test_the_verdict_follows_from_the_interval():
    assert Range(0.1, 0.05, 0.2).verdict == "yes"
    assert Range(0.1, -0.05, 0.2).verdict == "not resolved: the interval contains 0"
    assert Range(-0.1, -0.2, -0.05).verdict == "no, the other way round"
    assert str(Range(0.5, 0.25, 0.75)) == "50.0 [25.0, 75.0]"
    assert Range(0.5, -0.25, 0.75).signed() == "+50.0 [-25.0, +75.0]"
