"""Accuracy over N for four strategies: sampling ones share one pool, beam search runs for each N.

python examples/sweep_n.py --problems 50
"""

from __future__ import annotations

from pathlib import Path

import typer

import tts


def main(problems: int = 50, seeds: int = 2, out: Path = Path("runs/sweep-example")) -> None:
    """Sweep, and print the table as CSV."""
    swept = tts.sweep(["bon", "weighted", "majority", "beam"], [4, 8, 16], seeds=seeds, limit=problems, width=4, out=out)
    print(swept.to_csv())
    best = max((row for row in swept.rows if row.strategy != "pass@N"), key=lambda row: row.accuracy.value)
    print(f"best: {best.strategy} at N = {best.n}, {best.accuracy.value:.1%}, {best.generated:,.0f} tokens for a problem")


if __name__ == "__main__":
    typer.run(main)
