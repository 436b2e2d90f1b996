"""The reward of a policy in RL, r = (1 - beta) * r_out + beta * r_hat (arXiv 2506.18896)."""

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


class RewardParts(NamedTuple):
    """The two parts of a completion's reward."""

    outcome: float | None
    """r_out: 1 for a correct answer, 0 otherwise; None for a problem without a reference answer."""
    prm: float | None
    """r_hat, the `Reward.total` of the reward model; None without a reward model, and where it gave no verdict."""


def mix(parts: RewardParts, beta: float) -> float:
    """Return (1 - beta) * r_out + beta * r_hat, for beta in [0, 1]. A part that is None counts as 0."""
    return sum(weight * (part or 0.0) for weight, part in zip((1 - beta, beta), parts, strict=True))


class Rewards:
    """Computes both parts of the reward, for all completions of a problem together.

    A completion that the reward model cannot read, as its problem is longer than the context, or on which it gives no verdict,
    has no r_hat. The attribute `unread` counts these, and the first one is reported on stderr.

    Args:
        scorer: The reward model; None for outcome rewards alone.
        alpha: Weight of the final reward in r_hat. Default: 1.0.
        aggregate: How step rewards become one number in r_hat. Default: "mean".
    """

    def __init__(self, scorer: Scorer | None, *, alpha: float = 1.0, aggregate: Aggregate = "mean") -> None:
        self.grader = Grader()
        self.scorer = None
        if scorer is not None:
            self.scorer = MeteredScorer(scorer, usage=Usage(), clock=Clock(), alpha=alpha, aggregate=aggregate)
        self.unread = 0

    async def __call__(self, candidates: Sequence[Candidate]) -> list[RewardParts]:
        """Return both parts of every candidate's reward, in order."""
        outcomes, prms = await asyncio.gather(self.outcome(candidates), self.prm(candidates))
        return [RewardParts(*parts) for parts in zip(outcomes, prms, strict=True)]

    async def outcome(self, candidates: Sequence[Candidate]) -> list[float | None]:
        """Return r_out of every candidate, in order. Raises RuntimeError if a grader of the user's own fails."""

        async def judge(group: list[Candidate]) -> list[float | None]:
            verdicts = await self.grader.judge(group)
            return [None if verdict.correct is None else float(verdict.correct) for verdict in verdicts]

        return await _by_problem(candidates, judge)

    async def prm(self, candidates: Sequence[Candidate]) -> list[float | None]:
        """Return r_hat of every candidate, in order."""
        return await _by_problem(candidates, self._rate)

    async def _rate(self, group: list[Candidate]) -> list[float | None]:
        if self.scorer is None:
            return [None] * len(group)
        try:
            rewards = await self.scorer.score(group)
        except InputError as error:
            if len(group) > 1:  # one unreadable trace must not cost the others their reward
                return [total for candidate in group for total in await self._rate([candidate])]
            return [self._without(str(error))]
        return [reward.total if reward.rated else self._without("it gave no verdict") for reward in rewards]

    def _without(self, reason: str) -> float | None:
        if not self.unread:
            warn(f"a completion that the reward model cannot rate has no r_hat; the mixed reward counts it as 0: {reason}")
        self.unread += 1
        return None

    async def close(self) -> None:
        """Stop the grader's processes."""
        await self.grader.close()


async def _by_problem(candidates: Sequence[Candidate], work: Callable[[list[Candidate]], Awaitable[list[T]]]) -> list[T]:
    """Call `work` on the candidates of each problem, and return its results in the order of all candidates."""
    groups: dict[Problem, list[int]] = {}
    for i, candidate in enumerate(candidates):
        groups.setdefault(candidate.problem, []).append(i)
    done = await asyncio.gather(*(work([candidates[i] for i in group]) for group in groups.values()))
    places = [i for group in groups.values() for i in group]
    by_place = dict(zip(places, (value for values in done for value in values), strict=True))
    return [by_place[i] for i in range(len(candidates))]
