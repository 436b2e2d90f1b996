"""What a person sees: a live line while a run is under way, then one table and a curve."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from tts.data.stream import Tally
from tts.engines import Backend
from tts.evals.summary import Estimate, Summary
from tts.options import describe, options_of, paper
from tts.runs.runner import Progress
from tts.runs.score import Scored
from tts.scorers.formats import Format
from tts.types import Part, Strategy

BAR = 28
"""Width of the curve's longest bar, in characters."""


class LiveView:
    """Redraws a run's progress from a thread of its own, so that it moves while models compute."""

    def __init__(self, progress: Progress, console: Console) -> None:
        self.progress, self.started = progress, time.monotonic()
        self.live = Live(get_renderable=self.render, console=console, refresh_per_second=8, transient=True)
        self._solving_since: float | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> LiveView:
        self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.live.stop()

    def render(self) -> RenderableType:
        p = self.progress
        if p.stage != "solving":
            return Spinner("dots", Text(f"{p.stage} …"))
        with self._lock:
            self._solving_since = self._solving_since or time.monotonic()
        spent = time.monotonic() - self._solving_since
        fresh = p.done - p.resumed
        left = f"{_time(spent / fresh * (p.total - p.done))} left" if fresh else "…"
        grid = Table.grid(padding=(0, 2))
        grid.add_row(
            ProgressBar(total=p.total, completed=p.done, width=24),
            f"{p.done}/{p.total} problems" + (f", {p.failed} failed" if p.failed else ""),
            f"accuracy {p.right / p.graded:.1%}" if p.graded else "",
            f"{p.generated / spent:,.0f} tokens/s" if p.generated else "",
            f"generation {p.clock.seconds('generation'):.0f} s, scoring {p.clock.seconds('scoring'):.0f} s",
            left,
        )
        return grid


def show(summary: Summary) -> RenderableType:
    """The final table, the curve, the bill and where everything is."""
    parts: list[RenderableType] = [_title(summary), Text()]
    if summary.accuracy is None:
        parts += [Text("No problem has a reference answer, so nothing is graded."), Text()]
    else:
        parts += [_accuracies(summary), Text()]
    if len(summary.curve) > 1:
        parts += [_curve(summary), Text()]
    return Group(*parts, _bill(summary))


def show_strategies(known: Mapping[str, type[Strategy]]) -> RenderableType:
    """A block for each strategy: its line, its options, its paper."""
    blocks: list[RenderableType] = []
    for name, cls in known.items():
        blocks.append(Text.assemble((name, "bold"), "  ", first_line(cls)))
        details = [Text(describe(cls), "cyan"), Text(paper(cls), "dim")]
        blocks += [Padding(detail, (0, 0, 0, 4)) for detail in details if detail]
    blocks.append(Text("\nThe options' meaning: tts strategies show NAME. Your own: tts run --strategy file.py:Class", "dim"))
    return Group(*blocks)


def show_strategy(name: str, cls: type[Strategy]) -> RenderableType:
    """What a strategy does, where it comes from, and every option with type, default and help."""
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for heading in ("option", "takes", "default", ""):
        table.add_column(heading, overflow="fold")
    for option in options_of(cls):
        table.add_row(Text(option.flag, "cyan"), Text(option.type), Text(option.default), Text(option.help, "dim"))
    about = " ".join(inspect.cleandoc(cls.__doc__ or "").split())
    return Group(Text.assemble((name, "bold"), "  ", about), Text(paper(cls), "dim"), Text(), table)


def first_line(cls: type[Strategy]) -> str:
    """What a strategy's docstring says first."""
    return (cls.__doc__ or "").strip().partition("\n")[0]


class FileView(LiveView):
    """The same for a file of traces that is worked through."""

    def __init__(self, tally: Tally, console: Console) -> None:
        self.tally = tally  # first: what it shows is asked for at once
        super().__init__(Progress(), console)

    def render(self) -> RenderableType:
        t = self.tally
        if not t.running:
            return Spinner("dots", Text(f"{t.stage} …"))
        with self._lock:
            self._solving_since = self._solving_since or time.monotonic()
        spent = time.monotonic() - self._solving_since
        left = f"{_time(spent / t.bytes * (t.total_bytes - t.bytes))} left" if t.bytes else "…"
        grid = Table.grid(padding=(0, 2))
        grid.add_row(
            ProgressBar(total=max(1, t.total_bytes), completed=t.bytes, width=24),
            f"{t.done} traces" + (f", {t.rejected} rejected" if t.rejected else ""),
            f"{t.tokens / spent:,.0f} tokens/s" if t.tokens else "",
            left,
        )
        return grid


def show_trace(item: Scored, over: Part) -> RenderableType:
    """A trace with its rewards before its steps, in colours from red (0) to green (1)."""
    trace, reward = item.trace.candidate, item.value
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(overflow="fold")
    rated = iter(reward.steps)
    for heading, steps, shown in (
        ("thinking", trace.trajectory.thinking, over != "response"),
        ("response", trace.trajectory.response, over != "think"),
    ):
        if steps:
            grid.add_row("", Text(heading, "dim italic"))
        for step in steps:
            value = next(rated, None) if shown else None
            style = reward_style(value)
            grid.add_row(Text("" if value is None else f"{value:.3f}", style), Text(step, style))
    final = "" if reward.final is None else f"final {reward.final:.3f}, "
    title = Text.assemble((trace.problem.id, "bold"), "  ", (" ".join(trace.problem.prompt.split()), "dim"))
    return Group(title, grid, Text(f"{final}total {reward.total:.3f}\n", "bold"))


def reward_style(value: float | None) -> str:
    """From red (0) through yellow to green (1); none for what is no share."""
    if value is None or not 0 <= value <= 1:
        return ""
    red, green = min(1.0, 2 - 2 * value), min(1.0, 2 * value)
    return f"rgb({round(60 + 170 * red)},{round(60 + 150 * green)},70)"


def show_scorers(formats: Mapping[str, Format], plain: Mapping[str, str]) -> RenderableType:
    """How reward models are read, and the scorers that are none."""
    tables = []
    for heading, rows in (("--scorer-format", {n: f.about for n, f in formats.items()}), ("--scorer", plain)):
        table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
        table.add_column(heading, no_wrap=True)
        table.add_column("")
        for name, about in rows.items():
            table.add_row(Text(name, "bold"), Text(about, "dim"))
        tables.append(table)
    return Group(
        "A reward model is a bundled name (arith-prm, arith-prm-response), a folder or a hub id. Its format is recognised:\n",
        tables[0],
        "\nWithout a reward model:\n",
        tables[1],
    )


def show_engines(backends: Mapping[str, Backend]) -> RenderableType:
    """A row for each engine, and how to install those that are missing."""
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for heading in ("engine", "version", "device", ""):
        table.add_column(heading)
    for name, backend in backends.items():
        state = backend.version or "not installed"
        about = backend.about if backend.version else f"pip install 'tts-toolkit[{backend.extra}]'"
        device = "the server's" if name == "server" else _device() if backend.version else ""
        table.add_row(Text(name, "bold"), Text(state, "" if backend.version else "yellow"), device, Text(about, "dim"))
    return table


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return f"cuda ({torch.cuda.get_device_name(0)})"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _title(summary: Summary) -> Text:
    title = Text.assemble((f"{summary.strategy} on {summary.benchmark}", "bold"), f", {_count(summary.problems, 'problem')}")
    if summary.n > 1:
        title.append(f", up to {summary.n} candidates each")
    if summary.failed:
        title.append(f", {summary.failed} failed", "bold red")
    if ungraded := summary.problems - summary.graded - summary.failed:
        title.append(f", {ungraded} without an answer and so not graded", "yellow")
    if summary.truncated:
        title.append(f", {_count(summary.truncated, 'candidate')} cut off by --max-tokens or the context", "yellow")
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


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
