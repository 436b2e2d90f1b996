"""Verification of a run: some of its rows are drawn again from its settings and compared with the recorded ones."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tts.data.records import Record
from tts.errors import InputError
from tts.evals.agreement import FALSE_ALARMS, Compared, changes_found, compare_pairs, first_difference, quantities
from tts.evals.load import open_run, read_json, read_summary
from tts.evals.summary import Seconds
from tts.grading.pool import Grader
from tts.options import configure
from tts.runs.facts import facts
from tts.runs.models import Models
from tts.runs.progress import Progress
from tts.runs.runner import Run, content_of_run, grading, problems_of, settings_of, wait
from tts.runs.settings import Method, RunSettings
from tts.solving.clock import Clock
from tts.strategies import get_strategy
from tts.types import Candidate, Engine, Problem, Result, Scorer, Step, Usage

SHOWN = 20
"""Differences that are reported one by one."""


class Difference(NamedTuple):
    """A place at which a row, or summary.json, is not as it should be."""

    where: str
    """Id of the row, or `summary.json`."""
    field: str
    """Path in the JSON object, such as `candidates[2].answer`."""
    recorded: Any
    expected: Any


@dataclass(frozen=True)
class Verification:
    """What was checked, and what was found."""

    run: str
    method: Literal["bytes", "statistics", "grades"]
    """How redrawn rows were compared; `grades`: none could be redrawn, and recorded candidates were graded again."""
    reason: str
    """Why by this method."""
    rows: int
    """Rows of the run, but for those of failed problems."""
    checked: int
    failed: int
    """Rows of failed problems, which are not checked."""
    seed: int
    """Seed by which the rows were chosen."""
    differences: tuple[Difference, ...]
    """What is wrong: at most 20 of `different`."""
    different: int
    """Number of rows, problems and fields of the summary that are wrong."""
    identical: int
    """Redrawn rows that equal the recorded ones byte for byte."""
    compared: tuple[Compared, ...] = ()
    """With `statistics`: means over the recorded and the redrawn rows."""
    detects: int | None = None
    """With `bytes`: if as many rows had been changed, one would have been among the checked with a probability of 95 %."""
    summary: bool | None = None
    """Whether summary.json follows from the rows; None while the run is not finished."""
    warnings: tuple[str, ...] = ()

    @property
    def suspicious(self) -> tuple[Compared, ...]:
        """The quantities that differ by more than chance allows."""
        return tuple(c for c in self.compared if c.p < FALSE_ALARMS / len(self.compared))

    @property
    def verified(self) -> bool:
        """Whether nothing speaks against the run."""
        return not self.different and not self.suspicious

    def to_json(self) -> dict[str, Any]:
        """The object that `tts verify --json` prints."""
        lists = {name: [item._asdict() for item in getattr(self, name)] for name in ("differences", "compared")}
        return {"verified": self.verified, **asdict(self), **lists}


def verify(
    run: str | Path,
    *,
    share: float = 0.05,
    count: int | None = None,
    seed: int | None = None,
    method: Method = "auto",
    engine_instance: Engine | None = None,
    scorer_instance: Scorer | None = None,
    progress: Progress | None = None,
    **places: Any,
) -> Verification:
    """Draw some rows of a run again and compare them with the recorded ones; the same as `tts verify`.

    The other rows are checked for what needs no model: every problem has one row, and summary.json follows from the rows.

    Args:
        run: Run folder. Nothing is written to it.
        share: Share of the rows that are redrawn. Default 0.05.
        count: Number of rows that are redrawn, instead of `share`.
        seed: Seed by which they are chosen. Default: another one each time, so that nobody can know which will be checked.
        method: `bytes`, `statistics`, or `auto`: bytes where engine and scorer are exact or all redrawn rows are equal.
        engine_instance: An engine that is already loaded.
        scorer_instance: A scorer that is already loaded.
        progress: Updated while rows are redrawn.
        **places: Settings such as `model` and `benchmark` that say where this machine has what the run used.

    Raises:
        InputError: The folder is not a run folder, or its settings cannot be used here.
    """
    store = open_run(Path(run))
    settings, progress = settings_of(store.settings, **places), progress or Progress()
    solver = configure(get_strategy(settings.strategy), settings.options, noun=f"the strategy {settings.strategy}")
    models = Models(settings, progress, engine_instance, scorer_instance)
    job = Run(settings, solver, problems_of(settings, store), models, store, progress)
    return wait(_Check(job, share, count, secrets.randbits(32) if seed is None else seed, method).work)


@dataclass
class _Check:
    run: Run
    share: float
    count: int | None
    seed: int
    method: Method
    rows: int = 0
    failed: int = 0
    checked: int = 0
    identical: int = 0
    different: int = 0
    differences: list[Difference] = field(default_factory=list)
    reported: set[str] = field(default_factory=set)
    """Ids of the rows that differ."""
    errors: list[str] = field(default_factory=list)
    pairs: list[tuple[dict[str, float], dict[str, float]]] = field(default_factory=list)

    async def work(self) -> Verification:
        try:
            return await self._work()
        finally:
            await self.run.models.close()

    async def _work(self) -> Verification:
        summary = read_summary(self.run.store.folder)
        self.chosen = self._choose(self._look_through(finished=summary is not None))
        cause = _unrepeatable(self.run.settings)
        progress = self.run.progress
        progress.stage, progress.total = "solving", len(self.chosen)
        todo = self._lines()
        try:
            async with grading() as grader, asyncio.TaskGroup() as group:
                for _ in range(min(self.run.settings.concurrency, max(1, len(self.chosen)))):
                    group.create_task(self._compare_rows(todo, grader, redraw=cause is None))
        except* InputError as errors:
            raise errors.exceptions[0] from None
        if self.errors and len(self.errors) == self.checked:
            raise InputError(f"none of {self.checked} rows could be redrawn: {self.errors[0]}")
        for name in set(self.run.store.edited()) - self.reported:
            self._report(Difference(name, "", "other bytes than its checksum in timings.jsonl", "the row as it was written"))
        good = self._check_summary(summary) if summary is not None else None
        return self._result(cause, good)

    def _look_through(self, *, finished: bool) -> list[str]:
        """Check that problems and rows match; return the ids of the rows that can be redrawn."""
        left = {problem.id: True for problem in self.run.benchmark.problems}
        found = []
        for outcome in self.run.store.outcomes():
            if outcome.id not in left:
                self._report(Difference(outcome.id, "id", outcome.id, "the id of a problem of the benchmark"))
            elif not left[outcome.id]:
                self._report(Difference(outcome.id, "id", outcome.id, "one row per problem"))
            else:
                left[outcome.id] = False
                self.failed += outcome.error is not None
                if outcome.error is None:
                    found.append(outcome.id)
        for name in [name for name, missing in left.items() if missing and finished]:
            self._report(Difference(name, "row", "none, though the run is finished", "a row"))
        self.rows = len(found)
        return found

    def _choose(self, ids: list[str]) -> set[str]:
        count = self.count if self.count is not None else max(1, round(self.share * len(ids)))
        return set(random.Random(self.seed).sample(sorted(ids), min(count, len(ids))))

    def _lines(self) -> Iterator[tuple[Problem, bytes, Record]]:
        """The chosen rows as they stand in the file, each once."""
        problems, left = {problem.id: problem for problem in self.run.benchmark.problems}, set(self.chosen)
        for line, record in self.run.store.lines(left):
            left.remove(record.id)
            yield problems[record.id], line, record

    async def _compare_rows(self, todo: Iterator[tuple[Problem, bytes, Record]], grader: Grader, *, redraw: bool) -> None:
        for problem, line, recorded in todo:
            if redraw:
                record = await self.run.solve_one(problem, grader, Clock(parent=self.run.progress.clock), Usage())
                self.run.progress.add(record)
            else:
                record = await self._graded_again(problem, recorded, grader)
            difference = _row_difference(line, record)
            self.checked += 1
            self.identical += redraw and difference is None
            if record.error is not None:
                self.errors.append(record.error)
                self._report(Difference(problem.id, "error", None, record.error))
                continue
            if not redraw or self._exact or difference is None:
                self._report(difference)
            else:
                self._report(_row_difference(line, await self._graded_again(problem, recorded, grader)))
            self.pairs.append((quantities(recorded), quantities(record)))

    async def _graded_again(self, problem: Problem, record: Record, grader: Grader) -> Record:
        """The row that follows from a row's own texts, scores and rewards: answers, grades and choice are found again."""
        candidates = [
            Candidate(problem, tuple(
                Step(text, tuple(range(count)), "step" if i < len(attempt.steps) else attempt.finish)
                for i, (text, count) in enumerate(zip(attempt.steps, attempt.tokens, strict=True), 1)
            ))
            for attempt in record.candidates
        ]  # fmt: skip
        rewards = [self.run.reward(attempt) for attempt in record.candidates]
        scored = any(attempt.rewards is not None for attempt in record.candidates)
        result = Result(candidates, rewards if scored else [], [a.score for a in record.candidates], record.tree)
        return Record.solved(problem, result, await grader.judge(candidates), record.usage)

    def _check_summary(self, recorded: dict[str, Any]) -> bool:
        """Whether summary.json follows from the rows, but for times and the folder's name."""
        try:
            expected = json.loads(json.dumps(self.run.summarize(Seconds()).to_json()))
        except ValueError as error:  # rows that contradict themselves
            self._report(Difference("summary.json", "", "a summary", f"none, as the rows have none: {error}"))
            return False
        for name in ("seconds", "run"):
            expected[name] = recorded.get(name)
        expected["flops"] = {k: v if v is not None else recorded.get("flops", {}).get(k) for k, v in expected["flops"].items()}
        difference = first_difference(recorded, {name: value for name, value in expected.items() if name in recorded})
        if difference is not None:
            self._report(Difference("summary.json", *difference))
        return difference is None

    def _report(self, difference: Difference | None) -> None:
        if difference is not None:
            self.different += 1
            self.reported.add(difference.where)
            if len(self.differences) < SHOWN:
                self.differences.append(difference)

    @property
    def _exact(self) -> bool:
        """Whether redrawn rows have to equal the recorded ones."""
        exact = self.run.engine.exact and (self.run.scorer.exact or not self.run.strategy.uses_scorer)
        return self.method == "bytes" or (self.method == "auto" and exact)

    def _result(self, cause: str | None, summary: bool | None) -> Verification:
        method: Literal["bytes", "statistics", "grades"] = "statistics"
        reason = "the engine or the scorer does not give the same results to the last bit each time"
        if cause is not None:
            method, reason = "grades", cause
        elif self._exact:
            method, reason = "bytes", "the engine and the scorer give the same results to the last bit"
        elif self.identical == self.checked and self.method == "auto":
            method, reason = "bytes", "all redrawn rows are equal, though engine or scorer need not be exact"
        return Verification(
            run=str(self.run.store.folder),
            method=method,
            reason=reason,
            rows=self.rows,
            checked=self.checked,
            failed=self.failed,
            seed=self.seed,
            differences=tuple(self.differences),
            different=self.different,
            identical=self.identical,
            compared=compare_pairs(self.pairs) if method == "statistics" else (),
            detects=changes_found(self.rows, self.checked) if method == "bytes" else None,
            summary=summary,
            warnings=tuple(_changes(self.run)),
        )


def _unrepeatable(settings: RunSettings) -> str | None:
    """Why no row of such a run can be redrawn; None if they can."""
    if settings.run_budget is not None:
        return "under --run-budget, which problems got the last tokens depended on the order in which they were solved"
    if settings.seconds is not None:
        return "under --seconds, results depend on the machine"
    return None


def _row_difference(line: bytes, record: Record) -> Difference | None:
    """The first difference between a recorded row and what it should be; None if they are equal byte for byte."""
    expected = record.to_line()
    if expected == line:
        return None
    found = first_difference(json.loads(line), json.loads(expected), tolerance=0)
    return Difference(record.id, *(found or ("", "other spaces, numbers or an other order of fields", "the same JSON")))


def _changes(run: Run) -> Iterator[str]:
    """What is not as it was when the run was started."""
    recorded = read_json(run.store.folder / "run.json")
    now = {**facts(), "content": content_of_run(run.settings, run.benchmark)}
    for kind, noun in (("content", "what is named by --"), ("versions", "")):
        then, here = recorded.get(kind) or {}, now.get(kind) or {}
        for name in then:
            if then[name] is not None and name in here and then[name] != here[name]:
                yield f"{noun}{name} is {here[name]} here and was {then[name]} in the run"
