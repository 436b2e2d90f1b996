"""`tts verify`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Gt, Le
from pydantic import BeforeValidator

from tts.errors import Exit
from tts.interrupts import on_interrupt
from tts.options import Count, Settings, option
from tts.runs.settings import Method
from tts.show.console import Output


def _percent(value: Any) -> Any:
    """`5%` as 0.05."""
    return float(value[:-1]) / 100 if isinstance(value, str) and value.endswith("%") else value


@dataclass(frozen=True, kw_only=True)
class VerifyCommand(Settings):
    """Check a run: redraw some of its rows from its settings and compare them, and compute its summary again."""

    topic: ClassVar[str] = "Check"

    run: Path = option(positional=True)
    """Run folder. Nothing is written to it."""
    share: Annotated[float, BeforeValidator(_percent), Gt(0), Le(1)] = option(0.05, shown="5%")
    """Share of the rows that are redrawn, such as 5% or 0.05."""
    count: Count | None = option(None, shown="the share")
    """Number of rows that are redrawn, instead of a share."""
    seed: int | None = option(None, shown="another one each time")
    """Seed by which the rows are chosen."""
    method: Method = "auto"
    """How rows are compared: bytes, statistics, or auto: bytes where engine and scorer are exact."""
    model: str | None = option(None, shown="the run's", topic="Where this machine has it")
    """Name or folder of the run's policy."""
    scorer: str | None = option(None, shown="the run's", topic="Where this machine has it")
    """Name or folder of the run's scorer."""
    benchmark: str | None = option(None, shown="the run's", topic="Where this machine has it")
    """Name or file of the run's problems."""
    url: str | None = option(None, shown="the run's", topic="Where this machine has it")
    """Address of the engine's server."""


PLACES = ("model", "scorer", "benchmark", "url")


def verify(settings: VerifyCommand, output: Output) -> int:
    """The command."""
    from tts.runs.progress import Progress
    from tts.runs.verify import verify as verify_run
    from tts.show.live import RunView
    from tts.show.verification import show

    progress = Progress()
    places = {name: value for name in PLACES if (value := getattr(settings, name)) is not None}
    with on_interrupt(lambda: "interrupted before the check was done; nothing was written"):
        found = output.watched(
            lambda: verify_run(
                settings.run, share=settings.share, count=settings.count, seed=settings.seed, method=settings.method,
                progress=progress, **places,
            ),
            lambda console: RunView(progress, console),
        )  # fmt: skip
    output.result(table=lambda: show(found), data=found.to_json, brief="verified" if found.verified else "not verified")
    return Exit.OK if found.verified else Exit.FAILURES
