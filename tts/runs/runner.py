"""A run: every problem of a benchmark, solved by one strategy, kept in a run folder and summed up."""

from __future__ import annotations

import asyncio
import os
import platform
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from tts import interrupts
from tts.data.files import writing
from tts.data.identity import check_content, content_of, content_of_problems
from tts.data.records import Attempt, Outcome, Record
from tts.data.store import RunStore, check_creatable
from tts.engines import ENGINES, installed
from tts.errors import InputError
from tts.evals.benchmarks import Benchmark
from tts.evals.cost import Flops, flops_of
from tts.evals.summary import Seconds, Summary, summarize
from tts.grading.pool import Grader
from tts.options import check_resumable, configure, kept, keywords_of, options_of
from tts.runs.settings import RunSettings
from tts.scorers import is_reward_model
from tts.solving.budget import Budget
from tts.solving.clock import Clock
from tts.solving.generator import Generator, MeteredScorer
from tts.strategies import STRATEGIES, get_strategy
from tts.types import NO_INSTRUCTION, Candidate, Engine, Problem, Reward, Scorer, Strategy, Usage

T = TypeVar("T")


@dataclass
class Progress:
    """What a live view looks at while a run is under way."""

    stage: str = "starting"
    total: int = 0
    done: int = 0
    resumed: int = 0
    """Of `done`, those that an earlier session solved."""
    failed: int = 0
    damaged: int = 0
    """Rows that an earlier session had written and something has damaged since; their problems are solved again."""
    graded: int = 0
    right: int = 0
    generated: int = 0
    """Tokens, in this session."""
    clock: Clock = field(default_factory=Clock)
    folder: Path | None = None

    def add(self, record: Record | Outcome) -> None:
        self.done += 1
        self.failed += record.error is not None
        self.graded += record.correct is not None
        self.right += bool(record.correct)


@keywords_of(RunSettings)
def run(
    strategy: str | Strategy | None = None,
    *,
    engine_instance: Engine | None = None,
    scorer_instance: Scorer | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Summary:
    """Solve a benchmark and summarize it; the same as `tts run`.

    Args:
        strategy: A name (by default bon), `file.py:Class`, or an instance.
        engine_instance: An engine that is already loaded; `model` then only names it.
        scorer_instance: A scorer that is already loaded; `scorer` then only names it.
        progress: Updated while the run goes on.
        settings: Fields of `tts.runs.settings.RunSettings` (model, scorer, benchmark, limit, seed, out, resume, …) and, with a
            strategy by name, its options (n=16).

    Raises:
        InputError: Something given cannot be used. A problem that fails does not raise: `summary.failed` counts it.
    """
    job = prepare(
        strategy, engine_instance=engine_instance, scorer_instance=scorer_instance, progress=progress, **settings
    )  # fmt: skip
    return wait(job.solve)


def prepare(
    strategy: str | Strategy | None = None,
    *,
    engine_instance: Engine | None = None,
    scorer_instance: Scorer | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Run:
    """A run that is ready to be solved: everything checked and loaded, its folder made. Arguments are those of `run`."""
    progress = progress or Progress()
    _check_instances(engine_instance, scorer_instance)
    chosen, solver, store = resolve(strategy, settings)
    with ExitStack() as stack:
        if store is not None:
            store.lock()
            stack.callback(store.close)
        benchmark = _problems_of(chosen, store)
        chosen = replace(chosen, instruction=benchmark.instruction)  # so that run.json has it
        folder = chosen.out or _default_folder(chosen)
        progress.stage = "looking at data and models"
        content = content_of_run(chosen, benchmark)
        if store is not None:
            _compare(store, content, chosen)
        else:
            check_creatable(folder)
        engine, scorer, loaded = _load(chosen, solver, engine_instance, scorer_instance, progress)
        solver.check_scorer(scorer)
        if store is None:
            store = RunStore.create(folder, kept(chosen), {**facts(), "content": content})
        stack.pop_all()
    return Run(chosen, solver, benchmark, engine, scorer, store, progress, loaded)


def _problems_of(settings: RunSettings, store: RunStore | None) -> Benchmark:
    return settings.load_benchmark(
        seed=settings.seed, shuffle=settings.shuffle, repeat=settings.repeat, instruction=settings.instruction,
        numbered=store is not None and store.numbered,
    )  # fmt: skip


def settings_of(begun: Mapping[str, Any], **others: Any) -> RunSettings:
    """The settings that run.json holds, with others in their places. Raises InputError."""
    known = {o.name for o in options_of(RunSettings)}
    kept_then = {name: value for name, value in begun.items() if name in known}
    # a run from before there were instructions had none
    return configure(RunSettings, {"instruction": NO_INSTRUCTION, **kept_then, **others})


def content_of_run(settings: RunSettings, benchmark: Benchmark) -> dict[str, str]:
    """Fingerprints of all that a run's rows depend on besides its settings."""
    return {**content_of(settings), "benchmark": content_of_problems(benchmark.problems)}


def _compare(store: RunStore, content: dict[str, str], settings: RunSettings) -> None:
    """Raise InputError where a run was begun with other content, unless the settings accept that; then note it in run.json."""
    if changes := check_content(store.folder, store.read_run(), content, accept=settings.accept_changes):
        with writing(store.folder, "make room, then resume again"):
            store.note(**changes)


def load_run_of(
    settings: RunSettings,
    store: RunStore,
    *,
    progress: Progress,
    engine_instance: Engine | None = None,
    scorer_instance: Scorer | None = None,
) -> Run:
    """The run of a folder with what it needs loaded, to look at it or to redraw rows; nothing is written. Raises InputError."""
    _check_instances(engine_instance, scorer_instance)
    solver = configure(get_strategy(settings.strategy), settings.options, noun=f"the strategy {settings.strategy}")
    benchmark = _problems_of(settings, store)
    engine, scorer, loaded = _load(settings, solver, engine_instance, scorer_instance, progress)
    return Run(settings, solver, benchmark, engine, scorer, store, progress, loaded)


def _load(
    settings: RunSettings, solver: Strategy, engine: Engine | None, scorer: Scorer | None, progress: Progress
) -> tuple[Engine, Scorer, list[Engine | Scorer]]:
    """Engine and scorer, unless they are given, and those of the two that were loaded here."""
    loaded: list[Engine | Scorer] = []
    if engine is None:
        progress.stage = f"loading {settings.model}"
        loaded.append(engine := settings.load_engine())
    if scorer is None:
        progress.stage = f"loading {settings.scorer}"
        scorer = settings.load_scorer(policy=settings) if solver.uses_scorer else _NoScorer()
        loaded.append(scorer)
    return engine, scorer, loaded


def _check_instances(engine: Engine | None, scorer: Scorer | None) -> None:
    """Raise InputError where an object that a caller made lacks something that will be asked of it."""
    asked: dict[str, tuple[Any, tuple[str, ...]]] = {
        "Engine": (engine, ("context", "tells_steps", "encode", "decode", "generate", "close")),
        "Scorer": (scorer, ("by_step", "compares", "logprobs", "over", "score", "close")),
    }
    for base, (given, names) in asked.items():
        if given is not None and (lacking := [name for name in names if not hasattr(given, name)]):
            raise InputError(f"{type(given).__name__} has no {lacking[0]}; subclass tts.{base}, which has it")


def resolve(strategy: str | Strategy | None, given: Mapping[str, Any]) -> tuple[RunSettings, Strategy, RunStore | None]:
    """Settings and strategy of a run, and its folder where it is resumed. Nothing is loaded.

    Raises InputError for what cannot be used, and where a run is resumed with other settings than it was started with.
    """
    names = {option.name for option in options_of(RunSettings)}
    own = {name: value for name, value in given.items() if name in names}
    options = {name: value for name, value in given.items() if name not in names}
    if isinstance(strategy, Strategy) and options:
        raise InputError(f"unknown setting {next(iter(options))!r}; a strategy given as an instance has its options already")
    store = RunStore.open(Path(own["resume"])) if own.get("resume") is not None else None
    begun = store.settings if store is not None else {}
    if isinstance(strategy, Strategy):
        solver, name = strategy, STRATEGIES.name_of(type(strategy))
    else:
        name = strategy or begun.get("strategy", RunSettings.strategy)
        # what a resumed run does not say anew is as it was
        options = {**(begun["options"] if name == begun.get("strategy") else {}), **options}
        solver = configure(get_strategy(name), options, noun=f"the strategy {name}")
    own = {**own, "strategy": name, "options": asdict(solver)}  # type: ignore[call-overload]
    chosen = settings_of(begun, **own) if store is not None else configure(RunSettings, own)
    if store is not None:
        check_resumable(store.folder, begun, chosen)
    solver.check_sampling(chosen.sampling)
    return chosen, solver, store


class _NoScorer(Scorer):
    """The scorer of a strategy that declares that it asks for no rewards."""

    async def score(self, candidates: Sequence[Candidate]) -> list[Reward]:
        raise RuntimeError("this strategy declares uses_scorer = False, yet it asked for rewards")


@dataclass
class Run:
    """A strategy, an engine, a scorer and problems, about to be solved or under way."""

    settings: RunSettings
    strategy: Strategy
    benchmark: Benchmark
    engine: Engine
    scorer: Scorer
    store: RunStore
    progress: Progress
    loaded: list[Engine | Scorer]
    """What was loaded for this run and is let go of after it."""
    run_budget: Budget = field(init=False, default_factory=Budget)
    _server: str | None = field(init=False, default=None)
    """What the engine's server says that it runs."""

    async def solve(self) -> Summary:
        """Solve every problem that has no row yet, and sum up."""
        folder = self.store.folder
        try:
            with writing(folder, f"what was solved is kept; when that is fixed, resume with: tts run --resume {folder}"):
                return await self._solve()
        finally:
            self.store.close()
            for part in self.loaded:
                await part.close()

    async def _solve(self) -> Summary:
        progress, start = self.progress, time.perf_counter()
        solved, progress.damaged = self.store.recover()
        for outcome in solved.values():
            progress.add(outcome)
        progress.resumed = progress.done
        before, spent, timed = Seconds(), 0, set[str]()
        for row in self.store.timing_rows():  # also of problems that failed and will be tried again
            before, spent = Seconds(**row["run"]), spent + row.get("generated", 0)
            timed.add(row["id"])
        spent += sum(row.usage.generated for row in solved.values() if row.id not in timed)  # killed before its timing
        limit = self.settings.run_budget
        self.run_budget = Budget(None if limit is None else max(0, limit - spent))
        progress.stage, progress.total, progress.folder = "solving", len(self.benchmark.problems), self.store.folder
        todo = iter([problem for problem in self.benchmark.problems if problem.id not in solved])
        del solved, timed  # a large run's fill memory

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
                record = await self.solve_one(problem, grader, clock, usage)
                spent = {kind: clock.seconds(kind) for kind in ("generation", "scoring", "waiting")}
                spent |= {"cached": usage.cached, "generated": usage.generated}
                self._note_server()
                self.store.append(record, {"id": problem.id, **spent, "run": asdict(elapsed())})
                progress.add(record)
                progress.generated += record.usage.generated

        try:
            async with grading() as grader, asyncio.TaskGroup() as group:
                for _ in range(min(self.settings.concurrency, len(self.benchmark.problems))):
                    group.create_task(work(grader))
        except* InputError as errors:
            raise errors.exceptions[0] from None
        try:
            summary = self.summarize(elapsed())
        except InputError:
            raise
        except Exception as error:  # such as one of a strategy of the user's, which ranks subsets for the curve
            raise InputError(
                f"every problem is solved and kept in {self.store.folder}, but cannot be summarized: {type(error).__name__}:"
                f" {error}. Fix that, then summarize with: tts run --resume {self.store.folder}"
            ) from error
        self.store.write_summary(summary.to_json())
        return summary

    def summarize(self, seconds: Seconds) -> Summary:
        """The summary of what is in the run folder; `seconds` is the wall time."""
        ids = {problem.id for problem in self.benchmark.problems}
        cached = {row["id"]: row["cached"] for row in self.store.timing_rows()}
        return summarize(
            (record for record in self.store.stream() if record.id in ids),
            self.strategy,
            name=self.settings.strategy,
            benchmark=self.benchmark.name,
            repeat=self.benchmark.repeat,
            cached=sum(cached.get(name, 0) for name in ids),
            seconds=seconds,
            run=str(self.store.folder),
            reward=self.reward,
            compares=self.scorer.compares,
            flops=self._flops,
        )

    def _note_server(self) -> None:
        """Compare what a server says that it runs to what it said in earlier sessions, before its first row is written."""
        if self._server is None and (said := getattr(self.engine, "served", None)) is not None:
            content = self.store.read_run().get("content")
            if content is not None and "url" not in content:
                self.store.note(content={**content, "url": str(said)})
            _compare(self.store, {"url": str(said)}, self.settings)
            self._server = str(said)

    def _flops(self, usage: Usage, length: float) -> Flops:
        scorer = self.settings.scorer if self.strategy.uses_scorer and is_reward_model(self.settings.scorer) else None
        return flops_of(usage, length, self.settings.model, scorer)

    def reward(self, attempt: Attempt) -> Reward:
        """An attempt's reward as the strategy saw it."""
        return attempt.reward(self.settings.alpha, self.settings.aggregate)

    async def solve_one(self, problem: Problem, grader: Grader, clock: Clock, usage: Usage) -> Record:
        """The row of a problem, a pure function of the settings and the problem; one with an error if solving it raised one."""
        try:
            sampling = replace(self.settings.sampling, logprobs=self.scorer.logprobs, stop=tuple(self.settings.stop))
            generator = Generator(
                self.engine, problem, sampling,
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
async def grading() -> AsyncIterator[Grader]:
    """A grader whose processes end with the block."""
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


def _default_folder(settings: RunSettings) -> Path:
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


def facts() -> dict[str, Any]:
    """Versions and hardware, by which one run is told from another later."""
    runs_on = [ENGINES.get(name).requires for name in ENGINES]
    packages = ["tts-toolkit", "torch", "transformers", "math-verify", "numpy", *filter(None, runs_on)]
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git": _git(),
        "versions": {
            "python": platform.python_version(),
            **{name: number for name in packages if (number := installed(name)) is not None},
        },
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "system": sys.platform},
    }
