"""Plots of a report as PNG and SVG: accuracy over N and over tokens, and the calibration of rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tts.show.report import Charted, Json

COSTS = {
    "generated": "tokens generated per problem",
    "scored": "tokens scored per problem",
    "seconds": "seconds per problem",
    "gflops": "GFLOPs per problem (estimated)",
}
"""The costs that accuracy is plotted against, with their labels."""

COLOURS = ("#2166ac", "#b35806", "#1b7837", "#762a83", "#8c6d1f", "#9e1b4a")
"""Colours of the runs in PNG and SVG; the page has its own, for light and dark."""

MARKERS = "osD^v*"


def write_plots(runs: Sequence[Charted], folder: Path) -> bool:
    """Write the plots; False if matplotlib is not installed."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
        from matplotlib.ticker import PercentFormatter, ScalarFormatter
    except ImportError:
        return False
    styles = [{"color": COLOURS[i % 6], "marker": MARKERS[i % 6], "label": run.name} for i, run in enumerate(runs)]

    def draw(name: str, x: str, y: str, lines: Callable[[Any], None]) -> None:
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        lines(axes)
        axes.set(xlabel=x, ylabel=y)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
        for kind in ("png", "svg"):
            metadata = {"Date": None} if kind == "svg" else None
            figure.savefig(folder / f"{name}.{kind}", dpi=160, metadata=metadata)

    def against(key: str, rows: Callable[[Charted], tuple[Json, ...]]) -> Callable[[Any], None]:
        def lines(axes: Any) -> None:
            for run, style in zip(runs, styles, strict=True):
                points = [row for row in rows(run) if row[key]]  # 0 has no logarithm
                xs, ys = [p[key] for p in points], [p["accuracy"] for p in points]
                axes.errorbar(xs, ys, [[y - p["low"] for y, p in zip(ys, points, strict=True)],
                                       [p["high"] - y for y, p in zip(ys, points, strict=True)]],
                              elinewidth=1, capsize=2, **style)  # fmt: skip
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(ScalarFormatter())

        return lines

    def reliability(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
        for run, style in zip(runs, styles, strict=True):
            if run.reliability:
                bins = run.reliability.curve.bins
                axes.plot([b.reward for b in bins], [b.right for b in bins], **style)

    # `$` in the name of a run does not start a formula
    with matplotlib.rc_context({"svg.hashsalt": "tts", "text.parse_math": False, "font.size": 10}):
        if any(run.against_n for run in runs):
            draw("accuracy-n", "N", "accuracy", against("n", lambda run: run.against_n))
            draw("accuracy-cost", COSTS["generated"], "accuracy", against("generated", lambda run: run.against_cost))
        if any(run.reliability for run in runs):
            draw("calibration", "reward", "right", reliability)
    return True
