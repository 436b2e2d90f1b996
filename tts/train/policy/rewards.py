"""What a policy learns from, r = (1 - beta) * r_out + beta * r_hat (arXiv 2506.18896): both parts, and their sum."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeVar

from tts.errors import InputError
from tts.grading.pool import Grader
from tts.show.console import warn
from tts.solving.clock import Clock
from tts.solving.generator import MeteredScorer
from tts.types import Aggregate, Candidate, Problem, Scorer, Usage

T = TypeVar("T")


class Parts(NamedTuple):
    """What a completion earns."""

    outcome: float | None
    """r_out: 1 for a right answer, 0 for any other; None where the problem has no reference answer."""
    prm: float | None
    """r_hat: `Reward.total`; None where no reward model is asked."""


def mix(parts: Parts, beta: float) -> float:
    """(1 - beta) * r_out + beta * r_hat; a part of weight 0 may be missing."""
    return sum(weight * (part or 0.0) for weight, part in zip((1 - beta, beta), parts, strict=True))


class Rewards:
    """Judges completions by their answer and by a reward model, those of a problem together.

    A trace that the reward model cannot read (it is longer than its context) earns the r_hat 0 and is counted in `unread`; the
    first is said on stderr.
    """

    def __init__(self, scorer: Scorer | None, *, alpha: float = 1.0, aggregate: Aggregate = "mean") -> None:
        self.grader = Grader()
        self.scorer = None
        if scorer is not None:
            self.scorer = MeteredScorer(scorer, usage=Usage(), clock=Clock(), alpha=alpha, aggregate=aggregate)
        self.unread = 0

    async def __call__(self, candidates: Sequence[Candidate]) -> list[Parts]:
        """Both parts of every candidate, in order."""
        outcomes, prms = await asyncio.gather(self.outcome(candidates), self.prm(candidates))
        return [Parts(*parts) for parts in zip(outcomes, prms, strict=True)]

    async def outcome(self, candidates: Sequence[Candidate]) -> list[float | None]:
        """r_out of every candidate, in order. RuntimeError where a custom grader fails."""

        async def judge(group: list[Candidate]) -> list[float | None]:
            verdicts = await self.grader.judge(group)
            return [None if verdict.correct is None else float(verdict.correct) for verdict in verdicts]

        return await _by_problem(candidates, judge)

    async def prm(self, candidates: Sequence[Candidate]) -> list[float | None]:
        """r_hat of every candidate, in order."""
        return await _by_problem(candidates, self._rate)

    async def _rate(self, group: list[Candidate]) -> list[float | None]:
        if self.scorer is None:
            return [None] * len(group)
        try:
            return [reward.total for reward in await self.scorer.score(group)]
        except InputError as error:
            if len(group) > 1:  # one trace that cannot be read is no reason to lose the others
                return [total for candidate in group for total in await self._rate([candidate])]
            if not self.unread:
                warn(f"what the reward model cannot read earns 0 of its part: {error}")
            self.unread += 1
            return [0.0]

    async def close(self) -> None:
        """Let go of the grader's processes."""
        await self.grader.close()


async def _by_problem(candidates: Sequence[Candidate], work: Callable[[list[Candidate]], Awaitable[list[T]]]) -> list[T]:
    """Results of `work` on the candidates of each problem, in the order of the candidates."""
    groups: dict[Problem, list[int]] = {}
    for i, candidate in enumerate(candidates):
        groups.setdefault(candidate.problem, []).append(i)
    done = await asyncio.gather(*(work([candidates[i] for i in group]) for group in groups.values()))
    places = [i for group in groups.values() for i in group]
    by_place = dict(zip(places, (value for values in done for value in values), strict=True))
    return [by_place[i] for i in range(len(candidates))]
