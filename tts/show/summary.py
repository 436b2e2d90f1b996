"""A finished run as a person reads it: one table, a curve, the usage, and where everything is."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tts.evals.intervals import Estimate
from tts.evals.summary import Summary

BAR = 28
"""Width of the curve's longest bar, in characters."""


def show(summary: Summary) -> RenderableType:
    """The final table, the curve, the bill and where everything is."""
    parts: list[RenderableType] = [_title(summary), Text()]
    if summary.failed == summary.problems:
        parts += [Text("All problems failed, so nothing is graded."), Text()]
    elif summary.accuracy is None:
        parts += [Text("No problem has a reference answer, so nothing is graded."), Text()]
    else:
        parts += [_accuracies(summary), Text()]
    if len(summary.curve) > 1:
        parts += [_curve(summary), Text()]
    if summary.omitted:
        parts += [Text(f"No points between N = 1 and {summary.n}: {summary.omitted}.", "dim"), Text()]
    return Group(*parts, _bill(summary))


def _title(summary: Summary) -> Text:
    title = Text.assemble((f"{summary.strategy} on {summary.benchmark}", "bold"), f", {_count(summary.problems, 'problem')}")
    if summary.n > 1:
        title.append(f", up to {summary.n} candidates each")
    if summary.failed:
        title.append(f", {summary.failed} failed", "bold red")
    if ungraded := summary.problems - summary.graded - summary.failed:
        title.append(f", {ungraded} without an answer and so not graded", "yellow")
    if summary.truncated:
        title.append(f", {_count(summary.truncated, 'candidate')} cut off before the end", "yellow")
    if summary.missing:
        without = f", {_count(summary.unrated, 'candidate')} without any" if summary.unrated else ""
        title.append(f", {_count(summary.missing, 'verdict')} of the scorer missing{without}", "yellow")
    if summary.windowed:
        title.append(
            f", {_count(summary.windowed, 'candidate')} longer than the scorer's context and read in windows", "yellow"
        )
    return title


def _accuracies(summary: Summary) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("accuracy", justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("")
    n = summary.n
    rows: list[tuple[str, Estimate | None, str]] = [
        (summary.strategy, summary.accuracy, "what was chosen"),
        # what a search returns are no independent samples
        ("pass@1", summary.pass_at_1, "one sample" if summary.curve else "one of its candidates, at random"),
        (f"majority@{n}", summary.majority, "the most frequent answer"),
        (f"pass@{n}", summary.pass_at_n, "any sample is right: the ceiling"),
    ]
    for i, (name, estimate, note) in enumerate(rows if n > 1 else rows[:1]):
        if estimate:
            style = "bold green" if i == 0 else ""
            span = f"{estimate.low:.1%} – {estimate.high:.1%}"
            table.add_row(Text(name, style), Text(f"{estimate.value:.1%}", style), span, Text(note, "dim"))
    return table


def _curve(summary: Summary) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for heading in ("N", summary.strategy, "", "majority", "pass@N"):
        table.add_column(escape(heading), justify="left" if not heading else "right")
    for point in summary.curve:
        bar = ProgressBar(total=1, completed=point.strategy.value, width=BAR, complete_style="green", finished_style="green")
        row = [f"{x.value:.1%}" for x in (point.strategy, point.majority, point.passed)]
        table.add_row(str(point.k), row[0], bar, *row[1:])
    return table


def _bill(summary: Summary) -> Table:
    usage, seconds = summary.usage, summary.seconds
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_row(
        "tokens",
        f"{usage.generated:,} generated, {usage.prompt:,} prompt ({usage.cached:,} cached), {usage.scored:,} scored",
    )
    table.add_row(
        "seconds", f"{seconds.total:.1f} (generation {seconds.generation:.1f}, scoring {seconds.scoring:.1f}, overlapping)"
    )
    table.add_row("run", Text(summary.run))
    return table


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
