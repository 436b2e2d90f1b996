"""The result of a selection: statistics after each filter, and histograms, for the terminal, as JSON and as a PNG."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

BAR_WIDTH = 16
"""Width of the longest bar of a histogram, in characters."""


@dataclass(frozen=True)
class FilterStage:
    """Statistics of the traces that remain after a filter."""

    name: str
    traces: int
    problems: int
    correct: float | None
    """Share of correct answers among the traces with the field `correct`; None if no trace has it."""
    score: float | None
    """Mean score; None if traces have none, as with --by random."""
    steps: float
    """Mean number of thinking and response steps."""
    characters: float
    """Mean number of characters."""


@dataclass(frozen=True)
class Histogram:
    """The number of traces in each bin, for the pool and for the chosen traces. Bins lie between neighbouring edges."""

    edges: tuple[float, ...]
    pool: tuple[int, ...]
    chosen: tuple[int, ...]

    @classmethod
    def of(cls, values: npt.NDArray[Any], chosen: npt.NDArray[np.intp], *, bins: int = 10, log: bool = False) -> Histogram:
        """Return the histogram of the pool's values.

        Args:
            values: One value per trace of the pool.
            chosen: Indices of the chosen traces.
            bins: Number of bins. Default: 10. If all values are equal or too close together, there is one.
            log: Space the edges logarithmically; the values must be positive. Default: False.
        """
        low, high = float(values.min()), float(values.max())
        spaced = np.geomspace if log else np.linspace
        edges = spaced(low, high, bins + 1) if low < high else np.array([low, high])
        edges[[0, -1]] = low, high  # exactly, in spite of rounding
        if len(np.unique(edges)) < len(edges):  # too close together for so many distinct edges
            edges = np.array([low, high])
        pool, picked = (np.histogram(some, edges)[0] if low < high else [len(some)] for some in (values, values[chosen]))
        return cls(tuple(map(float, edges)), tuple(map(int, pool)), tuple(map(int, picked)))

    def labels(self) -> list[str]:
        """Return each bin as `low – high`, with enough digits to tell neighbouring edges apart."""
        low, *_, high = self.edges
        if low == high:
            return [f"{low:,.4g}"]
        width = min(b - a for a, b in pairwise(self.edges))
        digits = min(9, max(0, math.ceil(-math.log10(width)) + (width < 1)))
        shown = [f"{edge:,.{digits}f}" for edge in self.edges]
        return [f"{a} – {b}" for a, b in pairwise(shown)]


@dataclass(frozen=True)
class Selection:
    """The result of `tts select`."""

    out: Path
    """The file with the chosen traces."""
    by: str
    """What traces were ranked by, as in --by."""
    pool: int
    """Traces of the pool and rows that could not be ranked, together."""
    set_aside: int
    """Rows that could not be ranked."""
    stages: Sequence[FilterStage]
    """The first one is of all traces that can be ranked, the last one of the chosen traces."""
    histograms: Mapping[str, Histogram]
    """Of `characters`, and of `score` if traces have one."""
    rejected: tuple[Path, ...] = ()
    """Files with the rows that could not be ranked, and the reasons."""
    scored: Path | None = None
    """The pool with rewards, if it was scored first."""
    plot: Path | None = None
    """The PNG with the histograms."""

    @property
    def title(self) -> str:
        """One line: how many traces were chosen, and by what."""
        return f"{self.stages[-1].traces:,} of {self.stages[0].traces:,} traces, by {self.by}"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, and `chosen`, the number of chosen traces."""
        paths = {name: path and str(path) for name, path in (("out", self.out), ("scored", self.scored), ("plot", self.plot))}
        chosen = self.stages[-1].traces
        return asdict(self) | paths | {"rejected": [str(path) for path in self.rejected], "chosen": chosen}

    def show(self) -> RenderableType:
        """Return the view for a terminal: a table row per filter, the histograms, and the files."""
        title = Text(self.title, "bold")
        if self.set_aside:
            title.append(f", {self.set_aside:,} more could not be ranked", "yellow")
        parts: list[RenderableType] = [title, Text(), _stage_table(self), Text()]
        for name, histogram in self.histograms.items():
            parts += [_bar_table(self.by if name == "score" else name, histogram), Text()]
        files = Table.grid(padding=(0, 2))
        files.add_column(style="dim")
        files.add_column(overflow="fold")
        for name, path in (("chosen", self.out), ("scored", self.scored), ("plot", self.plot)):
            if path is not None:
                files.add_row(name, Text(str(path)))
        return Group(*parts, files)


def _stage_table(selection: Selection) -> Table:
    shown: list[tuple[str, Callable[[FilterStage], str]]] = [
        ("traces", lambda s: f"{s.traces:,}"),
        ("problems", lambda s: f"{s.problems:,}"),
        ("correct", lambda s: "" if s.correct is None else f"{s.correct:.1%}"),
        (selection.by, lambda s: "" if s.score is None else f"{s.score:,.3f}"),
        ("steps", lambda s: f"{s.steps:,.1f}"),
        ("characters", lambda s: f"{s.characters:,.0f}"),
    ]
    columns = [(name, cell) for name, cell in shown if any(cell(stage) for stage in selection.stages)]
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("")
    for name, _ in columns:
        table.add_column(Text(name), justify="right", no_wrap=True)
    if selection.set_aside:
        table.add_row("pool", f"{selection.pool:,}")
    for stage in selection.stages:
        last = stage is selection.stages[-1]
        table.add_row(Text(stage.name), *(cell(stage) for _, cell in columns), style="bold green" if last else "")
    return table


def _bar_table(name: str, histogram: Histogram) -> Table:
    """Return a bar chart of the shares of the pool and of the chosen traces, each scaled to its own maximum."""
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for heading, right in ((name, True), ("pool", True), ("", False), ("chosen", True), ("", False)):
        table.add_column(Text(heading), justify="right" if right else "left", no_wrap=True)
    sides = [[count / max(1, sum(counts)) for count in counts] for counts in (histogram.pool, histogram.chosen)]
    peaks = [max(shares) for shares in sides]
    for label, *shares in zip(histogram.labels(), *sides, strict=True):
        cells: list[RenderableType] = []
        for share, peak, style in zip(shares, peaks, ("blue", "green"), strict=True):
            eighths = math.ceil(8 * BAR_WIDTH * share / peak)  # rounded up, so that no bin with traces looks empty
            bar = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8]
            cells += [Text(f"{share:.1%}" if share else "–", "" if share else "dim"), Text(bar.ljust(BAR_WIDTH + 1), style)]
        table.add_row(Text(label), *cells)
    return table


def draw_histograms(selection: Selection, histograms: Mapping[str, Histogram], file: IO[bytes]) -> None:
    """Write the histograms into an open file, as a PNG. Needs matplotlib. Raises OSError."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, PercentFormatter

    with matplotlib.rc_context({"text.parse_math": False, "font.size": 10}):  # a `$` in a field's name does not start a formula
        figure = Figure(figsize=(1 + 5 * len(histograms), 4), layout="constrained")
        figure.suptitle(selection.title)
        grid = figure.subplots(1, len(histograms), squeeze=False)[0]
        for axes, (name, histogram) in zip(grid, histograms.items(), strict=True):
            low, high = histogram.edges[0], histogram.edges[-1]
            edges = histogram.edges if low < high else (low - 0.5, high + 0.5)
            for counts, look in (
                (histogram.pool, {"label": "pool", "fill": True, "color": "0.8"}),
                (histogram.chosen, {"label": "chosen", "color": "#2166ac", "linewidth": 1.6}),
            ):
                axes.stairs([count / max(1, sum(counts)) for count in counts], edges, **look)
            if name != "score" and low < high:
                axes.set_xscale("log")
                ticks = histogram.edges[:: max(1, len(histogram.pool) // 4)]  # the range may not contain a power of ten
                axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
                axes.xaxis.set_minor_locator(NullLocator())
            axes.set(xlabel=selection.by if name == "score" else name, ylabel="share of traces", ylim=(0, None))
            axes.yaxis.set_major_formatter(PercentFormatter(1))
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        grid[0].legend(frameon=False)
        figure.savefig(file, dpi=160, format="png")
