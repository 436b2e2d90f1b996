"""Adaptive sampling (Adaptive-Consistency, Aggarwal et al. 2023, https://arxiv.org/abs/2305.11860)."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Lt

from tts.solving.generator import Generator, derive_seed
from tts.types import Candidate, Count, Problem, Result, Reward, Scorer, Strategy


@dataclass(frozen=True)
class Adaptive(Strategy):
    """Sample in rounds until the leading answer is settled, n at most.

    The share of the leading answer against the next has the posterior Beta(a + 1, b + 1), of their votes or summed rewards; it
    is settled when that share is above one half with the asked confidence. What easy problems leave of --run-budget is there
    for hard ones.
    """

    n: Count = 64
    """Samples, at most."""
    batch: Count = 4
    """Samples of a round."""
    confidence: Annotated[float, Ge(0.5), Lt(1)] = 0.95
    """Probability at which the leading answer counts as settled."""
    by: Literal["reward", "votes"] = "reward"
    """What speaks for an answer: the rewards of its samples, or their number (no reward model is asked)."""

    DRAWS: ClassVar[int] = 4000
    """Of the posterior; its probability is off by 0.3 points of a hundred at 95 %."""

    async def solve(self, problem: Problem, generator: Generator, scorer: Scorer) -> Result:
        dice = random.Random(derive_seed(generator.seed, problem.id, "adaptive"))
        candidates: list[Candidate] = []
        rewards: list[Reward] = []
        while True:
            drawn = await generator.finish(Candidate(problem), min(self.batch, self.n - len(candidates)))
            candidates += drawn
            if self.by == "reward":
                rewards += await scorer.score(drawn)
            scores, weights = self._weigh(await generator.groups(candidates), rewards)
            exhausted = len(candidates) >= self.n or generator.spent
            if exhausted or self._settled(weights, dice):
                return Result(candidates, rewards, scores)

    def _weigh(self, groups: Sequence[int | None], rewards: Sequence[Reward]) -> tuple[list[float], list[float]]:
        """Each candidate's score, and what speaks for each answer."""
        weights: defaultdict[int, float] = defaultdict(float)
        for i, group in enumerate(groups):
            if group is not None:
                weights[group] += _votes(rewards[i]) if rewards else 1.0
        return [weights[group] if group is not None else 0.0 for group in groups], list(weights.values())

    def _settled(self, weights: Sequence[float], dice: random.Random) -> bool:
        first, second = sorted([*weights, 0.0, 0.0], reverse=True)[:2]
        leads = sum(dice.betavariate(first + 1, second + 1) > 0.5 for _ in range(self.DRAWS))
        return leads >= self.confidence * self.DRAWS


def _votes(reward: Reward) -> float:
    """What a sample counts, one vote at the most: r_hat as a share of what it can be."""
    return max(0.0, reward.total) / (1 + (max(0.0, reward.alpha) if reward.final is not None else 0))
