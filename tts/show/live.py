"""Live views of work under way, and traces as they are scored."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from tts.data.stream import Tally
from tts.runs.progress import Progress
from tts.runs.score import Scored
from tts.show.style import reward_style
from tts.types import Part


class LiveView:
    """Redraws from a thread of its own, so that it moves while models compute."""

    def __init__(self, console: Console) -> None:
        self.live = Live(get_renderable=self.render, console=console, refresh_per_second=8, transient=True)
        self._since: float | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> LiveView:
        self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.live.stop()

    def render(self) -> RenderableType:
        raise NotImplementedError

    def spent(self) -> float:
        """Seconds since this was asked for first."""
        with self._lock:
            self._since = self._since or time.monotonic()
        return time.monotonic() - self._since


class RunView(LiveView):
    """A run's progress."""

    def __init__(self, progress: Progress, console: Console) -> None:
        self.progress = progress  # first: what it shows is asked for at once
        super().__init__(console)

    def render(self) -> RenderableType:
        p = self.progress
        if p.stage != "solving":
            return Spinner("dots", Text(f"{p.stage} …"))
        spent, fresh = self.spent(), p.done - p.resumed
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


class FileView(LiveView):
    """The progress of a file of traces."""

    def __init__(self, tally: Tally, console: Console) -> None:
        self.tally = tally  # first: what it shows is asked for at once
        super().__init__(console)

    def render(self) -> RenderableType:
        t = self.tally
        if not t.running:
            return Spinner("dots", Text(f"{t.stage} …"))
        spent = self.spent()
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
    total = f"total {reward.total:.3f}" if reward.rated else "no verdict"
    return Group(title, grid, Text(f"{final}{total}\n", "bold"))


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
