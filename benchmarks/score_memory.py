"""Resident memory of `tts score` over many short traces, which should stay constant.

python benchmarks/score_memory.py --traces 100000
"""

from __future__ import annotations

import json
import os
import random
import tempfile
from pathlib import Path

import cyclopts

from tts.data.stream import Tally
from tts.demo import arith
from tts.runs.score import score_file
from tts.runs.settings import ScoreSettings


def resident():
    """Return the resident memory of this process in MiB (Linux only)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main(traces: int = 100_000) -> None:
    """Print the resident memory after each tenth of the traces."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "traces.jsonl"), Path(folder, "scores.jsonl")
        with source.open("w") as file:
            for chain in arith.take("train", traces, 0):
                value = rng.randrange(10)
                row = {"problem": chain.prompt, "thinking": f"1) {chain.start}+1={value}", "response": f"\\boxed{{{value}}}"}
                file.write(json.dumps(row) + "\n")
        tally, seen, count = Tally(), [], 0

        def note(item, over):
            nonlocal count
            count += 1
            if count % max(1, traces // 10) == 0:
                seen.append((count, resident()))

        score_file(ScoreSettings(traces=source, out=out), tally=tally, show=note)
        assert tally.done == sum(1 for _ in out.open()) == traces
    print("| traces | resident MiB |\n|---|---|")
    for count, size in seen:
        print(f"| {count:,} | {size:.0f} |")


if __name__ == "__main__":
    cyclopts.run(main)
