"""`tts runs`, `show`, `compare`, `difficulty` and `report`: what finished runs hold."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tts.errors import Exit
from tts.interrupts import on_interrupt
from tts.options import Count, Settings, option
from tts.show.console import Output, warn


@dataclass(frozen=True, kw_only=True)
class RunsCommand(Settings):
    """List runs, the newest first."""

    topic: ClassVar[str] = "Runs"

    folder: Path = option(Path("runs"), positional=True)
    """Folder that holds run folders."""


def runs(settings: RunsCommand, output: Output) -> int:
    """The command."""
    from tts.show.browse import list_runs, runs_of

    folder = settings.folder
    output.result(
        table=lambda: list_runs(folder), data=lambda: runs_of(folder),
        brief="\n".join(row["run"] for row in runs_of(folder)) if output.quiet else None,
    )  # fmt: skip
    return Exit.OK


@dataclass(frozen=True, kw_only=True)
class ShowCommand(Settings):
    """Show a problem of a run: its candidates with their rewards, step by step, and its search tree."""

    topic: ClassVar[str] = "Problem"

    run: Path = option(positional=True)
    """Run folder."""
    problem: str = option(positional=True)
    """Id of the problem."""
    candidates: Count | None = option(None, shown="all")
    """Number of candidates to print, best first."""


def show(settings: ShowCommand, output: Output) -> int:
    """The command."""
    from tts.show.browse import find_problem, show_problem

    run, problem = settings.run, settings.problem
    output.result(
        table=lambda: show_problem(run, problem, candidates=settings.candidates),
        data=lambda: json.loads(find_problem(run, problem).to_json()),
    )
    return Exit.OK


@dataclass(frozen=True, kw_only=True)
class CompareCommand(Settings):
    """Compare two runs: is the second better than the first? Prints their paired difference with its interval."""

    topic: ClassVar[str] = "Runs"

    first: Path = option(positional=True)
    """Run folder."""
    second: Path = option(positional=True)
    """Another run folder, over the same problems."""


def compare(settings: CompareCommand, output: Output) -> int:
    """The command."""
    from tts.evals.compare import compare as compare_runs
    from tts.show.tables import show_comparison

    found = compare_runs(settings.first, settings.second)
    output.result(table=lambda: show_comparison(found), data=found.to_json, brief=found.difference.value)
    return Exit.OK


@dataclass(frozen=True, kw_only=True)
class DifficultyCommand(Settings):
    """Fit the difficulty bins of compute-optimal to runs over development problems. Prints its options."""

    topic: ClassVar[str] = "Runs"

    pool: Path = option(positional=True)
    """Run folder of independent samples with rewards, such as one of bon; its strategy is one to choose from."""
    runs: list[Path] = option(positional=True)
    """Run folders of other strategies over the same problems, of about the same cost."""
    pilot: Count = 4
    """Samples from which the difficulty is estimated."""


def difficulty(settings: DifficultyCommand, output: Output) -> int:
    """The command."""
    from tts.evals.difficulty import fit_difficulty
    from tts.show.tables import show_difficulty

    found = fit_difficulty(settings.pool, *settings.runs, pilot=settings.pilot)
    output.result(table=lambda: show_difficulty(found), data=found.to_json, brief=found.options)
    return Exit.OK


@dataclass(frozen=True, kw_only=True)
class ReportCommand(Settings):
    """Write one HTML file of runs: accuracy over N and over cost, calibration, and every trace with its rewards."""

    topic: ClassVar[str] = "Report"

    runs: list[Path] = option(positional=True)
    """Run folders."""
    out: Path = option(Path("report.html"), short="-o")
    """HTML file to write; plots and tables go into a folder beside it."""
    title: str | None = option(None, shown="the strategies and the benchmark")
    """Title of the report."""
    problems: Count = 1000
    """Problems shown with all of their candidates, at most; of more, a random sample is shown."""


def report(settings: ReportCommand, output: Output) -> int:
    """The command."""
    from tts.show.report import write_report

    out = settings.out
    with on_interrupt(lambda: f"interrupted before {out} was written; nothing is lost, give the same command again"):
        written = write_report(settings.runs, out, title=settings.title, problems=settings.problems, complain=warn)
    output.result(table=lambda: str(written), data=lambda: {"report": str(written)}, brief=written)
    return Exit.OK
