"""The summary of a finished run: accuracy, baselines computed from the same candidates, the curve over N, and usage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import fsum
from typing import Any, NamedTuple

from tts.data.store import Attempt, Record
from tts.evals.cost import Flops
from tts.evals.intervals import Estimate, estimate
from tts.evals.statistics import Sampled, best_of_k, choice_at_k, majority_of_k, pass_at_k
from tts.strategies.majority import Majority
from tts.strategies.parallel import Parallel
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
    compares: bool = False,
    repeat: int = 1,
    flops: Flops | None = None,
) -> Summary:
    """Summarize the rows of a run.

    Args:
        records: One row per problem; with `repeat` > 1, all problems once, then in the same order again, `repeat` times.
        strategy: Strategy of the run.
        name: Name of the strategy.
        benchmark: Name of the benchmark.
        cached: Prompt tokens that the engine did not have to compute.
        seconds: Wall time.
        run: The run folder.
        reward: Returns the reward of an attempt as the strategy saw it, with the run's alpha and aggregate.
        compares: Whether the scorer compares candidates with each other, so that rewards are those of all n. Default False.
        repeat: How many times each problem was solved. Default 1.
        flops: Estimated operations. Default: unknown.
    """
    problem_of = {record.id: i % (len(records) // repeat) for i, record in enumerate(records)}
    graded = [record for record in records if record.correct is not None]
    problems = [problem_of[record.id] for record in graded]
    n = max((len(record.candidates) for record in records), default=0)
    ranking = strategy if isinstance(strategy, Parallel) and n > 1 else None
    fixed = ranking is not None and ranking.uses_scorer and compares and n > 2

    def over(value: Callable[[Record], float]) -> Estimate | None:
        return _over_problems([value(record) for record in graded], problems) if graded else None

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
        majority=over(lambda record: _majority_at_k(record, len(record.candidates))),
        pass_at_n=over(lambda record: float(any(right(record)))),
        oracle_gap=over(lambda record: float(any(right(record))) - float(bool(record.correct))),
        flops=flops or Flops(),
        curve=_curve(graded, ranking, _sizes(n, fixed), reward, problem_of) if ranking else (),
        omitted=OMITTED if fixed else "",
        truncated=sum(attempt.finish == "length" for record in records for attempt in record.candidates),
        usage=sum((record.usage for record in records), Usage(cached=cached)),
        seconds=seconds,
        run=run,
        repeat=repeat,
    )


OMITTED = "the scorer compares candidates with each other, so their rewards among fewer candidates would be others"


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
    attempts = record.candidates
    correct = [bool(attempt.correct) for attempt in attempts]
    rewards = [reward(attempt) for attempt in attempts] if strategy.uses_scorer else []
    groups = [attempt.group for attempt in attempts]

    def prefer(subset: Sequence[int]) -> list[Preference]:
        scores = strategy.rank([rewards[i] for i in subset] if rewards else [], [groups[i] for i in subset])
        return [Preference.of(attempts[i].finish, score, i) for i, score in zip(subset, scores, strict=True)]

    def choose(subset: Sequence[int]) -> int:
        return -max(prefer(subset)).place

    everyone = range(len(attempts))
    if k == len(attempts):
        return Sampled(float(correct[choose(everyone)]))
    if not strategy.uses_answers:  # each score depends on its own candidate alone
        return Sampled(best_of_k(prefer(everyone), correct, k))
    if strategy.counts_votes and len(attempts) <= COUNTED:
        return Sampled(majority_of_k(groups, correct, [attempt.finish == "stop" for attempt in attempts], k))
    return choice_at_k(choose, correct, k, seed=0)


def _majority_at_k(record: Record, k: int) -> float:
    """Expected correctness of the most frequent answer among k of a record's candidates: the baseline of every run."""
    return at_k(Majority(), record, k, lambda attempt: Reward(())).value


def _sizes(n: int, fixed: bool) -> list[int]:
    """The sizes of the curve's subsets. Among rewards that are `fixed` for n candidates, only a single one can be chosen."""
    return [1, n] if fixed else [*(2**i for i in range(n.bit_length()) if 2**i < n), n]


def _curve(
    graded: Sequence[Record],
    strategy: Parallel,
    sizes: Sequence[int],
    reward: Callable[[Attempt], Reward],
    problem_of: Mapping[str, int],
) -> tuple[Point, ...]:
    full = [record for record in graded if len(record.candidates) == sizes[-1]]
    if not full:
        return ()
    points, problems = [], [problem_of[record.id] for record in full]
    for k in sizes:
        chosen = [at_k(strategy, record, k, reward) for record in full]
        majority = chosen if type(strategy) is Majority else [Sampled(_majority_at_k(record, k)) for record in full]
        points.append(
            Point(
                k,
                _over_problems([sampled.value for sampled in chosen], problems),
                _over_problems([sampled.value for sampled in majority], problems),
                _over_problems([pass_at_k([bool(a.correct) for a in record.candidates], k) for record in full], problems),
                sum(sampled.error**2 for sampled in chosen) ** 0.5 / len(chosen),
            )
        )
    return tuple(points)


def _over_problems(values: Sequence[float], problems: Sequence[int]) -> Estimate:
    """The estimate over problems from one value per row; repetitions of one problem say nothing about other problems."""
    repetitions: defaultdict[int, list[float]] = defaultdict(list)
    for problem, value in zip(problems, values, strict=True):
        repetitions[problem].append(value)
    return estimate([fsum(members) / len(members) for members in repetitions.values()])
