"""`tts run`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tts.data.store import RunStore
from tts.errors import Exit
from tts.interrupts import on_interrupt
from tts.options import option
from tts.runs.settings import RunSettings
from tts.show.console import Output, warn
from tts.strategies import get_strategy
from tts.types import Strategy


@dataclass(frozen=True, kw_only=True)
class RunCommand(RunSettings):
    """Solve a benchmark with a strategy."""

    log: Literal["trackio", "wandb"] | None = option(None, shown="nowhere", topic="Output", kept=False)
    """Service that the summary is sent to; it has to be installed."""
    dry_run: bool = option(False, topic="Output", kept=False)
    """Print problems, samples, models and estimated tokens and time, without loading a model or writing anything."""


def strategies(named: Mapping[str, Any]) -> dict[str, type[Strategy]]:
    """The strategy whose options the command takes."""
    name = named.get("strategy")
    if name is None and named.get("resume") is not None:
        name = RunStore.open(Path(named["resume"])).settings["strategy"]
    name = name or RunSettings.strategy
    return {name: get_strategy(name)}


def run(given: dict[str, Any], output: Output) -> int:
    """The command."""
    from tts.runs import runner
    from tts.runs.forecast import forecast
    from tts.runs.progress import Progress
    from tts.show.live import RunView
    from tts.show.summary import show
    from tts.show.tracking import load_service, log_run

    service, dry = given.pop("log", None), given.pop("dry_run", False)
    strategy = given.pop("strategy", None)
    tracker = load_service(service) if service is not None else None
    if dry:
        settings, solver, store = runner.resolve(strategy, given)
        found = forecast(settings, solver, solved=store.solved() if store is not None else 0)
        output.result(table=found.show, data=found.to_json)
        return Exit.OK
    progress = Progress()
    with on_interrupt(lambda: how_to_resume(progress)):
        summary = output.watched(
            lambda: runner.run(strategy, progress=progress, **given), lambda console: RunView(progress, console)
        )
    for notice in progress.notices:
        warn(notice)
    if tracker is not None:
        log_run(tracker, summary, RunStore.open(Path(summary.run)).settings)
    output.result(table=lambda: show(summary), data=summary.to_json, brief=summary.run)
    if progress.damaged:
        warn(f"damaged lines in {summary.run}/results.jsonl: {progress.damaged}; their problems were solved again")
    if 2 * summary.one_step > summary.candidates:
        warn(
            f"{summary.one_step} of {summary.candidates} candidates have one step only, so step rewards and searches see them"
            " as a whole. If this policy ends its steps in another way, say how with --step-delimiter: line, sentence, …"
        )
    if summary.failed:
        warn(
            f"{summary.failed} of {summary.problems} problems failed; their rows in {summary.run}/results.jsonl hold the"
            f" errors. Try them again with: tts run --resume {summary.run}"
        )
        return Exit.FAILURES
    return Exit.OK


def how_to_resume(progress: Any) -> str:
    """The line that an interrupted run ends with."""
    if progress.folder is None:
        return "interrupted before anything was solved; nothing was written"
    return (
        f"interrupted with {progress.done} of {progress.total} problems solved. Resume with: tts run --resume {progress.folder}"
    )
