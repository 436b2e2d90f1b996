"""The summary of a finished run: accuracy, baselines computed from the same candidates, the curve over N, and usage."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from math import fsum
from typing import Any, NamedTuple

from tts.data.records import Attempt, Record
from tts.delimiters import delimiter
from tts.evals.benchmarks import problem_of
from tts.evals.cost import Flops
from tts.evals.intervals import Estimate, estimate
from tts.evals.statistics import Sampled, best_curve, choice_at_k, majority_curve, pass_at_k
from tts.strategies.majority import Majority
from tts.strategies.parallel import Parallel
from tts.trajectory import is_one_step
from tts.types import Preference, Reward, Strategy, Usage

COUNTED = 128
"""Largest number of candidates whose votes are counted over all subsets; of more candidates, subsets are drawn."""


@dataclass(frozen=True)
class Seconds:
    """Wall time of a run, in seconds. Generation and scoring overlap, so their sum may exceed the total."""

    total: float = 0.0
    generation: float = 0.0
    """Time in which at least one request for tokens was open."""
    scoring: float = 0.0
    """Time in which at least one request for rewards was open."""
    waiting: float = 0.0
    """Time that requests spent in the engine's queue or between retries at a busy server, summed over requests."""


class Point(NamedTuple):
    """Expected accuracies at k samples, over the subsets of size k of the same candidates."""

    k: int
    strategy: Estimate
    """Accuracy of the run's strategy."""
    majority: Estimate
    """Accuracy of majority voting."""
    passed: Estimate
    """pass@k: the share of problems for which at least one of k samples is right."""
    error: float = 0.0
    """Standard error of the strategy's accuracy from sampling subsets; 0 if it is exact."""


@dataclass(frozen=True)
class Summary:
    """The result of a run. Accuracies, from 0 to 1, are None if no problem has a reference answer."""

    strategy: str
    """Name of the strategy."""
    n: int
    """Largest number of candidates of any problem."""
    benchmark: str
    """Name of the benchmark."""
    problems: int
    """Number of rows: problems times `repeat`."""
    graded: int
    """Rows with a reference answer and without an error; accuracies are means over these."""
    failed: int
    """Rows with an error."""
    accuracy: Estimate | None
    """Share of problems whose chosen candidate is right."""
    pass_at_1: Estimate | None
    """Accuracy of a candidate chosen at random."""
    majority: Estimate | None
    """Accuracy of majority voting over all candidates."""
    pass_at_n: Estimate | None
    """Share of problems for which at least one candidate is right."""
    curve: tuple[Point, ...]
    """Accuracy at k = 1, 2, 4, … up to n; empty for strategies that do not only sample and rank."""
    omitted: str
    """Why the curve has no points between 1 and n; empty if it has."""
    truncated: int
    """Candidates that were cut off before their end, by a limit on tokens or time or by the strategy."""
    usage: Usage
    """Tokens and calls of all rows."""
    seconds: Seconds
    """Wall time, over all sessions of the run."""
    run: str
    """The run folder."""
    flops: Flops = field(default_factory=Flops)
    """Estimated floating-point operations."""
    oracle_gap: Estimate | None = None
    """pass@N minus accuracy: the most that a better choice among the same candidates could gain."""
    repeat: int = 1
    """How many times each problem was solved."""
    missing: int = 0
    """Verdicts on candidates, their steps or as a whole, that the scorer was asked for and did not give."""
    unrated: int = 0
    """Candidates that were scored and have no verdict at all; they rank below the others."""
    windowed: int = 0
    """Candidates that were longer than the reward model's context, and so were read in windows."""
    one_step: int = 0
    """Candidates with one step only, where steps were rated or searched: their parts could not be told apart."""
    candidates: int = 0
    """Candidates of all problems."""

    def to_json(self) -> dict[str, Any]:
        """The object that `tts run --json` prints and summary.json contains."""

        def value(estimate: Estimate | None) -> float | None:
            return estimate.value if estimate else None

        return {
            "strategy": self.strategy,
            "n": self.n,
            "benchmark": self.benchmark,
            "problems": self.problems,
            "repeat": self.repeat,
            "graded": self.graded,
            "failed": self.failed,
            "accuracy": value(self.accuracy),
            "ci": [self.accuracy.low, self.accuracy.high] if self.accuracy else None,
            "pass@1": value(self.pass_at_1),
            "majority": value(self.majority),
            "pass@n": value(self.pass_at_n),
            "oracle_gap": value(self.oracle_gap),
            "flops": asdict(self.flops),
            "curve": [{"n": p.k, "accuracy": p.strategy.value, "ci": [p.strategy.low, p.strategy.high],
                       "majority": p.majority.value, "pass": p.passed.value} for p in self.curve],
            "omitted": self.omitted,
            "truncated": self.truncated,
            "missing_verdicts": self.missing,
            "unrated": self.unrated,
            "windowed": self.windowed,
            "candidates": self.candidates,
            "one_step": self.one_step,
            "usage": asdict(self.usage),
            "seconds": asdict(self.seconds),
            "run": self.run,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Graded:
    """The numbers of a graded row that a summary needs, so that rows need not stay in memory."""

    id: str
    problem: str
    """Id of the problem, which the rows of its repetitions share."""
    candidates: int
    right: bool
    """Whether the chosen candidate is right."""
    passed: bool
    """Whether any candidate is right."""
    mean: float
    """Share of right candidates."""
    majority: float
    curve: array[float]
    """For each point of the curve over this row's candidates: the strategy's accuracy and its standard error, the accuracy of
    majority voting, and pass@k."""


def summarize(
    records: Iterable[Record],
    strategy: Strategy,
    *,
    name: str,
    benchmark: str,
    cached: int,
    seconds: Seconds,
    run: str,
    reward: Callable[[Attempt], Reward],
    compares: bool = False,
    repeat: int = 1,
    flops: Callable[[Usage, float], Flops] | None = None,
) -> Summary:
    """Summarize the rows of a run. They are read once, and the result does not depend on their order.

    Args:
        records: One row per problem and repetition. Repetitions have ids that end in #2, #3, ….
        strategy: Strategy of the run.
        name: Name of the strategy.
        benchmark: Name of the benchmark.
        cached: Prompt tokens that the engine did not have to compute.
        seconds: Wall time.
        run: The run folder.
        reward: Returns the reward of an attempt as the strategy saw it, with the run's alpha and aggregate.
        compares: Whether the scorer compares candidates with each other, so that rewards are those of all n. Default False.
        repeat: How many times each problem was solved. Default 1.
        flops: Estimates operations from the usage and the mean number of tokens of a candidate. Default: unknown.
    """
    ranks, fixed = isinstance(strategy, Parallel), compares and strategy.uses_scorer
    rows: list[_Graded] = []
    usage, counts = Usage(cached=cached), Counter[str]()
    n = 0
    for record in records:
        attempts = record.candidates
        rewards = [reward(attempt) for attempt in attempts]
        rated = [r.rated for r in rewards]
        usage, n = usage + record.usage, max(n, len(attempts))
        counts.update(
            problems=1,
            failed=int(record.error is not None),
            attempts=len(attempts),
            tokens=sum(sum(attempt.tokens) for attempt in attempts),
            truncated=sum(attempt.finish == "length" for attempt in attempts),
            missing=sum(r.missing for r in rewards),
            windowed=sum(bool(attempt.windows) for attempt in attempts),
            unrated=sum(attempt.rewards is not None for attempt, known in zip(attempts, rated, strict=True) if not known),
            one_step=sum(
                is_one_step(attempt.text, delimiter(record.step_delimiter))
                for attempt in attempts
                if record.tree or attempt.rewards
            ),
        )
        if record.correct is not None:
            rows.append(_measure(record, strategy, rewards, repeat, fixed))
    rows.sort(key=lambda row: row.id)
    ids = [row.problem for row in rows]

    def over(value: Callable[[_Graded], float]) -> Estimate | None:
        return _over_problems([value(row) for row in rows], ids) if rows else None

    return Summary(
        strategy=name,
        n=n,
        benchmark=benchmark,
        problems=counts["problems"],
        graded=len(rows),
        failed=counts["failed"],
        accuracy=over(lambda row: float(row.right)),
        pass_at_1=over(lambda row: row.mean),
        majority=over(lambda row: row.majority),
        pass_at_n=over(lambda row: float(row.passed)),
        oracle_gap=over(lambda row: float(row.passed and not row.right)),
        flops=flops(usage, counts["tokens"] / max(1, counts["attempts"])) if flops else Flops(),
        curve=_curve([row for row in rows if row.candidates == n], _sizes(n, fixed)) if ranks and n > 1 else (),
        omitted=OMITTED if ranks and fixed and n > 2 else "",
        truncated=counts["truncated"],
        usage=usage,
        seconds=seconds,
        run=run,
        repeat=repeat,
        missing=counts["missing"],
        unrated=counts["unrated"],
        windowed=counts["windowed"],
        one_step=counts["one_step"],
        candidates=counts["attempts"],
    )


OMITTED = "the scorer compares candidates with each other, so their rewards among fewer candidates would be others"


def _measure(record: Record, strategy: Strategy, rewards: Sequence[Reward], repeat: int, fixed: bool) -> _Graded:
    right, n = [bool(attempt.correct) for attempt in record.candidates], len(record.candidates)
    sizes = _sizes(n, fixed) if isinstance(strategy, Parallel) else [n]
    voted = _at_sizes(Majority(), record, sizes, [])
    curve = array("d")
    if isinstance(strategy, Parallel):
        chosen = voted if type(strategy) is Majority else _at_sizes(strategy, record, sizes, rewards)
        for k, choice, vote in zip(sizes, chosen, voted, strict=True):
            curve.extend((*choice, vote.value, pass_at_k(right, k)))
    problem = problem_of(record.id, repeat)
    return _Graded(record.id, problem, n, bool(record.correct), any(right), sum(right) / n, voted[-1].value, curve)


def _sizes(n: int, fixed: bool) -> list[int]:
    """The sizes of the curve's subsets. Among rewards that are `fixed` for n candidates, only a single one can be chosen."""
    return [1, n] if fixed and n > 1 else [*(2**i for i in range(n.bit_length()) if 2**i < n), n]


def at_k(strategy: Parallel, record: Record, k: int, reward: Callable[[Attempt], Reward]) -> Sampled:
    """Expected correctness of the strategy's choice among k of a record's candidates, over all subsets of that size.

    The choice follows `Preference`, as that of a run does; at k = n, the two are the same. Otherwise, the mean over all subsets
    is computed in closed form if the score of a candidate depends on that candidate alone, and counted if it is the number of
    votes for its answer (see `Parallel`) and there are at most 128 candidates. In other cases it is a mean over subsets: all of
    them, or 64 if there are more.

    Args:
        strategy: Strategy that ranks the candidates.
        record: Row of a graded problem.
        k: Size of the subsets, at most the number of candidates.
        reward: Returns the reward of an attempt as the strategy saw it. It must not depend on the other candidates if k < n.
    """
    return _at_sizes(strategy, record, [k], [reward(attempt) for attempt in record.candidates])[0]


def _at_sizes(strategy: Parallel, record: Record, sizes: Sequence[int], rewards: Sequence[Reward]) -> list[Sampled]:
    """`at_k` for several sizes in ascending order."""
    attempts, n = record.candidates, len(record.candidates)
    correct = [bool(attempt.correct) for attempt in attempts]
    groups = [attempt.group for attempt in attempts]
    rewards = rewards if strategy.uses_scorer else []

    def prefer(subset: Sequence[int]) -> list[Preference]:
        scores = strategy.rank([rewards[i] for i in subset] if rewards else [], [groups[i] for i in subset])
        return [
            Preference.of(attempts[i].finish, score, i, rated=not rewards or rewards[i].rated)
            for i, score in zip(subset, scores, strict=True)
        ]

    def choose(subset: Sequence[int]) -> int:
        return -max(prefer(subset)).place

    whole, smaller = prefer(range(n)), [k for k in sizes if k < n]
    if not smaller:
        found = []
    elif not strategy.uses_answers:  # each score depends on its own candidate alone
        found = [Sampled(value) for value in best_curve(whole, correct, smaller)]
    elif strategy.counts_votes and n <= COUNTED:
        finished = [attempt.finish == "stop" for attempt in attempts]
        found = [Sampled(value) for value in majority_curve(groups, correct, finished, smaller)]
    else:
        found = [choice_at_k(choose, correct, k, seed=0) for k in smaller]
    return found if len(found) == len(sizes) else [*found, Sampled(float(correct[-max(whole).place]))]


def _curve(rows: Sequence[_Graded], sizes: Sequence[int]) -> tuple[Point, ...]:
    """The curve over rows that all have as many candidates as the last size."""
    if not rows:
        return ()
    problems, points = [row.problem for row in rows], []
    for i, k in enumerate(sizes):
        values, errors, *baselines = ([row.curve[4 * i + place] for row in rows] for place in range(4))
        error = fsum(error**2 for error in errors) ** 0.5 / len(rows)
        chosen, majority, passed = (_over_problems(each, problems) for each in (values, *baselines))
        points.append(Point(k, chosen, majority, passed, error))
    return tuple(points)


def _over_problems(values: Sequence[float], problems: Sequence[str]) -> Estimate:
    """The estimate over problems from one value per row; repetitions of one problem say nothing about other problems."""
    if len(set(problems)) == len(problems):
        return estimate(values)
    repetitions: defaultdict[str, list[float]] = defaultdict(list)
    for problem, value in zip(problems, values, strict=True):
        repetitions[problem].append(value)
    return estimate([fsum(members) / len(members) for members in repetitions.values()])
