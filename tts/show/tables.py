"""Tables of sweeps and comparisons for the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tts.evals.compare import Comparison
from tts.evals.difficulty import Difficulty
from tts.evals.intervals import Estimate
from tts.runs.sweep import Sweep

BAR = 24
"""Width of a whole bar, in characters."""


def show_sweep(sweep: Sweep) -> RenderableType:
    """A table with one row per strategy and N: accuracy with its interval, tokens, and a bar."""
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for heading in ("strategy", "N", "accuracy", "95 % interval", "", "tokens", "scored"):
        table.add_column(heading, justify="left" if heading in ("strategy", "") else "right")
    last = ""
    for row in sweep.rows:
        if last and row.strategy != last:
            table.add_row()
        bar = ProgressBar(total=1, completed=row.accuracy.value, width=BAR, complete_style="green", finished_style="green")
        name = Text("" if row.strategy == last else row.strategy, "bold")
        drawn = f" ± {row.error:.1%}" if row.error else ""
        value = f"{row.accuracy.value:.1%}{drawn}"
        table.add_row(name, str(row.n), value, _range(row.accuracy), bar, f"{row.generated:,.0f}", f"{row.scored:,.0f}")
        last = row.strategy
    notes: list[RenderableType] = [Text(f"\nskipped: {reason}", "yellow") for reason in sweep.skipped]
    if sweep.differences:
        notes = [Text(), _differences(sweep), *notes]
    if any(row.error for row in sweep.rows):
        notes.append(Text("\n± is the standard error from sampling subsets, where there are too many to take all", "dim"))
    about = Text(
        "\nTokens generated and scored are per problem. For strategies that sample and rank, a smaller N is estimated from the"
        f" samples\nof the largest N.\nfolder  {sweep.folder}",
        "dim",
    )
    return Group(table, *notes, about)


def _differences(sweep: Sweep) -> Table:
    """Paired differences between neighbouring sizes, and between strategies at the largest size."""
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for heading in ("difference, paired", "points", "95 % interval"):
        table.add_column(heading, justify="left" if "paired" in heading else "right")
    largest = max(row.n for row in sweep.rows)
    for found in sweep.differences:
        (one, small), (other, large) = found.first, found.second
        if one == other or large == largest:
            name = f"{other}, N = {large} minus {small}" if one == other else f"{other} minus {one}, N = {large}"
            table.add_row(Text(name), *_points(found.difference))
    return table


def show_comparison(comparison: Comparison) -> RenderableType:
    """Tables of both accuracies, their paired difference, and the settings that differ."""
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for heading in ("", "accuracy", "95 % interval"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, estimate in zip(comparison.runs, (comparison.first, comparison.second), strict=True):
        table.add_row(Text(name, "bold"), f"{estimate.value:.1%}", _range(estimate))
    value, span = _points(comparison.difference)
    table.add_row(Text("difference, paired"), f"{value} points", span)
    facts = f"\n{comparison.problems} problems in both runs; the first run is right more often on {comparison.only_first}, the"
    facts += f" second on {comparison.only_second}: {comparison.verdict} (p = {comparison.p:.2g})"
    if comparison.left_out:
        facts += f"\n{comparison.left_out} problems not compared: in one run only, failed, or without a reference answer"
    settings = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for heading in ("settings that differ", "first", "second"):
        settings.add_column(heading, overflow="fold")
    for name, (one, other) in comparison.settings.items():
        settings.add_row(name, Text(str(one)), Text(str(other)))
    shown: list[RenderableType] = [Text(), settings] if comparison.settings else []
    return Group(table, Text(facts), *shown)


def _range(estimate: Estimate) -> str:
    return f"{estimate.low:.1%} – {estimate.high:.1%}"


def _points(difference: Estimate) -> tuple[str, str]:
    """A difference and its interval, in points."""
    value, low, high = (100 * x for x in difference)
    return f"{value:+.1f}", f"{low:+.1f} – {high:+.1f}"


def show_difficulty(found: Difficulty) -> RenderableType:
    """A table of each strategy's accuracy in each difficulty bin, and the options that follow from it."""
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("")
    for name, count in found.problems.items():
        table.add_column(f"{name} ({count})", justify="right")
    for strategy, accuracy in found.accuracy.items():
        best = ["bold" if found.chosen[name] == strategy else "" for name in accuracy]
        table.add_row(strategy, *(Text(f"{value:.1%}", style) for value, style in zip(accuracy.values(), best, strict=True)))
    return Group(table, Text(f"\n{found.options}"))
