"""Accuracy over N for several strategies, at the cost of the largest N.

Strategies that only sample and rank share one pool of the largest N for each problem and seed; every smaller N is estimated
from it without bias, over its subsets. Strategies that search are run for each N.
"""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tts.data.files import write_whole, writing
from tts.data.lock import Lock
from tts.data.store import Record
from tts.errors import InputError
from tts.evals.benchmarks import problem_of
from tts.evals.statistics import pass_at_k
from tts.evals.summary import Estimate, at_k, estimate
from tts.options import configure, keywords_of, options_of
from tts.runs.forecast import Forecast, forecast
from tts.runs.runner import Progress, Run, prepare, wait
from tts.runs.settings import RunSettings
from tts.strategies import get_strategy
from tts.strategies.bon import BestOfN
from tts.strategies.majority import Majority
from tts.strategies.parallel import Parallel
from tts.types import Engine, Scorer, Strategy


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


@dataclass(frozen=True)
class Sweep:
    """What a sweep found. `passed` is the ceiling: the chance that any of N samples is right."""

    rows: tuple[SweepRow, ...]
    skipped: tuple[str, ...] = ()
    """What was left out, and why."""
    folder: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As `tts sweep --json` prints it."""
        return {
            "rows": [{**asdict(row), "accuracy": row.accuracy.value, "ci": [row.accuracy.low, row.accuracy.high]}
                     for row in self.rows],
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

    `out` gets a run folder for each pool and each search, sweep.json and sweep.csv; called again with the same arguments it
    goes on where it was stopped. Other keywords are those of `tts.run`, and options of the strategies that have them.
    Raises InputError.
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
    plan = _plan(list(dict.fromkeys(strategies)), ns, options)
    loaded: dict[str, Any] = {"engine_instance": engine_instance, "scorer_instance": scorer_instance}
    progress = progress or Progress()

    async def solve() -> list[SweepRow]:
        rows: list[SweepRow] = []
        for job in plan.jobs:
            runs = []
            for seed in numbers:
                run = _prepare(
                    job, folder / f"{job.name}-seed{seed}", seed=seed, progress=progress, **loaded, **common,
                )  # fmt: skip
                opened.extend(run.loaded)
                run.loaded = []  # kept for the next one
                loaded["engine_instance"] = run.engine
                if job.solver.uses_scorer:
                    loaded["scorer_instance"] = run.scorer
                await run.solve()
                runs.append(run)
                progress.done = progress.resumed = progress.failed = progress.graded = progress.right = 0
            rows += _rows(job, runs, ns)
        return rows

    async def solve_and_close() -> list[SweepRow]:
        try:
            return await solve()
        finally:
            for part in opened:
                await part.close()

    opened: list[Any] = []
    with writing(folder, "what was solved is kept; make room, then give the same command again"):
        folder.mkdir(parents=True, exist_ok=True)
        with Lock(folder):
            return _write(folder, wait(solve_and_close), plan, strategies, {"seeds": numbers, "n": ns, **common, **options})


def _write(folder: Path, rows: Sequence[SweepRow], plan: _Plan, strategies: Sequence[str], settings: dict[str, Any]) -> Sweep:
    order = {name: i for i, name in enumerate([*strategies, "pass@N"])}
    result = Sweep(tuple(sorted(rows, key=lambda r: (order[r.strategy], r.n))), tuple(plan.skipped), str(folder), settings)
    write_whole(folder / "sweep.json", json.dumps(result.to_json(), indent=2) + "\n")
    write_whole(folder / "sweep.csv", result.to_csv())
    return result


def forecast_sweep(strategies: Sequence[str], n: Sequence[int], *, seeds: int = 1, **settings: Any) -> list[Forecast]:
    """Forecasts of the runs that a sweep makes, one for each seed of each; nothing is loaded. Raises InputError."""
    names = {option.name for option in options_of(RunSettings)}
    common = {name: value for name, value in settings.items() if name in names}
    options = {name: value for name, value in settings.items() if name not in names}
    found = []
    for job in _plan(list(dict.fromkeys(strategies)), sorted(set(n)), options).jobs:
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


def _plan(names: Sequence[str], ns: Sequence[int], options: dict[str, Any]) -> _Plan:
    plan, ranked = _Plan([], []), dict[str, Parallel]()
    unused = set(options)
    for name in names:
        cls = get_strategy(name)
        takes = {option.name for option in options_of(cls)}
        own = {key: value for key, value in options.items() if key in takes}
        unused -= set(own)
        if issubclass(cls, Parallel):
            ranked[name] = configure(cls, {**own, "n": ns[-1]})
            continue
        for n in ns if "n" in takes else [1]:
            try:
                solver = configure(cls, {**own, **({"n": n} if "n" in takes else {})})
            except InputError as error:
                plan.skipped.append(f"{name} at n = {n}: {error}")
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


def _rows(job: _Job, runs: Sequence[Run], ns: Sequence[int]) -> list[SweepRow]:
    by_problem: dict[str, list[Record]] = defaultdict(list)
    for run in runs:
        for record in run.store.records():
            if record.error is None and record.correct is not None:
                by_problem[problem_of(record.id, run.settings.repeat)].append(record)
    problems = list(by_problem.values())
    folders = tuple(str(run.store.folder) for run in runs)
    if not problems:
        raise InputError("no problem has a reference answer, so there is no accuracy to sweep")
    records = [record for group in problems for record in group]
    generated = sum(record.usage.generated for record in records) / len(records)
    scored = sum(record.usage.scored for record in records) / len(records)
    if not job.ranked:
        accuracy = _over(problems, lambda record: float(bool(record.correct)))
        n = getattr(job.solver, "n", 1)
        return [SweepRow(job.strategy, n, accuracy, generated, scored, runs=folders)]
    rows, largest = [], ns[-1]
    for n in ns:
        share = n / largest
        for name, solver in job.ranked.items():
            values = {id(r): at_k(solver, r, min(n, len(r.candidates)), runs[0].reward) for r in records}
            error = sum(value.error**2 for value in values.values()) ** 0.5 / len(values)
            accuracy = _over(problems, lambda record, values=values: values[id(record)].value)
            rows.append(SweepRow(name, n, accuracy, generated * share, scored * share * solver.uses_scorer, error, folders))
        ceiling = _over(problems, lambda r, n=n: pass_at_k([bool(a.correct) for a in r.candidates], min(n, len(r.candidates))))
        rows.append(SweepRow("pass@N", n, ceiling, generated * share, 0.0, runs=folders))
    return rows


def _over(problems: Sequence[Sequence[Record]], value: Any) -> Estimate:
    """Mean over problems of the mean over seeds and repetitions."""
    return estimate([sum(map(value, group)) / len(group) for group in problems])
