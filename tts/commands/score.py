"""`tts score`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields

from tts.data.stream import Tally, how_to_resume, rejected_of
from tts.errors import Exit
from tts.interrupts import on_interrupt
from tts.options import option
from tts.runs.settings import ScoreSettings
from tts.show.console import Output, warn


@dataclass(frozen=True, kw_only=True)
class ScoreCommand(ScoreSettings):
    """Score every trace of a file: id, step_rewards, final, total."""

    show: bool = option(False, kept=False)
    """Print traces with their steps coloured by reward."""


def score(settings: ScoreCommand, output: Output) -> int:
    """The command."""
    from rich.console import Console

    from tts.runs.score import score_file
    from tts.show.live import FileView, show_trace

    tally, out = Tally(), settings.out
    console = Console(highlight=False)
    file = ScoreSettings(**{f.name: getattr(settings, f.name) for f in fields(ScoreSettings)})

    def work() -> Tally:
        return score_file(
            file, tally=tally, write=None if settings.show else print, complain=warn,
            show=(lambda item, over: console.print(show_trace(item, over))) if settings.show else None,
        )  # fmt: skip

    hidden = settings.show or (out is None and sys.stdout.isatty())
    with on_interrupt(lambda: how_to_resume(tally, "scored", out)):
        work() if hidden else output.watched(work, lambda console: FileView(tally, console))
    if out is not None:
        counts = {"missing_verdicts": tally.missing, "unrated": tally.unrated, "windowed": tally.windowed}
        output.result(table=lambda: tally.summary("scored", out), data=lambda: tally.to_json(out) | counts, brief=out)
    if tally.missing or tally.unrated:
        warn(f"the scorer gave no verdict {tally.missing} times (null), and none at all on {tally.unrated} traces")
    if tally.windowed:
        traces = "1 trace was longer" if tally.windowed == 1 else f"{tally.windowed} traces were longer"
        warn(f"{traces} than the context of {settings.scorer} and read in windows; rows have them under 'windows'")
    if tally.rejected:
        where = f"; see {rejected_of(out)}" if out is not None else ""
        warn(f"{tally.rejected} of {tally.done + tally.rejected} traces could not be read{where}")
        return Exit.FAILURES
    return Exit.OK
