"""A run: every problem of a benchmark, solved by one strategy, kept in a run folder and summed up."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from tts import interrupts
from tts.data.files import writing
from tts.data.identity import check_content, content_of, content_of_problems
from tts.data.records import Attempt, Record
from tts.data.store import RunStore, check_creatable
from tts.errors import InputError, UnsupportedError
from tts.evals.benchmarks import Benchmark
from tts.evals.cost import Flops, flops_of
from tts.evals.summary import Seconds, Summary, summarize
from tts.grading.pool import Grader
from tts.options import check_resumable, configure, kept, keywords_of, options_of
from tts.runs.facts import facts
from tts.runs.models import Models
from tts.runs.progress import Progress
from tts.runs.settings import RunSettings
from tts.scorers import is_reward_model
from tts.solving.budget import Budget
from tts.solving.clock import Clock
from tts.solving.generator import Generator, MeteredScorer
from tts.strategies import STRATEGIES, get_strategy
from tts.types import NO_INSTRUCTION, Engine, Problem, Reward, Scorer, Strategy, Usage

T = TypeVar("T")


EQUAL = 10
"""Problems that fail in a row with the same error, after which a run stops."""

RESUME = "what was solved is kept; when that is fixed, resume with: tts run --resume {folder}"


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
    models: Models | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Run:
    """A run that is ready to be solved: everything checked, what its problems need loaded, its folder made.

    `models`, instead of the two instances, are those of several runs, and the caller closes them. Other arguments are those of
    `run`.
    """
    progress = progress or Progress()
    chosen, solver, store = resolve(strategy, settings)
    own = Models(chosen, progress, engine_instance, scorer_instance)
    models = models or own
    with ExitStack() as stack:
        if store is not None:
            store.lock()
            stack.callback(store.close)
        benchmark = problems_of(chosen, store)
        chosen = replace(chosen, instruction=benchmark.instruction)  # so that run.json has it
        folder = chosen.out or _default_folder(chosen)
        progress.stage = "looking at data and models"
        content = content_of_run(chosen, benchmark)
        if store is None:
            check_creatable(folder)
            models.load(solver)
            chosen.note_recommended()
            store, before = RunStore.create(folder, kept(chosen), {**facts(), "content": content}), Before()
        else:
            _compare(store, content, chosen)
            progress.stage = "reading what is solved"
            before = before_now(store, progress)
            if any(problem.id not in before.solved for problem in benchmark.problems):
                models.load(solver)
        stack.pop_all()
    fresh = chosen.resume is None
    return Run(chosen, solver, benchmark, models, store, progress, before, owns=models is own, fresh=fresh)


@dataclass(frozen=True)
class Before:
    """What earlier sessions of a run have done."""

    solved: frozenset[str] = frozenset()
    """Ids of the problems that have a row."""
    seconds: Seconds = field(default_factory=Seconds)
    generated: int = 0
    """Tokens, those of problems that failed and will be tried again among them."""


def before_now(store: RunStore, progress: Progress) -> Before:
    """Prepare a folder to be written on, and say what it has. Raises InputError where it cannot be written."""
    with writing(store.folder, RESUME.format(folder=store.folder)):
        solved, progress.damaged = store.recover()
    for outcome in solved.values():
        progress.add(outcome)
    progress.resumed = progress.done
    seconds, generated, timed = Seconds(), 0, set[str]()
    for row in store.timing_rows():
        seconds, generated = Seconds(**row["run"]), generated + row.get("generated", 0)
        timed.add(row["id"])
    generated += sum(row.usage.generated for row in solved.values() if row.id not in timed)  # killed before its timing
    return Before(frozenset(solved), seconds, generated)


def problems_of(settings: RunSettings, store: RunStore | None) -> Benchmark:
    """The problems as a run's settings say. Raises InputError."""
    return settings.load_benchmark(
        seed=settings.seed, shuffle=settings.shuffle, repeat=settings.repeat, instruction=settings.instruction,
        step_delimiter=settings.step_delimiter, numbered=store is not None and store.numbered,
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


class _Streak:
    """How many times in a row the same error came, but for numbers in it."""

    def __init__(self) -> None:
        self._last, self._count = "", 0

    def add(self, error: str | None) -> int:
        error = re.sub(r"\d+", "#", error or "")
        self._count = self._count + 1 if error and error == self._last else bool(error)
        self._last = error
        return self._count


@dataclass
class Run:
    """A strategy, an engine, a scorer and problems, about to be solved or under way."""

    settings: RunSettings
    strategy: Strategy
    benchmark: Benchmark
    models: Models
    store: RunStore
    progress: Progress
    before: Before = field(default_factory=Before)
    owns: bool = False
    """Whether the models are this run's alone, to be closed after it."""
    fresh: bool = False
    """Whether its folder was made for it just now."""
    run_budget: Budget = field(init=False, default_factory=Budget)
    _server: str | None = field(init=False, default=None)
    """What the engine's server says that it runs."""

    @property
    def engine(self) -> Engine:
        return self.models.engine

    @property
    def scorer(self) -> Scorer:
        return self.models.scorer_of(self.strategy)

    async def solve(self) -> Summary:
        """Solve every problem that has no row yet, and sum up."""
        folder = self.store.folder
        try:
            with writing(folder, RESUME.format(folder=folder)):
                return await self._solve()
        except InputError:
            if self.fresh and not self.store.results.exists():
                self.store.discard()
            raise
        finally:
            self.store.close()
            if self.owns:
                await self.models.close()

    async def _solve(self) -> Summary:
        progress, before, start = self.progress, self.before.seconds, time.perf_counter()
        limit = self.settings.run_budget
        self.run_budget = Budget(None if limit is None else max(0, limit - self.before.generated))
        progress.total, progress.folder = len(self.benchmark.problems), self.store.folder
        left = [problem for problem in self.benchmark.problems if problem.id not in self.before.solved]
        if left:
            await self.models.check(self.strategy)
        progress.stage, todo, streak = "solving", iter(left), _Streak()

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
                if streak.add(record.error) >= EQUAL:
                    raise InputError(
                        f"stopped, as {EQUAL} problems in a row failed with the same error: {record.error}. What was solved is"
                        f" kept; when that is fixed, resume with: tts run --resume {self.store.folder}"
                    )

        try:
            async with grading() as grader, asyncio.TaskGroup() as group:
                for _ in range(min(self.settings.concurrency, len(left))):
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
            compares=self.models.compares,
            flops=self._flops,
        )

    def _note_server(self) -> None:
        """Compare what a server says that it runs to what it said in earlier sessions, before its first row is written."""
        if self.models.notices != self.progress.notices:
            self.progress.notices = self.models.notices
            self.store.note(notices=list(self.models.notices))
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
            sampling = replace(self.settings.sampling, logprobs=self.scorer.logprobs)
            generator = Generator(
                self.engine.for_problem(problem), problem, sampling,
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
        except UnsupportedError:
            raise
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
