"""The `tts` command."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import fields
from enum import Enum, StrEnum
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer
from typer.core import TyperCommand

from tts.errors import InputError
from tts.interrupts import guard, on_interrupt
from tts.show.console import field_names, key_values, print_rich, warn, watched
from tts.train.cli import add_to
from tts.types import Aggregate, Part

_CommandLineError: Any = typer.BadParameter.__mro__[2]
"""click's base of all complaints about a command line; newer versions of typer carry a click of their own."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


AggregateName = StrEnum("AggregateName", {name: name for name in get_args(Aggregate)})  # type: ignore[misc]
"""Choices of --aggregate."""

MEAN = AggregateName("mean")

PartName = StrEnum("PartName", {name: name for name in get_args(Part)})  # type: ignore[misc]
"""Choices of --score-over."""

ScorerOption = Annotated[
    str, typer.Option(help="Reward model: a bundled name, a folder or a hub id; or another of `tts scorers`.")
]
FormatOption = Annotated[
    str | None,
    typer.Option(help="How it reads a trace; `tts scorers` lists the formats.", show_default="by its name or config"),
]
BackendOption = Annotated[str, typer.Option(help="What runs it: transformers or vllm in this process, or server.")]
UrlOption = Annotated[str | None, typer.Option(help="Of vLLM's pooling server, for --scorer-engine server.")]
ArgOption = Annotated[
    list[str] | None, typer.Option(help="An argument of the scorer, as in dtype=bfloat16 or window=true; repeatable.")
]
OverOption = Annotated[
    PartName | None, typer.Option(help="The part of a trajectory that is rated.", show_default="the model's own, else all")
]
AlphaOption = Annotated[float, typer.Option(help="Weight of the final reward in r_hat = aggregate(steps) + alpha * final.")]
AggregateOption = Annotated[AggregateName, typer.Option(help="How step rewards become one number.")]


class _WithStrategyOptions(TyperCommand):
    """Adds the strategies to --help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from rich.markup import escape

        from tts.options import describe
        from tts.registry import known_strategies

        lines = [f"[bold]{name}[/bold]  [cyan]{escape(describe(cls))}[/cyan]" for name, cls in known_strategies().items()]
        self.epilog = "Strategies with their own options (tts strategies says what they do):\n\n" + "\n\n".join(lines)
        super().format_help(ctx, formatter)


@app.callback(invoke_without_command=True)
def main(ctx: typer.Context) -> None:
    """Test-time scaling and decoding of reasoning models."""
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


@app.command(cls=_WithStrategyOptions, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run(
    ctx: typer.Context,
    strategy: Annotated[str, typer.Option(help="A name listed below, or your own: file.py:Class.")] = "bon",
    engine: Annotated[str, typer.Option(help="What generates; `tts engines` lists them.")] = "transformers",
    url: Annotated[str | None, typer.Option(help="Server of --engine server or sglang.")] = None,
    engine_arg: Annotated[
        list[str] | None, typer.Option(help="An argument of the engine, as in gpu_memory_utilization=0.9; repeatable.")
    ] = None,
    model: Annotated[str, typer.Option(help="Policy: a bundled name, a folder or a hub id.")] = "arith-policy",
    adapter: Annotated[str | None, typer.Option(help="LoRA adapter of the policy: a folder or a hub id.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.", show_default="the chat template's")] = None,
    scorer: ScorerOption = "arith-prm",
    scorer_format: FormatOption = None,
    scorer_engine: BackendOption = "transformers",
    scorer_url: UrlOption = None,
    scorer_arg: ArgOption = None,
    score_over: OverOption = None,
    benchmark: Annotated[
        str,
        typer.Option(
            help="arith; gsm8k, math500, aime24, aime25, amc23, minerva, olympiadbench or gpqa-diamond; a JSONL, CSV or"
            " Parquet file; or a hub id."
        ),
    ] = "arith",
    question_field: Annotated[
        str | None, typer.Option(help="What the data calls the question.", show_default="problem")
    ] = None,
    answer_field: Annotated[
        str | None, typer.Option(help="What the data calls the reference answer.", show_default="answer")
    ] = None,
    id_field: Annotated[str | None, typer.Option(help="What the data calls the id.", show_default="id")] = None,
    split: Annotated[
        str | None, typer.Option(help="Of a data set of the hub.", show_default="the benchmark's own, else test")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="A local copy of what lies on the hub.")] = None,
    grader: Annotated[
        str | None,
        typer.Option(
            help="math, letter, numeric, exact, or your own: file.py:function.", show_default="the benchmark's own, else math"
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Problems to solve.", show_default="100 of arith, all of a file")] = None,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="Take them in an order drawn by --seed.")] = False,
    repeat: Annotated[int, typer.Option(help="Times to solve each; accuracy is the mean.")] = 1,
    seed: Annotated[int, typer.Option(help="Same seed, same results.")] = 0,
    concurrency: Annotated[int, typer.Option(help="Problems under way at once; results do not depend on it.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="New tokens of a candidate, at most.")] = 2048,
    alpha: AlphaOption = 1.0,
    aggregate: AggregateOption = MEAN,
    budget: Annotated[
        int | None, typer.Option(help="Tokens to generate for a problem, at most.", show_default="no limit")
    ] = None,
    run_budget: Annotated[
        int | None,
        typer.Option(
            help="Tokens to generate in the whole run, at most; who gets them depends on the order.", show_default="no limit"
        ),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Time for a problem; then the best so far counts.", show_default="no limit")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to make.", show_default="runs/TIME-STRATEGY-BENCHMARK")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run folder, under its settings.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the run folder and nothing else.")] = False,
    log: Annotated[
        str | None, typer.Option(help="Send the summary to trackio or wandb, if installed.", show_default="nowhere")
    ] = None,
) -> None:
    """Solve a benchmark with a strategy. The strategy's own options follow: --strategy bon --n 16."""
    from tts.data.store import RunStore
    from tts.options import parse_arguments
    from tts.registry import get_strategy
    from tts.runs.runner import Progress, Settings
    from tts.runs.runner import run as run_benchmark
    from tts.show.terminal import LiveView
    from tts.show.tracking import load_service, log_run

    if resume is not None and out is not None:
        raise InputError("--resume goes on in its own folder; leave --out away")
    given, settings = _given(ctx), _settings(ctx)
    named = strategy
    if resume is not None and "strategy" not in given:
        named = RunStore.open(resume).settings["strategy"]
    options: dict[str, Any] = dict(parse_arguments(get_strategy(named), ctx.args, also=_flags(ctx)))
    Settings(**settings)  # what is wrong with these is said before anything is loaded
    service = load_service(log) if log is not None else None
    progress = Progress()

    def solve() -> Any:
        return run_benchmark(
            concurrency=concurrency, out=out, resume=resume, url=url, scorer_url=scorer_url, progress=progress,
            **settings, **options,
        )  # fmt: skip

    with on_interrupt(lambda: _how_to_resume(progress)):
        summary = watched(solve, lambda console: LiveView(progress, console), hidden=as_json or quiet)
    if service is not None:
        log_run(service, summary, RunStore.open(Path(summary.run)).settings)
    if as_json:
        print(json.dumps(summary.to_json()))
    elif quiet:
        print(summary.run)
    else:
        from rich.console import Console

        from tts.show.terminal import show

        Console(highlight=False).print(show(summary))
    if summary.failed:
        warn(
            f"{summary.failed} of {summary.problems} problems failed; their rows in {summary.run}/results.jsonl hold the"
            f" errors. Try them again with: tts run --resume {summary.run}"
        )
        raise typer.Exit(1)


def _with_options_of_run(*without: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of `tts run`, but for those it has itself and some others."""

    def extend(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in signature(command, eval_str=True).parameters.values() if p.kind is not Parameter.VAR_KEYWORD]
        taken = {*without, *(p.name for p in own)}
        added = [p for p in signature(run, eval_str=True).parameters.values() if p.name not in taken]
        parameters = [*own, *(p.replace(kind=Parameter.KEYWORD_ONLY) for p in added)]
        command.__signature__ = Signature([p.replace(kind=Parameter.KEYWORD_ONLY) for p in parameters])  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return extend


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
@_with_options_of_run("seed", "resume", "quiet", "log")
def sweep(
    ctx: typer.Context,
    strategy: Annotated[
        str, typer.Option(help="Names with commas between, or your own: file.py:Class.")
    ] = "bon,weighted,majority",
    n: Annotated[str, typer.Option("--n", help="Sizes, with commas between.")] = "1,2,4,8,16",
    seeds: Annotated[int, typer.Option(help="Repetitions, by the seeds 0, 1, …; accuracies are their mean.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder to make, or to go on with.")] = Path("runs/sweep"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    **_: Any,
) -> None:
    """Accuracy over N for several strategies, at the cost of the largest N. Takes the options of `tts run` as well."""
    from tts.options import parse_arguments
    from tts.registry import get_strategy
    from tts.runs.runner import Progress, Settings
    from tts.runs.sweep import sweep as sweep_strategies
    from tts.show.tables import show_sweep
    from tts.show.terminal import LiveView

    names = [name.strip() for name in strategy.split(",") if name.strip()]
    try:
        sizes = [int(size) for size in n.split(",")]
    except ValueError:
        raise InputError(f"--n is {n!r}; it should be sizes with commas between, such as 1,2,4,8") from None
    settings = {name: value for name, value in _settings(ctx).items() if name != "strategy"}
    Settings(**settings)
    options: dict[str, Any] = dict(parse_arguments([get_strategy(name) for name in names], ctx.args, also=_flags(ctx)))
    progress, given = Progress(), ctx.params

    def work() -> Any:
        return sweep_strategies(
            names, sizes, seeds=seeds, out=out, progress=progress, url=given["url"], scorer_url=given["scorer_url"],
            concurrency=given["concurrency"], **settings, **options,
        )  # fmt: skip

    with on_interrupt(
        lambda: f"interrupted; resume with the same command ({out})" if out.exists() else _how_to_resume(progress)
    ):
        found = watched(work, lambda console: LiveView(progress, console), hidden=as_json)
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        print_rich(show_sweep(found))


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A run folder.")],
    second: Annotated[Path, typer.Argument(help="Another, over the same problems.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Is the second run better than the first? Their paired difference with its interval."""
    from tts.evals.compare import compare as compare_runs
    from tts.show.tables import show_comparison

    found = compare_runs(first, second)
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        print_rich(show_comparison(found))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    out: Annotated[Path, typer.Option(help="HTML file to write; plots and tables go into a folder beside it.")] = Path(
        "report.html"
    ),
    title: Annotated[
        str | None, typer.Option(help="What stands on top.", show_default="the strategies and the benchmark")
    ] = None,
) -> None:
    """One HTML file of runs: accuracy over N and over cost, calibration, and every trace with its rewards."""
    from tts.show.report import write_report

    with on_interrupt(lambda: f"interrupted before {out} was written; nothing is lost, give the same command again"):
        print(write_report(runs, out, title=title, complain=warn))


@app.command()
def show(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    problem: Annotated[str, typer.Argument(help="The problem's id.")],
    candidates: Annotated[int | None, typer.Option(help="Candidates to print, best first.", show_default="all")] = None,
) -> None:
    """A problem of a run: its candidates with their rewards, step by step, and its search tree."""
    from tts.show.browse import show_problem

    print_rich(show_problem(run, problem, candidates=candidates))


@app.command()
def runs(folder: Annotated[Path, typer.Argument(help="Where the run folders are.")] = Path("runs")) -> None:
    """List runs, the newest first."""
    from tts.show.browse import list_runs

    print_rich(list_runs(folder))


@app.command()
def score(
    traces: Annotated[
        Path, typer.Argument(help="JSONL: problem, and text, steps, or thinking and response; or a run's results.jsonl.")
    ],
    scorer: ScorerOption = "arith-prm",
    scorer_format: FormatOption = None,
    scorer_engine: BackendOption = "transformers",
    scorer_url: UrlOption = None,
    scorer_arg: ArgOption = None,
    score_over: OverOption = None,
    model: Annotated[str, typer.Option(help="The policy, for scorers that ask it.")] = "arith-policy",
    alpha: AlphaOption = 1.0,
    aggregate: AggregateOption = MEAN,
    rename: Annotated[
        list[str] | None,
        typer.Option("--field", help="What the file calls a field, as in problem=question; repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write.", show_default="standard output")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with --out where it ends.")] = False,
    limit: Annotated[int | None, typer.Option(help="Traces to score.", show_default="all")] = None,
    bare: Annotated[bool, typer.Option("--bare", help="Write the rewards only, not the trace's own fields.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print traces with their steps coloured by reward.")] = False,
) -> None:
    """Reward every trace of a file: id, step_rewards, final, total."""
    from tts.data.stream import Tally, how_to_resume, rejected_of
    from tts.runs.score import ScoreSettings, score_file
    from tts.show.terminal import FileView, show_trace

    if resume and out is None:
        raise InputError("--resume goes on with a file; say which with --out")
    if limit is not None and limit < 1:
        raise InputError(f"--limit is {limit}; it should be at least 1")
    names = field_names(rename or [])
    settings = ScoreSettings(
        str(traces), scorer, scorer_format, scorer_engine, key_values("--scorer-arg", scorer_arg or []),
        cast("Part | None", score_over.value if score_over else None), model, alpha,
        cast("Aggregate", aggregate.value), names, bare,
    )  # fmt: skip
    tally = Tally()

    def work() -> Any:
        from rich.console import Console

        console = Console(highlight=False)
        return score_file(
            settings, out=out, resume=resume, limit=limit, url=scorer_url, tally=tally,
            write=None if show else print, complain=warn,
            show=(lambda item, over: console.print(show_trace(item, over))) if show else None,
        )  # fmt: skip

    with on_interrupt(lambda: how_to_resume(tally, "scored", out)):
        watched(work, lambda console: FileView(tally, console), hidden=show or (out is None and sys.stdout.isatty()))
    if out is not None:
        before = f", {tally.resumed} before" if tally.resumed else ""
        print(f"{tally.done} {'trace' if tally.done == 1 else 'traces'} scored{before}: {out}")
    if tally.rejected:
        where = f"; see {rejected_of(out)}" if out is not None else ""
        warn(f"{tally.rejected} of {tally.done + tally.rejected} traces could not be read{where}")
        raise typer.Exit(1)


@app.command()
def scorers() -> None:
    """List how reward models are read, and the scorers without one."""
    from rich.console import Console

    from tts.scorers import PLAIN
    from tts.scorers.formats import FORMATS
    from tts.show.terminal import show_scorers

    Console(highlight=False).print(show_scorers(FORMATS, PLAIN))


@app.command()
def engines() -> None:
    """List the engines: which are installed, in which version, and on what device they would run."""
    from rich.console import Console

    from tts.engines import BACKENDS
    from tts.show.terminal import show_engines

    Console(highlight=False).print(show_engines(BACKENDS))


@app.command()
def strategies(
    what: Annotated[str | None, typer.Argument(metavar="[show]", help="`show` explains one strategy.")] = None,
    name: Annotated[str | None, typer.Argument(help="A name from the list, or file.py:Class.")] = None,
) -> None:
    """List the strategies with their options and papers; `tts strategies show beam` explains one."""
    from rich.console import Console

    from tts.registry import get_strategy, known_strategies
    from tts.show.terminal import show_strategies, show_strategy

    console = Console(highlight=False)
    if what is None:
        console.print(show_strategies(known_strategies()))
    elif what == "show" and name is not None:
        console.print(show_strategy(name, get_strategy(name)))
    else:
        raise InputError(
            f"expected `tts strategies` or `tts strategies show NAME`, got {' '.join(filter(None, (what, name)))!r}"
        )


def _given(ctx: typer.Context) -> set[str]:
    """Parameters that the command line names, as opposed to those left at their defaults."""
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def _settings(ctx: typer.Context) -> dict[str, Any]:
    """What the command line says of a run's settings."""
    from tts.runs.runner import Settings

    names, given = {f.name for f in fields(Settings)}, _given(ctx)
    settings = {name: _plain(value) for name, value in ctx.params.items() if name in given & names}
    for option in ("engine_arg", "scorer_arg"):
        if pairs := ctx.params.get(option):
            settings[f"{option}s"] = key_values(f"--{option.replace('_', '-')}", pairs)
    return settings


def _plain(value: Any) -> Any:
    """An option's value as it is kept: no enum, no path."""
    return value.value if isinstance(value, Enum) else str(value) if isinstance(value, Path) else value


def _flags(ctx: typer.Context) -> list[str]:
    return [option for parameter in ctx.command.params for option in parameter.opts]


def _how_to_resume(progress: Any) -> str:
    if progress.folder is None:
        return "interrupted before anything was solved; nothing was written"
    return (
        f"interrupted with {progress.done} of {progress.total} problems solved. Go on with: tts run --resume {progress.folder}"
    )


def _main() -> int:
    """The exit code of the command line; a user's mistake is one line on stderr and exit code 2."""
    try:
        return app(standalone_mode=False) or 0
    except InputError as error:
        warn(str(error))
    except _CommandLineError as error:
        warn(" ".join(str(error.format_message()).split()))
    return 2


def entry() -> None:
    """The console script."""
    sys.exit(guard(_main))


add_to(app)

if __name__ == "__main__":
    entry()
