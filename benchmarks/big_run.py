"""Time and memory of the commands that read runs, on a run of a gigabyte: 83,580 problems with 16 candidates each.

The rows of a small run, which is made first, are repeated under ids of their own and with their candidates in another order, so
the large run can be read, compared and resumed like any other, and no two problems have the same votes in the same order. Its
redrawn rows are others, as samples hang on ids: verify ends with exit code 1. Every command runs in a process of its own, whose
largest resident set is reported.

`python benchmarks/big_run.py`; `--folder PATH` keeps the runs for the next time. Needs 3 GB of disk.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import cyclopts

import tts
from tts.data.store import RunStore


def small_run(folder, candidates):
    """Make a run of 60 problems, with its data in a file beside it."""
    from tts.demo import arith

    data = folder / "small.jsonl"
    with data.open("w") as file:
        for i, chain in enumerate(arith.take("test", 60)):
            file.write(json.dumps({"id": f"p-{i}", "problem": chain.prompt, "answer": chain.answer}) + "\n")
    tts.run("bon", n=candidates, benchmark=str(data), out=folder / "small")


def large_run(folder, name, problems, seed):
    """Repeat the rows of the small run: copy i of problem p is problem 60 i + p."""
    small, out, rng = RunStore.open(folder / "small"), folder / name, random.Random(seed)
    out.mkdir()
    rows = [json.loads(line) for line in small.results.read_bytes().splitlines()]
    timings = list(small.timing_rows())
    problem = {row["id"]: row for row in map(json.loads, (folder / "small.jsonl").read_text().splitlines())}
    data = folder / "large.jsonl"
    data.write_text("".join(json.dumps(problem[f"p-{i % 60}"] | {"id": f"p-{i}"}) + "\n" for i in range(problems)))
    with (out / "results.jsonl").open("w") as results, (out / "timings.jsonl").open("w") as file:
        for i in range(problems):
            row = dict(rows[i % len(rows)])
            order = rng.sample(range(len(row["candidates"])), len(row["candidates"]))
            row["candidates"] = [row["candidates"][k] for k in order]
            row["choice"] = order.index(row["choice"])
            row["id"] = f"p-{int(row['id'].removeprefix('p-')) + 60 * (i // len(rows))}"
            line = json.dumps(row, ensure_ascii=False)
            timing = {"id": row["id"], "at": results.tell(), "crc": zlib.crc32(line.encode())}
            file.write(json.dumps(timings[i % len(rows)] | timing) + "\n")
            results.write(line + "\n")
    settings = json.loads((folder / "small" / "run.json").read_text())
    settings["settings"] |= {"benchmark": str(data), "seed": seed}
    settings.pop("content", None)  # that of the small run's data
    (out / "run.json").write_text(json.dumps(settings))


MEASURE = """
import json, os, resource, subprocess, sys, time
begin = time.perf_counter()
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([time.perf_counter() - begin, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3, code]))
"""
"""A process starts with the resident set of the one that starts it, which therefore has to be small."""


def measured(*command):
    """Run a command of tts; return its seconds, those of the processors, the largest resident set in MB, and its exit code."""
    words = [sys.executable, "-c", MEASURE, sys.executable, "-m", "tts.cli", *map(str, command)]
    return json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout)


def main(problems: int = 83_580, candidates: int = 16, runs: int = 500, folder: Path | None = None) -> None:
    """Print a table of commands with their seconds and memory.

    Args:
        problems: Problems of the large run; a multiple of 60.
        candidates: Candidates per problem.
        runs: Runs in the folder that is listed.
        folder: Where to keep the runs; by default a temporary folder.
    """
    keep = folder is not None
    folder = folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if not (folder / "small").exists():
            small_run(folder, candidates)
        for i, name in enumerate(("first", "second")):
            if not (folder / name).exists():
                large_run(folder, name, problems, i)
        many = folder / "many"
        for i in range(runs):
            if not (many / f"run-{i}").exists():
                shutil.copytree(folder / "small", many / f"run-{i}")
        first, second = folder / "first", folder / "second"
        print(f"results.jsonl: {(first / 'results.jsonl').stat().st_size / 1e6:,.0f} MB, {problems:,} rows\n")
        print("| command | seconds | CPU seconds | MB | exit code |\n|---|---|---|---|---|")
        last = f"p-{problems - 1}"
        for command in (
            ("show", first, "p-1"), ("show", first, last), ("show", first, "p-none"), ("compare", first, second),
            ("run", "--resume", first), ("report", first, "--out", folder / "report.html"),
            ("verify", first, "--count", 20), ("runs", many),
        ):  # fmt: skip
            seconds, busy, megabytes, code = measured(*command)
            words = " ".join(str(word.name if isinstance(word, Path) else word) for word in command)
            print(f"| {words} | {seconds:.1f} | {busy:.1f} | {megabytes:,.0f} | {code} |", flush=True)
        if (folder / "report.html").exists():
            print(f"\nreport.html: {(folder / 'report.html').stat().st_size / 1e6:.1f} MB")
    finally:
        if not keep:
            shutil.rmtree(folder)


if __name__ == "__main__":
    cyclopts.run(main)
