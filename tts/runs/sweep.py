"""Accuracy over N for several strategies, at the cost of the largest N.

Strategies that only sample and rank share one pool of the largest N for each problem and seed; every smaller N is estimated
from it without bias, over its subsets. Strategies that search are run for each N, and so are those whose scorer compares
candidates with each other.
"""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import combinations, pairwise
from math import fsum
from pathlib import Path
from typing import Any, NamedTuple

from tts.data.files import write_whole, writing
from tts.data.lock import Lock
from tts.data.records import Attempt, Record
from tts.errors import InputError
from tts.evals.benchmarks import problem_of
from tts.evals.intervals import Estimate, estimate, estimate_difference
from tts.evals.statistics import Sampled, pass_at_k
from tts.evals.summary import at_k
from tts.options import configure, keywords_of, options_of
from tts.runs.forecast import Forecast, forecast
from tts.runs.models import Models
from tts.runs.progress import Progress
from tts.runs.runner import Run, prepare, wait
from tts.runs.settings import RunSettings
from tts.scorers import compares
from tts.strategies import get_strategy
from tts.strategies.bon import BestOfN
from tts.strategies.majority import Majority
from tts.strategies.parallel import Parallel
from tts.types import Engine, Reward, Scorer, Strategy


@dataclass(frozen=True)
class SweepRow:
    """A strategy at one N. Tokens are per problem and run."""

    strategy: str
    n: int
    accuracy: Estimate
    """A mean over problems, of the mean over seeds; its 95 % interval is over problems."""
    generated: float
    scored: float
    error: float = 0.0
    """Standard error of the accuracy from drawing subsets; 0 where it is exact."""
    runs: tuple[str, ...] = ()
    """The run folders it comes from."""


class Difference(NamedTuple):
    """A paired difference between two rows of a sweep: accuracy of `second` minus that of `first`, each a strategy and an N."""

    first: tuple[str, int]
    second: tuple[str, int]
    difference: Estimate
    problems: int
    """Number of problems that both rows are over."""

    def to_json(self) -> dict[str, Any]:
        """One of the differences in sweep.json."""
        first, second = ({"strategy": strategy, "n": n} for strategy, n in (self.first, self.second))
        value, *interval = self.difference
        return {"first": first, "second": second, "difference": value, "ci": interval, "problems": self.problems}


@dataclass(frozen=True)
class Sweep:
    """What a sweep found. The strategy `pass@N` is the ceiling: the chance that any of N samples is right."""

    rows: tuple[SweepRow, ...]
    differences: tuple[Difference, ...] = ()
    """Between each size and the next smaller one of a strategy, and between strategies at the same size."""
    skipped: tuple[str, ...] = ()
    """What was left out, and why."""
    folder: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As `tts sweep --json` prints it."""
        return {
            "rows": [{**asdict(row), "accuracy": row.accuracy.value, "ci": [row.accuracy.low, row.accuracy.high]}
                     for row in self.rows],
            "differences": [difference.to_json() for difference in self.differences],
            "skipped": list(self.skipped),
            "settings": self.settings,
            "folder": self.folder,
        }  # fmt: skip

    def to_csv(self) -> str:
        """A line for each strategy and N."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["strategy", "n", "accuracy", "low", "high", "error", "generated", "scored"])
        for row in self.rows:
            writer.writerow([row.strategy, row.n, *row.accuracy, row.error, row.generated, row.scored])
        return text.getvalue()

    def differences_to_csv(self) -> str:
        """A line for each paired difference."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["strategy", "n", "minus strategy", "minus n", "difference", "low", "high", "problems"])
        for first, second, difference, problems in self.differences:
            writer.writerow([*second, *first, *difference, problems])
        return text.getvalue()


@keywords_of(RunSettings)
def sweep(
    strategies: Sequence[str] = ("bon", "weighted", "majority"),
    n: Sequence[int] = (1, 2, 4, 8, 16),
    *,
    seeds: int | Sequence[int] = 1,
    out: str | Path,
    engine_instance: Engine | None = None,
    scorer_instance: Scorer | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Sweep:
    """Run `strategies` at every N and seed; the same as `tts sweep`.

    `out` gets a run folder for each pool and each search, sweep.json, sweep.csv and differences.csv; called again with the same
    arguments it goes on where it was stopped. Other keywords are those of `tts.run`, and options of the strategies that have
    them. Raises InputError.
    """
    ns = sorted(set(n))
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(dict.fromkeys(seeds))
    if not ns or ns[0] < 1 or not numbers or not strategies:
        raise InputError(f"a sweep needs strategies, sizes of at least 1 and a seed; got {strategies}, {n} and {seeds}")
    if "seed" in settings:
        raise InputError("a sweep has --seeds, not --seed")
    folder = Path(out)
    common = {name: value for name, value in settings.items() if name in {o.name for o in options_of(RunSettings)}}
    options = {name: value for name, value in settings.items() if name not in common}
    progress = progress or Progress()
    models = Models(configure(RunSettings, common), progress, engine_instance, scorer_instance)
    plan = _plan(list(dict.fromkeys(strategies)), ns, options, common, models.compares)

    async def solve() -> list[_Measured]:
        rows: list[_Measured] = []
        for job in plan.jobs:
            runs = []
            for seed in numbers:
                where = folder / f"{job.name}-seed{seed}"
                run = _prepare(job, where, seed=seed, models=models, progress=progress, **common)
                await run.solve()
                runs.append(run)
                progress.done = progress.resumed = progress.failed = progress.graded = progress.right = 0
            try:
                rows += _rows(job, runs, ns)
            except InputError:
                raise
            except Exception as error:  # such as one of a strategy of the user's
                raise InputError(
                    f"the runs of {job.name} are kept in {folder}, but cannot be summarized: {type(error).__name__}: {error}."
                    " Fix that, then give the same command again"
                ) from error
        return rows

    async def solve_and_close() -> list[_Measured]:
        try:
            return await solve()
        finally:
            await models.close()

    with writing(folder, "what was solved is kept; make room, then give the same command again"):
        folder.mkdir(parents=True, exist_ok=True)
        with Lock(folder):
            measured = wait(solve_and_close)
            order = {name: i for i, name in enumerate([*strategies, "pass@N"])}
            measured.sort(key=lambda found: (order[found.row.strategy], found.row.n))
            result = Sweep(
                rows=tuple(found.row for found in measured),
                differences=tuple(_differences(measured)),
                skipped=tuple(plan.skipped),
                folder=str(folder),
                settings={"seeds": numbers, "n": ns, **common, **options},
            )
            write_whole(folder / "sweep.json", json.dumps(result.to_json(), indent=2) + "\n")
            write_whole(folder / "sweep.csv", result.to_csv())
            write_whole(folder / "differences.csv", result.differences_to_csv())
    return result


def forecast_sweep(strategies: Sequence[str], n: Sequence[int], *, seeds: int = 1, **settings: Any) -> list[Forecast]:
    """Forecasts of the runs that a sweep makes, one for each seed of each; nothing is loaded. Raises InputError."""
    names = {option.name for option in options_of(RunSettings)}
    common = {name: value for name, value in settings.items() if name in names}
    options = {name: value for name, value in settings.items() if name not in names}
    found = []
    alone = compares(common.get("scorer", RunSettings.scorer))
    for job in _plan(list(dict.fromkeys(strategies)), sorted(set(n)), options, common, alone).jobs:
        run = configure(RunSettings, {**common, "strategy": job.strategy, "options": asdict(job.solver)})  # type: ignore[call-overload]
        found += [forecast(run, job.solver)] * seeds
    return found


@dataclass
class _Job:
    """A run for every seed: a pool for sampling strategies, or a search at one N."""

    name: str
    solver: Strategy
    strategy: str
    ranked: dict[str, Parallel] = field(default_factory=dict)
    """The strategies that rank the pool."""


@dataclass
class _Plan:
    jobs: list[_Job]
    skipped: list[str]


class _Measured(NamedTuple):
    """A row, and what it is the mean of."""

    row: SweepRow
    by_problem: Mapping[str, float]


def _plan(names: Sequence[str], ns: Sequence[int], options: dict[str, Any], common: dict[str, Any], compares: bool) -> _Plan:
    """The jobs of a sweep. A strategy that refuses its options at some of the sizes is skipped there; at all, InputError."""
    sampling = configure(RunSettings, common).sampling
    plan, ranked = _Plan([], []), dict[str, Parallel]()
    unused = set(options)
    for name in names:
        cls = get_strategy(name)
        takes = {option.name for option in options_of(cls)}
        own = {key: value for key, value in options.items() if key in takes}
        unused -= set(own)
        if issubclass(cls, Parallel) and not (compares and cls.uses_scorer):
            ranked[name] = configure(cls, {**own, "n": ns[-1]})
            ranked[name].check_sampling(sampling)
            continue
        sizes = ns if "n" in takes else [1]
        for n in sizes:
            try:
                solver = configure(cls, {**own, **({"n": n} if "n" in takes else {})})
                solver.check_sampling(sampling)
            except InputError as error:
                plan.skipped.append(f"{name} at n = {n}: {error}")
                if all(job.strategy != name for job in plan.jobs) and n == sizes[-1]:
                    raise
                continue
            plan.jobs.append(_Job(f"{Path(name).name.replace(':', '-')}-n{n}", solver, name))
    if unused:
        raise InputError(f"none of {', '.join(names)} has an option {sorted(unused)[0]!r}")
    if ranked:
        scored = any(solver.uses_scorer for solver in ranked.values())
        pool: Parallel = BestOfN(n=ns[-1]) if scored else Majority(n=ns[-1])
        plan.jobs.insert(0, _Job(f"pool-n{ns[-1]}", pool, "bon" if scored else "majority", ranked))
    return plan


def _prepare(job: _Job, folder: Path, **settings: Any) -> Run:
    """The job's run: a new one, or one to go on with."""
    where: dict[str, Any] = {"resume" if (folder / "run.json").exists() else "out": folder}
    return prepare(job.solver, **where, **settings)


def _rows(job: _Job, runs: Sequence[Run], ns: Sequence[int]) -> list[_Measured]:
    by_problem: dict[str, list[Record]] = defaultdict(list)
    errors = []
    for run in runs:
        for record in run.store.records():
            if record.error is not None:
                errors.append(record.error)
            if record.error is None and record.correct is not None:
                by_problem[problem_of(record.id, run.settings.repeat)].append(record)
    folders = tuple(str(run.store.folder) for run in runs)
    if not by_problem and errors:
        raise InputError(f"all problems of {', '.join(folders)} failed, the first with: {errors[0]}")
    if not by_problem:
        raise InputError("no problem has a reference answer, so there is no accuracy to sweep")
    records = [record for group in by_problem.values() for record in group]
    generated = sum(record.usage.generated for record in records) / len(records)
    scored = sum(record.usage.scored for record in records) / len(records)

    def measured(name: str, n: int, share: float, value: Callable[[Record], Sampled], *, scores: bool = True) -> _Measured:
        sampled = {problem: [value(record) for record in group] for problem, group in by_problem.items()}
        means = {problem: fsum(one.value for one in group) / len(group) for problem, group in sampled.items()}
        error = fsum(one.error**2 for group in sampled.values() for one in group) ** 0.5 / len(records)
        row = SweepRow(name, n, estimate([*means.values()]), generated * share, scored * share * scores, error, folders)
        return _Measured(row, means)

    if not job.ranked:
        n = getattr(job.solver, "n", 1)
        return [measured(job.strategy, n, 1, lambda record: Sampled(float(bool(record.correct))))]
    rows = []
    for n in ns:
        for name, solver in job.ranked.items():
            chosen = partial(_chosen, solver, n, runs[0].reward)
            rows.append(measured(name, n, n / ns[-1], chosen, scores=solver.uses_scorer))
        rows.append(measured("pass@N", n, n / ns[-1], partial(_passed, n), scores=False))
    return rows


def _chosen(solver: Parallel, n: int, reward: Callable[[Attempt], Reward], record: Record) -> Sampled:
    return at_k(solver, record, min(n, len(record.candidates)), reward)


def _passed(n: int, record: Record) -> Sampled:
    return Sampled(pass_at_k([bool(a.correct) for a in record.candidates], min(n, len(record.candidates))))


def _differences(measured: Sequence[_Measured]) -> list[Difference]:
    """Paired differences between a size and the next smaller one of each strategy, then between strategies at each size."""
    strategies, sizes = defaultdict(list), defaultdict(list)
    for found in measured:
        strategies[found.row.strategy].append(found)
        if found.row.strategy != "pass@N":
            sizes[found.row.n].append(found)
    pairs = [pair for rows in strategies.values() for pair in pairwise(rows)]
    pairs += [(first, second) for n in sorted(sizes) for second, first in combinations(sizes[n], 2)]
    differences = []
    for first, second in pairs:
        if common := sorted(first.by_problem.keys() & second.by_problem.keys()):
            one, other = ([found.by_problem[problem] for problem in common] for found in (first, second))
            names = [(found.row.strategy, found.row.n) for found in (first, second)]
            differences.append(Difference(names[0], names[1], estimate_difference(one, other), len(common)))
    return differences
