"""Draw docs/images/scaling.svg, accuracy over N on the bundled models, from a sweep.

    python scripts/figure_scaling.py

The sweep runs first and takes a few minutes; its folder, runs/scaling, is reused by the next call. Needs matplotlib.
"""

from __future__ import annotations

from pathlib import Path

import tts
from tts.runs.sweep import Sweep

ROOT = Path(__file__).parent.parent
FIGURE = ROOT / "docs" / "images" / "scaling.svg"
SIZES = (1, 2, 4, 8, 16, 32)
LINES = {
    "pass@N": ("pass@N (ceiling)", "#767676", ":"),
    "beam": ("beam search", "#0072b2", "-"),
    "bon": ("best-of-N", "#009e73", "-"),
    "weighted": ("weighted vote", "#d55e00", "-"),
    "majority": ("majority vote", "#8f5a9f", "-"),
}
"""Label, colour and line style of each strategy; the colours can be told apart with any colour vision."""
GAP = 4.5
"""Smallest distance between two labels, in percentage points."""


def main() -> None:
    """Run the sweep, unless its folder is complete, and draw it."""
    swept = tts.sweep(
        ["bon", "weighted", "majority", "beam"], SIZES, width=4, limit=200, seeds=2, out=ROOT / "runs" / "scaling"
    )
    draw(swept, FIGURE)
    print(FIGURE.relative_to(ROOT))


def draw(swept: Sweep, path: Path) -> None:
    """A line and a 95 % band for each strategy, labelled where the line ends."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams |= {"svg.hashsalt": "tts", "font.size": 11}
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    ends = {}
    for name, (_, color, style) in LINES.items():
        rows = [row for row in swept.rows if row.strategy == name]
        sizes = [row.n for row in rows]
        axes.plot(sizes, [100 * row.accuracy.value for row in rows], style, color=color, marker="o", markersize=4)
        bands = ([100 * row.accuracy.low for row in rows], [100 * row.accuracy.high for row in rows])
        axes.fill_between(sizes, *bands, color=color, alpha=0.15, linewidth=0)
        ends[name] = 100 * rows[-1].accuracy.value
    for name, height in spread(ends).items():
        label, color, _ = LINES[name]
        axes.annotate(label, (SIZES[-1], height), (10, 0), textcoords="offset points", va="center", color=color)
    axes.set_xscale("log", base=2)
    axes.set_xticks(SIZES, map(str, SIZES))
    axes.set(xlabel="N, solutions sampled for each problem", ylabel="accuracy, %", ylim=(25, 103))
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def spread(heights: dict[str, float]) -> dict[str, float]:
    """The heights, from the highest down, moved down where two labels would overlap."""
    placed: dict[str, float] = {}
    above = float("inf")
    for name, height in sorted(heights.items(), key=lambda item: -item[1]):
        above = placed[name] = min(height + GAP / 2 if not placed else height, above - GAP)
    return placed


if __name__ == "__main__":
    main()
