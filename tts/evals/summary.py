"""What a finished run amounts to: accuracy beside its baselines from the same candidates, the bill, the curve over N."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from tts.data.store import Attempt, Record
from tts.evals.cost import Flops
from tts.evals.statistics import Sampled, best_of_k, choice_at_k, interval, majority_of_k, pass_at_k
from tts.strategies.majority import Majority
from tts.strategies.parallel import Parallel
from tts.types import Reward, Strategy, Usage


@dataclass(frozen=True)
class Seconds:
    """Wall time. Generation and scoring overlap, so they may add up to more than the total.

    `waiting` is the requests' own: what each spent in the engine's queue, or between attempts at a busy server, summed.
    """

    total: float = 0.0
    generation: float = 0.0
    scoring: float = 0.0
    waiting: float = 0.0


class Estimate(NamedTuple):
    """A mean over problems, with its 95 % bootstrap interval over problems."""

    value: float
    low: float
    high: float


class Point(NamedTuple):
    """Accuracies at k samples, all expected over the subsets of the same candidates."""

    k: int
    strategy: Estimate
    majority: Estimate
    passed: Estimate
    """pass@k: at least one of the k is right."""
    error: float = 0.0
    """Standard error of the strategy's value from drawing subsets; 0 where it is exact."""


@dataclass(frozen=True)
class Summary:
    """A run's result. Accuracies are None where no problem has a reference answer."""

    strategy: str
    n: int
    """Most candidates that any problem has."""
    benchmark: str
    problems: int
    graded: int
    """Problems with a reference answer and without an error; accuracies are means over these."""
    failed: int
    accuracy: Estimate | None
    pass_at_1: Estimate | None
    majority: Estimate | None
    pass_at_n: Estimate | None
    curve: tuple[Point, ...]
    """Empty for strategies whose smaller n cannot be read off a larger one."""
    truncated: int
    """Candidates that ran out of tokens."""
    usage: Usage
    seconds: Seconds
    run: str
    flops: Flops = field(default_factory=Flops)
    """Estimated."""
    oracle_gap: Estimate | None = None
    """pass@N less accuracy: what a better choice among the same candidates could still gain."""
    repeat: int = 1
    """How often each problem was solved; `problems`, `graded` and `failed` count every time."""

    def to_json(self) -> dict[str, Any]:
        """One flat object, under the names that `tts run --json` prints."""

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


def summarize(
    records: Sequence[Record],
    strategy: Strategy,
    *,
    name: str,
    benchmark: str,
    cached: int,
    seconds: Seconds,
    run: str,
    reward: Callable[[Attempt], Reward],
    repeat: int = 1,
    flops: Flops | None = None,
) -> Summary:
    """Sum up the rows of a run; `reward` makes an attempt's reward as the strategy saw it.

    Where problems were repeated, the rows are all problems once, then in the same order again, `repeat` times.
    """
    problem_of = {record.id: i % (len(records) // repeat) for i, record in enumerate(records)}
    graded = [record for record in records if record.correct is not None]
    n = max((len(record.candidates) for record in records), default=0)

    def over(value: Callable[[Record], float]) -> Estimate | None:
        values = [value(record) for record in graded]
        return estimate(values, [problem_of[record.id] for record in graded]) if values else None

    def right(record: Record) -> list[bool]:
        return [bool(attempt.correct) for attempt in record.candidates]

    return Summary(
        strategy=name,
        n=n,
        benchmark=benchmark,
        problems=len(records),
        graded=len(graded),
        failed=sum(record.error is not None for record in records),
        accuracy=over(lambda record: float(bool(record.correct))),
        pass_at_1=over(lambda record: pass_at_k(right(record), 1)),
        majority=over(lambda record: at_k(Majority(), record, len(record.candidates), reward).value),
        pass_at_n=over(lambda record: float(any(right(record)))),
        oracle_gap=over(lambda record: float(any(right(record))) - float(bool(record.correct))),
        flops=flops or Flops(),
        curve=_curve(graded, strategy, n, reward, problem_of) if isinstance(strategy, Parallel) and n > 1 else (),
        truncated=sum(attempt.finish == "length" for record in records for attempt in record.candidates),
        usage=sum((record.usage for record in records), Usage(cached=cached)),
        seconds=seconds,
        run=run,
        repeat=repeat,
    )


def at_k(strategy: Parallel, record: Record, k: int, reward: Callable[[Attempt], Reward]) -> Sampled:
    """Expected correctness of a strategy that had sampled k of the record's candidates.

    In closed form where a candidate's score is its own, and for majority votes; else over subsets, all of them or some.
    """
    correct = [bool(attempt.correct) for attempt in record.candidates]
    finished = [attempt.finish == "stop" for attempt in record.candidates]
    rewards = [reward(attempt) for attempt in record.candidates] if strategy.uses_scorer else []
    groups = [attempt.group for attempt in record.candidates]
    if not strategy.uses_answers:  # a candidate's score is its own, whatever the others are
        scores = strategy.rank(rewards, [])
        return Sampled(best_of_k(list(zip(scores, finished, strict=True)), correct, k))
    if strategy.counts_votes and k < len(groups):
        return Sampled(majority_of_k(groups, correct, k))

    def choose(subset: list[int]) -> int:
        scores = strategy.rank([rewards[i] for i in subset] if rewards else [], [groups[i] for i in subset])
        return max(zip(scores, subset, strict=True), key=lambda pair: (pair[0], finished[pair[1]], -pair[1]))[1]

    return choice_at_k(choose, correct, k, seed=0)


def _curve(
    graded: Sequence[Record],
    strategy: Parallel,
    n: int,
    reward: Callable[[Attempt], Reward],
    problem_of: Mapping[str, int],
) -> tuple[Point, ...]:
    full = [record for record in graded if len(record.candidates) == n]
    ks = [2**i for i in range(n.bit_length()) if 2**i < n] + [n]
    if not full:
        return ()
    points, problems = [], [problem_of[record.id] for record in full]
    for k in ks:
        chosen = [at_k(strategy, record, k, reward) for record in full]
        points.append(
            Point(
                k,
                estimate([sampled.value for sampled in chosen], problems),
                estimate([at_k(Majority(), record, k, reward).value for record in full], problems),
                estimate([pass_at_k([bool(a.correct) for a in record.candidates], k) for record in full], problems),
                sum(sampled.error**2 for sampled in chosen) ** 0.5 / len(chosen),
            )
        )
    return tuple(points)


def estimate(values: Sequence[float], problems: Sequence[int] | None = None) -> Estimate:
    """The mean over problems, with its interval. `problems` says which each value is of, where they are repeated: the values of
    one problem are averaged first, since repetitions say nothing about other problems."""
    if problems is not None:
        repetitions: defaultdict[int, list[float]] = defaultdict(list)
        for problem, value in zip(problems, values, strict=True):
            repetitions[problem].append(value)
        values = [sum(members) / len(members) for members in repetitions.values()]
    return Estimate(sum(values) / len(values), *interval(values))
