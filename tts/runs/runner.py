"""A run: every problem of a benchmark, solved by one strategy, kept in a run folder and summed up."""

from __future__ import annotations

import asyncio
import os
import platform
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from tts import interrupts
from tts.data.store import Attempt, Record, RunStore, check_creatable
from tts.errors import InputError
from tts.evals.benchmarks import Benchmark, load_benchmark
from tts.evals.cost import Flops, flops_of
from tts.evals.summary import Seconds, Summary, summarize
from tts.grading.pool import Grader
from tts.models import checkpoints
from tts.options import build
from tts.registry import get_strategy, strategy_name
from tts.scorers import PLAIN, load_scorer
from tts.solving.budget import Budget
from tts.solving.clock import Clock
from tts.solving.generator import Generator, MeteredScorer
from tts.types import Aggregate, Engine, Part, Problem, Reward, Sampling, Scorer, Strategy, Usage, counts_final

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """What a run's results depend on. A run goes on only under the settings that it began with."""

    strategy: str = "bon"
    options: dict[str, Any] = field(default_factory=dict)
    engine: str = "transformers"
    engine_args: dict[str, Any] = field(default_factory=dict)
    model: str = "arith-policy"
    adapter: str | None = None
    system: str | None = None
    scorer: str = "arith-prm"
    scorer_format: str | None = None
    scorer_engine: str = "transformers"
    scorer_args: dict[str, Any] = field(default_factory=dict)
    score_over: Part | None = None
    benchmark: str = "arith"
    question_field: str | None = None
    answer_field: str | None = None
    id_field: str | None = None
    split: str | None = None
    data_dir: str | None = None
    grader: str | None = None
    limit: int | None = None
    shuffle: bool = False
    repeat: int = 1
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 2048
    alpha: float = 1.0
    aggregate: Aggregate = "mean"
    budget: int | None = None
    run_budget: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name, holds, expected in (
            ("limit", self.limit is None or self.limit >= 1, "at least 1"),
            ("repeat", self.repeat >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < float("inf"), "0 (greedy) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("budget", self.budget is None or self.budget >= 1, "at least 1"),
            ("run_budget", self.run_budget is None or self.run_budget >= 1, "at least 1"),
            ("seconds", self.seconds is None or 0 < self.seconds < float("inf"), "above 0"),
            ("alpha", abs(self.alpha) < float("inf"), "a finite number"),
        ):
            if not holds:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it should be {expected}")

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.max_tokens)


@dataclass
class Progress:
    """What a live view looks at while a run is under way."""

    stage: str = "starting"
    total: int = 0
    done: int = 0
    resumed: int = 0
    """Of `done`, those that an earlier session solved."""
    failed: int = 0
    graded: int = 0
    right: int = 0
    generated: int = 0
    """Tokens, in this session."""
    clock: Clock = field(default_factory=Clock)
    folder: Path | None = None

    def add(self, record: Record) -> None:
        self.done += 1
        self.failed += record.error is not None
        self.graded += record.correct is not None
        self.right += bool(record.correct)


def run(
    strategy: str | Strategy | None = None,
    *,
    concurrency: int = 64,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    url: str | None = None,
    scorer_url: str | None = None,
    engine_instance: Engine | None = None,
    scorer_instance: Scorer | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Summary:
    """Solve a benchmark and sum it up; the same as `tts run`.

    `strategy` is a name (by default bon), `file.py:Class` or an instance. Other keywords are fields of Settings (engine,
    model, scorer, benchmark, limit, seed, temperature, …) or, with a strategy by name, its options (n=16). `out` is the
    folder to make, by default a new one under runs/; `resume` goes on with an existing one, whose settings then hold.
    `url` is that of a server, for engines that use one, and `scorer_url` for reward models. An engine or scorer that is already
    loaded can be given as it is; `model` and `scorer` then only name it.

    Raises InputError for bad input. A problem that fails does not raise: it is counted in `summary.failed`.
    """
    job = prepare(
        strategy, concurrency=concurrency, out=out, resume=resume, url=url, scorer_url=scorer_url,
        engine_instance=engine_instance, scorer_instance=scorer_instance, progress=progress, **settings,
    )  # fmt: skip
    return wait(job.solve)


def prepare(
    strategy: str | Strategy | None = None,
    *,
    concurrency: int = 64,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    url: str | None = None,
    scorer_url: str | None = None,
    engine_instance: Engine | None = None,
    scorer_instance: Scorer | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Run:
    """A run that is ready to be solved: everything checked and loaded, its folder made. Arguments are those of `run`."""
    names = {f.name for f in fields(Settings)} - {"strategy", "options"}
    own = {name: value for name, value in settings.items() if name in names}
    options = {name: value for name, value in settings.items() if name not in names}
    progress = progress or Progress()
    if concurrency < 1:
        raise InputError(f"--concurrency is {concurrency}; it should be at least 1")
    if resume is not None:
        store: RunStore | None = RunStore.open(Path(resume))
        assert store
        chosen, solver = _resumed(store, strategy, options, own)
    else:
        store = None
        chosen, solver = _fresh(strategy or "bon", options, own)
    benchmark = load_benchmark(
        chosen.benchmark, chosen.limit, seed=chosen.seed, shuffle=chosen.shuffle, repeat=chosen.repeat,
        question_field=chosen.question_field, answer_field=chosen.answer_field, id_field=chosen.id_field,
        split=chosen.split, data_dir=chosen.data_dir, grader=chosen.grader,
    )  # fmt: skip
    folder = Path(out) if out is not None else _default_folder(chosen)
    if store is None:
        check_creatable(folder)
    progress.stage = f"loading {chosen.model}"
    engine = engine_instance or _load_engine(chosen, url)
    progress.stage = f"loading {chosen.scorer}"
    scorer = scorer_instance or _load_scorer(chosen, solver, scorer_url)
    if store is None:
        used = [chosen.model, *([chosen.scorer] if solver.uses_scorer and chosen.scorer not in PLAIN else [])]
        store = RunStore.create(folder, asdict(chosen), _facts(*used))
    loaded = [part for part, given in ((engine, engine_instance), (scorer, scorer_instance)) if part is not given]
    return Run(chosen, solver, benchmark, engine, scorer, store, concurrency, progress, loaded)


def _fresh(strategy: str | Strategy, options: dict[str, Any], own: dict[str, Any]) -> tuple[Settings, Strategy]:
    if isinstance(strategy, Strategy):
        if options:
            raise InputError(
                f"unknown setting {next(iter(options))!r}; a strategy given as an instance has its options already"
            )
        solver, name = strategy, strategy_name(type(strategy))
    else:
        solver, name = build(get_strategy(strategy), options), strategy
    return Settings(strategy=name, options=_options(solver), **own), solver


def _resumed(
    store: RunStore, strategy: str | Strategy | None, options: dict[str, Any], own: dict[str, Any]
) -> tuple[Settings, Strategy]:
    """The folder's settings and strategy; InputError where something else was asked for as well."""
    kept = Settings(**store.settings)
    if isinstance(strategy, Strategy):
        solver, name = strategy, strategy_name(type(strategy))
    else:
        name = strategy or kept.strategy
        cls = get_strategy(name)
        solver = build(cls, {**(kept.options if name == kept.strategy else {}), **options})
    asked = Settings(**{**asdict(kept), **own, "strategy": name, "options": _options(solver)})
    if asked != kept:
        different = next(f.name for f in fields(Settings) if getattr(asked, f.name) != getattr(kept, f.name))
        raise InputError(
            f"{store.folder} is a run with {different} = {getattr(kept, different)!r}, not {getattr(asked, different)!r};"
            " resume it without that option, or start a new run"
        )
    return kept, solver


def _options(solver: Strategy) -> dict[str, Any]:
    return asdict(solver)  # type: ignore[call-overload,no-any-return]


def _load_engine(settings: Settings, url: str | None) -> Engine:
    from tts.engines import load_engine

    given = {name: value for name in ("adapter", "system") if (value := getattr(settings, name)) is not None}
    return load_engine(settings.engine, settings.model, url=url, options={**settings.engine_args, **given})


def _load_scorer(settings: Settings, solver: Strategy, url: str | None) -> Scorer:
    if not solver.uses_scorer:
        return _NoScorer()
    return load_scorer(
        settings.scorer,
        format=settings.scorer_format,
        over=settings.score_over,
        final=counts_final(settings.alpha, settings.aggregate),
        engine=settings.scorer_engine,
        url=url,
        policy=settings.model,
        system=settings.system,
        options=settings.scorer_args,
    )


class _NoScorer:
    """Stands where a strategy says that it asks for no rewards."""

    async def score(self, candidates: Any) -> Any:
        raise RuntimeError("this strategy declares uses_scorer = False, yet it asked for rewards")


@dataclass
class Run:
    """A strategy, an engine, a scorer and problems, about to be solved or under way."""

    settings: Settings
    strategy: Strategy
    benchmark: Benchmark
    engine: Engine
    scorer: Scorer
    store: RunStore
    concurrency: int
    progress: Progress
    loaded: list[Engine | Scorer]
    """What was loaded for this run and is let go of after it."""
    run_budget: Budget = field(init=False)

    async def solve(self) -> Summary:
        """Solve every problem that has no row yet, and sum up."""
        try:
            return await self._solve()
        finally:
            for part in self.loaded:
                if (close := getattr(part, "close", None)) is not None:
                    await close()

    async def _solve(self) -> Summary:
        records = {record.id: record for record in self.store.recover()}
        earlier = self.store.timing_rows()
        before = Seconds(**earlier[-1]["run"]) if earlier else Seconds()
        cached: dict[str, int] = {row["id"]: row["cached"] for row in earlier}
        spent = sum(row.get("generated", 0) for row in earlier)  # also for problems that failed and will be tried again
        limit = self.settings.run_budget
        self.run_budget = Budget(None if limit is None else max(0, limit - spent))
        progress, start = self.progress, time.perf_counter()
        progress.stage, progress.total, progress.folder = "solving", len(self.benchmark.problems), self.store.folder
        for record in records.values():
            progress.add(record)
        progress.resumed = progress.done
        todo = iter([problem for problem in self.benchmark.problems if problem.id not in records])

        def elapsed() -> Seconds:
            clock = progress.clock
            return Seconds(
                total=before.total + time.perf_counter() - start,
                generation=before.generation + clock.seconds("generation"),
                scoring=before.scoring + clock.seconds("scoring"),
                waiting=before.waiting + clock.seconds("waiting"),
            )

        async def work(grader: Grader) -> None:
            for problem in todo:  # shared: each worker takes the next one that is left
                clock = Clock(parent=progress.clock)
                usage = Usage()
                record = await self._solve_one(problem, grader, clock, usage)
                cached[problem.id] = usage.cached
                spent = {kind: clock.seconds(kind) for kind in ("generation", "scoring", "waiting")}
                spent |= {"cached": usage.cached, "generated": usage.generated}
                self.store.append(record, {"id": problem.id, **spent, "run": asdict(elapsed())})
                records[record.id] = record
                progress.add(record)
                progress.generated += record.usage.generated

        try:
            async with _grader() as grader, asyncio.TaskGroup() as group:
                for _ in range(min(self.concurrency, len(self.benchmark.problems))):
                    group.create_task(work(grader))
        except* OSError as errors:  # only the run folder's: a problem's own errors are rows
            raise InputError(
                f"cannot write to {self.store.folder}: {errors.exceptions[0]}. What was solved is kept; mend that, then go on"
                f" with: tts run --resume {self.store.folder}"
            ) from errors
        ordered = [records[problem.id] for problem in self.benchmark.problems]
        found = sum(cached[record.id] for record in ordered if record.id in cached)
        summary = summarize(
            ordered,
            self.strategy,
            name=self.settings.strategy,
            benchmark=self.benchmark.name,
            repeat=self.benchmark.repeat,
            cached=found,
            seconds=elapsed(),
            run=str(self.store.folder),
            reward=self.reward,
            flops=self._flops(ordered, found),
        )
        self.store.write_summary(summary.to_json())
        return summary

    def _flops(self, records: list[Record], cached: int) -> Flops:
        scorer = self.settings.scorer if self.strategy.uses_scorer and self.settings.scorer not in PLAIN else None
        usage = sum((record.usage for record in records), Usage(cached=cached))
        return flops_of(records, usage, self.settings.model, scorer)

    def reward(self, attempt: Attempt) -> Reward:
        """An attempt's reward as the strategy saw it."""
        return Reward(attempt.rewards or (), attempt.final, alpha=self.settings.alpha, how=self.settings.aggregate)

    async def _solve_one(self, problem: Problem, grader: Grader, clock: Clock, usage: Usage) -> Record:
        try:
            generator = Generator(
                self.engine, problem, replace(self.settings.sampling, logprobs=getattr(self.scorer, "logprobs", False)),
                seed=self.settings.seed, usage=usage, clock=clock, grader=grader,
                budget=Budget(self.settings.budget, self.run_budget),
                deadline=None if self.settings.seconds is None else time.perf_counter() + self.settings.seconds,
            )  # fmt: skip
            scorer = MeteredScorer(
                self.scorer, usage=usage, clock=clock, alpha=self.settings.alpha, aggregate=self.settings.aggregate
            )
            result = await self.strategy.solve(problem, generator, scorer)
            verdicts = await grader.judge(result.candidates)
            return Record.solved(problem, result, verdicts, usage)
        except Exception as error:  # a failed problem is a row, not the end of its siblings
            return Record.failed(problem, error, usage)


@asynccontextmanager
async def _grader() -> AsyncIterator[Grader]:
    grader = Grader()
    try:
        yield grader
    finally:
        await grader.close()


def wait(solve: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run to the end, also where an event loop already runs (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return interrupts.run(solve())
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, solve()).result()


def _default_folder(settings: Settings) -> Path:
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{Path(settings.strategy).name.replace(':', '-')}-{Path(settings.benchmark).stem}"
    folder, number = Path("runs") / stem, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{stem}-{number}"
    return folder


def _git() -> dict[str, Any] | None:
    """The commit of the repository that the run is started in, if any, and whether files differ from it."""
    try:
        commit, status = (
            subprocess.run(["git", *command], capture_output=True, text=True, check=True, timeout=10).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": bool(status)}


def _facts(*names: str) -> dict[str, Any]:
    """Versions, hardware and what the models are, so that a run can be told from another later."""
    packages = {}
    for name in ("tts-toolkit", "torch", "transformers", "math-verify", "numpy", "vllm", "sglang"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git": _git(),
        "models": {name: checkpoints.fingerprint(name) for name in dict.fromkeys(names)},
        "versions": {"python": platform.python_version(), **packages},
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "system": sys.platform},
    }
