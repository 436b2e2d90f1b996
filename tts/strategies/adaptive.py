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
    """Sample in rounds and stop as soon as the leading answer is settled, after n samples at most.

    The leading answer and the runner-up have a and b votes (or sums of rewards). The leader's share of the two then has the
    posterior Beta(a + 1, b + 1); sampling stops when this share exceeds one half with probability `confidence`. Tokens of
    --run-budget that easy problems do not use remain for hard ones.
    """

    n: Count = 64
    """Maximum number of samples."""
    batch: Count = 4
    """Samples per round."""
    confidence: Annotated[float, Ge(0.5), Lt(1)] = 0.95
    """Probability at which the leading answer counts as settled."""
    by: Literal["reward", "votes"] = "reward"
    """What an answer is weighed by: the summed rewards of its samples, or their number (no reward model is used)."""

    DRAWS: ClassVar[int] = 4000
    """Draws from the posterior. The estimated probability has a standard error of 0.3 percentage points at 95 %."""

    async def solve(self, problem: Problem, generator: Generator, scorer: Scorer) -> Result:
        rng = random.Random(derive_seed(generator.seed, problem.id, "adaptive"))
        candidates: list[Candidate] = []
        rewards: list[Reward] = []
        while True:
            drawn = await generator.finish(Candidate(problem), min(self.batch, self.n - len(candidates)))
            candidates += drawn
            if self.by == "reward":
                rewards += await scorer.score(drawn)
            scores, weights = self._weigh(await generator.groups(candidates), rewards)
            exhausted = len(candidates) >= self.n or generator.spent
            if exhausted or self._settled(weights, rng):
                return Result(candidates, rewards, scores)

    def _weigh(self, groups: Sequence[int | None], rewards: Sequence[Reward]) -> tuple[list[float], list[float]]:
        """The score of each candidate, and the weight of each answer."""
        weights: defaultdict[int, float] = defaultdict(float)
        for i, group in enumerate(groups):
            if group is not None:
                weights[group] += _vote(rewards[i]) if rewards else 1.0
        return [weights[group] if group is not None else 0.0 for group in groups], list(weights.values())

    def _settled(self, weights: Sequence[float], rng: random.Random) -> bool:
        first, second = sorted([*weights, 0.0, 0.0], reverse=True)[:2]
        leads = sum(rng.betavariate(first + 1, second + 1) > 0.5 for _ in range(self.DRAWS))
        return leads >= self.confidence * self.DRAWS


def _vote(reward: Reward) -> float:
    """The weight of one sample, at most 1: the total reward as a share of the largest total possible."""
    return max(0.0, reward.total) / (1 + (max(0.0, reward.alpha) if reward.final is not None else 0))
