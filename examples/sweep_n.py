"""Accuracy over N for four strategies. The sampling strategies share one set of samples; beam search runs for each N.

python examples/sweep_n.py --problems 50
"""

from __future__ import annotations

from pathlib import Path

import cyclopts

import tts


def main(problems: int = 50, seeds: int = 2, out: Path = Path("runs/sweep-example")) -> None:
    """Sweep over N, and print the table as CSV and the best row."""
    swept = tts.sweep(["bon", "weighted", "majority", "beam"], [4, 8, 16], seeds=seeds, limit=problems, width=4, out=out)
    print(swept.to_csv())
    best = max((row for row in swept.rows if row.strategy != "pass@N"), key=lambda row: row.accuracy.value)
    print(f"best: {best.strategy} at N = {best.n}, {best.accuracy.value:.1%}, {best.generated:,.0f} tokens per problem")


if __name__ == "__main__":
    cyclopts.run(main)
