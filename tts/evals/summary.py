"""The summary of a finished run: accuracy, baselines computed from the same candidates, the curve over N, and usage."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from tts.data.store import Attempt, Record
from tts.evals.benchmarks import problem_of
from tts.evals.cost import Flops
from tts.evals.statistics import Sampled, best_of_k, choice_at_k, interval, majority_of_k, pass_at_k
from tts.strategies.majority import Majority
from tts.strategies.parallel import Parallel
from tts.types import Reward, Strategy, Usage


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


class Estimate(NamedTuple):
    """A mean over problems with its 95 % bootstrap interval over problems."""

    value: float
    low: float
    high: float


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
            "truncated": self.truncated,
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
        repeat: How many times each problem was solved. Default 1.
        flops: Estimates operations from the usage and the mean number of tokens of a candidate. Default: unknown.
    """
    rows: list[_Graded] = []
    usage, problems, failed, n, attempts, truncated, tokens = Usage(cached=cached), 0, 0, 0, 0, 0, 0
    for record in records:
        usage, problems, failed = usage + record.usage, problems + 1, failed + (record.error is not None)
        n, attempts = max(n, len(record.candidates)), attempts + len(record.candidates)
        truncated += sum(attempt.finish == "length" for attempt in record.candidates)
        tokens += sum(sum(attempt.tokens) for attempt in record.candidates)
        if record.correct is not None:
            rows.append(_measure(record, strategy, reward, repeat))
    rows.sort(key=lambda row: row.id)
    ids = [row.problem for row in rows]

    def over(value: Callable[[_Graded], float]) -> Estimate | None:
        return estimate([value(row) for row in rows], ids) if rows else None

    return Summary(
        strategy=name,
        n=n,
        benchmark=benchmark,
        problems=problems,
        graded=len(rows),
        failed=failed,
        accuracy=over(lambda row: float(row.right)),
        pass_at_1=over(lambda row: row.mean),
        majority=over(lambda row: row.majority),
        pass_at_n=over(lambda row: float(row.passed)),
        oracle_gap=over(lambda row: float(row.passed) - float(row.right)),
        flops=flops(usage, tokens / attempts if attempts else 0.0) if flops else Flops(),
        curve=_curve([row for row in rows if row.candidates == n], n) if isinstance(strategy, Parallel) and n > 1 else (),
        truncated=truncated,
        usage=usage,
        seconds=seconds,
        run=run,
        repeat=repeat,
    )


def _measure(record: Record, strategy: Strategy, reward: Callable[[Attempt], Reward], repeat: int) -> _Graded:
    right = [bool(attempt.correct) for attempt in record.candidates]
    majority = _majority_at_k(record, len(right))
    curve = array("d")
    if isinstance(strategy, Parallel):
        for k in _sizes(len(right)):
            curve.extend((*at_k(strategy, record, k, reward), _majority_at_k(record, k), pass_at_k(right, k)))
    problem = problem_of(record.id, repeat)
    return _Graded(record.id, problem, len(right), bool(record.correct), any(right), sum(right) / len(right), majority, curve)


def _sizes(n: int) -> list[int]:
    """The numbers of samples at which a curve up to n has points."""
    return [2**i for i in range(n.bit_length()) if 2**i < n] + [n]


def at_k(strategy: Parallel, record: Record, k: int, reward: Callable[[Attempt], Reward]) -> Sampled:
    """Expected correctness of the strategy's choice among k of a record's candidates, over all subsets of that size.

    It is computed in closed form if the score of a candidate depends on that candidate alone, or is the number of votes for its
    answer (see `Parallel`). Otherwise it is a mean over subsets: all of them, or 64 if there are more.

    Args:
        strategy: Strategy that ranks the candidates.
        record: Row of a graded problem.
        k: Size of the subsets, at most the number of candidates.
        reward: Returns the reward of an attempt as the strategy saw it.
    """
    correct = [bool(attempt.correct) for attempt in record.candidates]
    finished = [attempt.finish == "stop" for attempt in record.candidates]
    rewards = [reward(attempt) for attempt in record.candidates] if strategy.uses_scorer else []
    groups = [attempt.group for attempt in record.candidates]
    if not strategy.uses_answers:  # each score depends on its own candidate alone
        scores = strategy.rank(rewards, [])
        return Sampled(best_of_k(list(zip(scores, finished, strict=True)), correct, k))
    if strategy.counts_votes and k < len(groups):
        return Sampled(majority_of_k(groups, correct, k))

    def choose(subset: list[int]) -> int:
        scores = strategy.rank([rewards[i] for i in subset] if rewards else [], [groups[i] for i in subset])
        return max(zip(scores, subset, strict=True), key=lambda pair: (pair[0], finished[pair[1]], -pair[1]))[1]

    return choice_at_k(choose, correct, k, seed=0)


def _majority_at_k(record: Record, k: int) -> float:
    """Expected correctness of the most frequent answer among k of a record's candidates: the baseline of every run."""
    return at_k(Majority(), record, k, lambda attempt: Reward(())).value


def _curve(rows: Sequence[_Graded], n: int) -> tuple[Point, ...]:
    """The curve over rows that all have n candidates."""
    if not rows:
        return ()
    problems, points = [row.problem for row in rows], []
    for i, k in enumerate(_sizes(n)):
        values, errors, majority, passed = ([row.curve[4 * i + place] for row in rows] for place in range(4))
        error = sum(error**2 for error in errors) ** 0.5 / len(rows)
        points.append(Point(k, estimate(values, problems), estimate(majority, problems), estimate(passed, problems), error))
    return tuple(points)


def estimate(values: Sequence[float], problems: Sequence[str] | None = None) -> Estimate:
    """The mean over problems with its interval.

    `values` has at least one entry. If problems were repeated, `problems` has the id of the problem for each value; the
    values of a problem are averaged first, since repetitions of one problem say nothing about other problems.
    """
    if problems is not None:
        repetitions: defaultdict[str, list[float]] = defaultdict(list)
        for problem, value in zip(problems, values, strict=True):
            repetitions[problem].append(value)
        values = [sum(members) / len(members) for members in repetitions.values()]
    return Estimate(sum(values) / len(values), *interval(values))
