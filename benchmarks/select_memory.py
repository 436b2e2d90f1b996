"""Time and peak resident memory of `tts select` over a million scored rows, in a separate process.

python benchmarks/select_memory.py --rows 1000000

Rows are as `tts score` writes them, 0.9 kB on average, with four traces per problem and one copy in a hundred:
{"id": "7", "step_rewards": [0.8131, …], "final": 0.7702, "total": …, "line": 8, "problem": …, "text": …, "correct": true}
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cyclopts

WORDS = ["so", "the", "sum", "is", "then", "wait,", "we", "check", "that", "x + 1", "equals", "12", "modulo", "7", "again"]


def write(path, rows):
    rng = random.Random(0)
    steps = [" ".join(rng.choices(WORDS, k=rng.randrange(6, 30))) for _ in range(5000)]
    copy = ""
    with path.open("w") as file:
        for i in range(rows):
            thinking = rng.choices(steps, k=rng.randrange(4, 10))
            quality = rng.betavariate(4, 2)
            text = copy if i % 100 == 1 else "<think>\n" + "\n\n".join(thinking) + f"\n</think>\n\nIt is \\boxed{{{i % 7}}}"
            copy = text
            rewards = [round(min(1.0, max(0.0, rng.gauss(quality, 0.1))), 4) for _ in range(len(thinking) + 1)]
            row = {
                "id": str(i), "step_rewards": rewards, "final": round(quality, 4), "total": quality, "line": i + 1,
                "problem": f"Problem {i // 4}: what is left of {steps[i // 4 % 5000]}?", "text": text,
                "correct": rng.random() < quality,
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")


def main(rows: int = 1_000_000, top: str = "1000") -> None:
    """Print a table row with size, time and memory."""
    with tempfile.TemporaryDirectory() as folder:
        pool, out = Path(folder, "pool.jsonl"), Path(folder, "chosen.jsonl")
        write(pool, rows)
        size = pool.stat().st_size
        started = time.perf_counter()
        options = ["--top", top, "--per-problem", "1", "--dedup", "--json"]
        command = [sys.executable, "-m", "tts.cli", "select", str(pool), "--out", str(out), *options]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (2**10 if os.uname().sysname == "Linux" else 2**20)
        assert found["pool"] == rows
        assert found["chosen"] == sum(1 for _ in out.open())
    print("| rows | GB | chosen | seconds | peak MiB |\n|---|---|---|---|---|")
    print(f"| {rows:,} | {size / 1e9:.2f} | {found['chosen']:,} | {seconds:.1f} | {peak:.0f} |")


if __name__ == "__main__":
    cyclopts.run(main)
