"""Time of a sweep over N against a single run of its largest N, with the same problems, engine and reward model.

python benchmarks/sweep.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import cyclopts

import tts
from tts.engines.transformers import TransformersEngine
from tts.scorers.prm import PRM

SIZES = [1, 2, 4, 8, 16, 32, 64]


def main(repeat: int = 3, problems: int = 64) -> None:
    """Take turns, and print the median seconds of both, and their ratio."""
    engine, prm = TransformersEngine("arith-policy"), PRM("arith-prm")
    seconds = {"run of n = 64": [], "sweep": []}
    for i in range(repeat + 1):
        with tempfile.TemporaryDirectory() as folder:
            common = {"limit": problems, "engine_instance": engine, "scorer_instance": prm, "max_tokens": 400}
            prm.reader.model.forest.clear()
            start = time.perf_counter()
            tts.run("bon", n=SIZES[-1], out=Path(folder, "run"), seed=0, **common)
            middle = time.perf_counter()
            prm.reader.model.forest.clear()
            tts.sweep(["bon", "weighted", "majority"], SIZES, seeds=[0], out=Path(folder, "sweep"), **common)
            if i:  # the first round is a warm-up
                seconds["run of n = 64"].append(middle - start)
                seconds["sweep"].append(time.perf_counter() - middle)
    one, all_sizes = (statistics.median(spent) for spent in seconds.values())
    print("| | seconds |\n|---|---|")
    for name, spent in seconds.items():
        print(f"| {name} | {statistics.median(spent):.1f} |")
    print(f"| ratio | {all_sizes / one:.3f} |")


if __name__ == "__main__":
    cyclopts.run(main)
