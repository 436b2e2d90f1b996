"""`tts sweep`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tts.commands.run import how_to_resume
from tts.errors import Exit, InputError
from tts.interrupts import on_interrupt
from tts.options import Count, convert, option, options_of
from tts.runs.settings import DataOptions, EngineOptions, LimitOptions, ResumeOptions, SamplingOptions, ScorerOptions
from tts.show.console import Output
from tts.strategies import get_strategy
from tts.types import Strategy


@dataclass(frozen=True, kw_only=True)
class SweepCommand(EngineOptions, ScorerOptions, DataOptions, SamplingOptions, LimitOptions, ResumeOptions):
    """Measure accuracy over N for several strategies, at the cost of the largest N."""

    topic = "Sweep"

    strategy: str = "bon,weighted,majority"
    """Strategies, separated by commas; each is a name that `tts strategies` lists, or file.py:Class."""
    n: str = option("1,2,4,8,16", short="-n")
    """Sizes, separated by commas."""
    seeds: Count = 1
    """Repetitions, with the seeds 0, 1, …; accuracies are their mean."""
    seed: int = option(0, cli=False)
    """Set by --seeds."""
    shuffle: bool = option(False, topic="Problems")
    """Shuffle the problems before taking the first ones."""
    repeat: Count = option(1, topic="Problems")
    """Times to solve each problem; accuracy is the mean."""
    concurrency: Count = option(64, kept=False)
    """Problems under way at once; results do not depend on it."""
    out: Path = option(Path("runs/sweep"), short="-o", kept=False)
    """Folder to create, or to continue."""
    dry_run: bool = option(False, topic="Output", kept=False)
    """Print what would be run, without loading a model or writing anything."""


def strategies(named: Mapping[str, Any]) -> dict[str, type[Strategy]]:
    """The strategies whose options the command takes; n is the sweep's."""
    return {name: get_strategy(name) for name in _names(named.get("strategy") or SweepCommand.strategy)}


def sweep(given: dict[str, Any], output: Output) -> int:
    """The command."""
    from tts.runs.progress import Progress
    from tts.runs.sweep import forecast_sweep
    from tts.runs.sweep import sweep as sweep_strategies
    from tts.show.live import RunView
    from tts.show.tables import show_sweep

    named = {o.name: convert(o, given.pop(o.name)) for o in options_of(SweepCommand) if o.name in given}
    names, sizes = _names(named.pop("strategy", SweepCommand.strategy)), _sizes(named.pop("n", SweepCommand.n))
    seeds, out, dry = named.pop("seeds", 1), named.pop("out", SweepCommand.out), named.pop("dry_run", False)
    if dry:
        found = forecast_sweep(names, sizes, seeds=seeds, **named, **given)
        text = "\n\n".join(forecast.show() for forecast in found)
        output.result(table=lambda: text, data=lambda: [forecast.to_json() for forecast in found])
        return Exit.OK
    progress = Progress()
    with on_interrupt(
        lambda: f"interrupted; resume with the same command ({out})" if out.exists() else how_to_resume(progress)
    ):
        result = output.watched(
            lambda: sweep_strategies(names, sizes, seeds=seeds, out=out, progress=progress, **named, **given),
            lambda console: RunView(progress, console),
        )
    output.result(table=lambda: show_sweep(result), data=result.to_json, brief=out)
    return Exit.OK


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _sizes(text: str) -> list[int]:
    try:
        return [int(size) for size in text.split(",")]
    except ValueError:
        raise InputError(f"--n is {text!r}; it should be sizes separated by commas, such as 1,2,4,8") from None
