"""Interrupts every command again and again, at random moments, on a machine kept busy, and says how that went.

    python scripts/stress_interrupts.py --count 200 --seed 0

    command     interrupted  done before  not begun  wrong  slowest
    run                  14            3          0      0    0.41 s
    …

An interrupted command must end within 5 s of the signal with one line that says how to resume, or that nothing was written,
with exit code 128 + the signal's number and without a traceback. One that was done before must have ended well; it does not
count. Neither does a moment before tts is imported, when Python itself handles signals.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from busy import busy

LIMIT = 5.0
"""Seconds in which an interrupted command has to end."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LINE = re.compile(r"^tts: interrupted.*(resume|nothing was written|the same command|is complete)", re.MULTILINE)
MARK = f"stress-{os.getpid()}"
"""In the environment of all that a command starts."""
ROW = {
    "problem": "Start with 7.\n1) multiply by 8\nWhat is the last digit?",
    "answer": "6",
    "text": "<think>\n1) 7*8=6\n</think>\n\nmultiply by 8 gives 6\n\nThe result is \\boxed{6}",
    "step_targets": [1, 0.5, 0],
    "final_target": 0.25,
}
COMMANDS = {
    "run": "run --limit 40 --n 4 --out new",
    "sweep": "sweep --strategy bon,beam --n 1,2,4 --limit 10 --out new",
    "score": "score traces.jsonl --out new.jsonl",
    "label": "label traces.jsonl --quality rollout --final outcome --n 2 --max-tokens 60 --limit 20 --out new.jsonl",
    "select": "select traces.jsonl --top 5 --out new.jsonl",
    "train-prm": "train-prm traces.jsonl --out new --device cpu --max-steps 5 --save-steps 2 --batch-size 2",
    "sft": "sft traces.jsonl --out new --device cpu --max-steps 5 --save-steps 2 --batch-size 2",
    "rl": "rl --out new --device cpu --max-steps 2 --batch-size 8 --max-tokens 40 --limit 8",
    "report": "report one two --out new.html",
    "compare": "compare one two",
    "show": "show one 0",
    "runs": "runs .",
    "strategies": "strategies",
    "engines": "engines",
    "scorers": "scorers",
}
"""Commands on inputs so small that they take few seconds; what they make is called new."""


@dataclass
class Tally:
    """What became of one command's interrupts."""

    interrupted: int = 0
    done: int = 0
    early: int = 0
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0


def main() -> None:
    """Interrupt commands `--count` times; exit code 1 where anything went wrong."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--count", type=int, default=200, help="Interrupts.")
    options.add_argument("--seed", type=int, default=0, help="Of the moments and signals.")
    options.add_argument("--busy", type=int, default=os.cpu_count(), help="Processes that keep the machine busy.")
    options.add_argument("--commands", default=",".join(COMMANDS), help="Names with commas between.")
    given = options.parse_args()
    names = given.commands.split(",")
    with tempfile.TemporaryDirectory() as folder, busy(given.busy):
        tallies = stress(Path(folder), names, given.count, random.Random(given.seed))
    print("command     interrupted  done before  not begun  wrong  slowest")
    for name, tally in [*tallies.items(), ("all", summed(tallies))]:
        print(f"{name:10s}{tally.interrupted:13d}{tally.done:13d}{tally.early:11d}{len(tally.wrong):7d}{tally.slowest:7.2f} s")
    wrong = [f"{name}: {what}" for name, tally in tallies.items() for what in tally.wrong]
    print(*wrong, sep="\n")
    sys.exit(bool(wrong))


def stress(folder: Path, names: list[str], count: int, dice: random.Random) -> dict[str, Tally]:
    """Interrupt `names` in turn, `count` times in all."""
    prepare(folder)
    tallies = {name: Tally() for name in names}
    lasts = {name: duration(folder, name) for name in names}
    for i in range(count):
        name = names[i % len(names)]
        tally = tallies[name]
        wanted = tally.interrupted + 1
        while tally.interrupted < wanted:
            done, start = tally.done, time.monotonic()
            interrupt(folder, name, dice.choice(SIGNALS), dice.uniform(0, 1.1 * lasts[name]), tally)
            if tally.done > done:
                lasts[name] = min(lasts[name], time.monotonic() - start)  # the machine is less busy than it was
        print(f"{i + 1}/{count} {name}: {len(tally.wrong)} wrong", file=sys.stderr, flush=True)
    return tallies


def prepare(folder: Path) -> None:
    """The inputs of all commands."""
    (folder / "traces.jsonl").write_text(
        "".join(json.dumps(ROW | {"id": str(i), "problem": f"{i}) {ROW['problem']}"}) + "\n" for i in range(300))
    )
    (folder / "problems.jsonl").write_text(json.dumps({"id": "0", "problem": ROW["problem"], "answer": "6"}) + "\n")
    for name in ("one", "two"):
        command = f"run --benchmark problems.jsonl --n 2 --max-tokens 60 --out {name} --quiet"
        subprocess.run([sys.executable, "-m", "tts.cli", *command.split()], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def duration(folder: Path, name: str) -> float:
    """Seconds that a command takes where nothing disturbs it."""
    process, start = begin(folder, name), time.monotonic()
    _, said = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"tts {COMMANDS[name]} failed: {said}")
    return time.monotonic() - start


def begin(folder: Path, name: str) -> subprocess.Popen[str]:
    for left in folder.glob("new*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    return subprocess.Popen(
        [sys.executable, "-m", "tts.cli", *COMMANDS[name].split()],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TTS_STRESS": MARK},
    )  # fmt: skip


def interrupt(folder: Path, name: str, number: signal.Signals, delay: float, tally: Tally) -> None:
    """Send a signal after `delay` seconds and judge the end."""
    process = begin(folder, name)
    wait(process, delay)
    ready = handles(process.pid, signal.SIGTERM)
    if ready is False:
        process.kill()
        process.communicate()
        tally.early += 1
        return
    finished = process.poll() is not None
    sent = time.monotonic()
    process.send_signal(number)
    try:
        out, said = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        out, said = process.communicate()
    took = time.monotonic() - sent
    where = f"{number.name} after {delay:.2f} s: exit {process.returncode} in {took:.2f} s: {said[-3000:]!r}"
    if left := orphans():
        tally.wrong.append(f"{where}: left behind {left}")
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    if finished or process.returncode == 0:  # done, or as good as done: it only ended sooner
        tally.done += 1
        if process.returncode != 0:
            tally.wrong.append(where)
        return
    tally.interrupted += 1
    tally.slowest = max(tally.slowest, took)
    said_well = len(LINE.findall(said)) == 1 and "Traceback" not in said + out and "Error" not in said
    if process.returncode != 128 + number or took > LIMIT or not said_well:
        tally.wrong.append(where)


def wait(process: subprocess.Popen[str], seconds: float) -> None:
    """Wait so long, or until the process has ended, if that comes sooner."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def handles(pid: int, number: signal.Signals) -> bool | None:
    """Whether a process has a handler for a signal; None where it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    if "\nState:\tZ" in status:
        return None
    [caught] = re.findall(r"^SigCgt:\s*(\w+)", status, re.MULTILINE)
    return bool(int(caught, 16) >> (number - 1) & 1)


def orphans() -> list[int]:
    """Processes that a command has left, its grading workers among them."""
    left = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and MARK.encode() in (entry / "environ").read_bytes():
                left.append(int(entry.name))
    return left


def summed(tallies: dict[str, Tally]) -> Tally:
    """All commands together."""
    every = tallies.values()
    return Tally(
        sum(tally.interrupted for tally in every), sum(tally.done for tally in every), sum(tally.early for tally in every),
        [what for tally in every for what in tally.wrong], max(tally.slowest for tally in every),
    )  # fmt: skip


if __name__ == "__main__":
    main()
