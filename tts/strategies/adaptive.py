"""Adaptive sampling (Adaptive-Consistency, Aggarwal et al. 2023, https://arxiv.org/abs/2305.11860)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Lt

from tts.errors import InputError
from tts.solving.generator import Generator, derive_seed
from tts.strategies.votes import tally, vote_shares
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
    """What an answer is weighed by: the summed rewards of its samples, on a scale on which a sample counts at most 1 vote, or
    their number (no reward model is used)."""

    DRAWS: ClassVar[int] = 4000
    """Draws from the posterior. The estimated probability has a standard error of 0.3 percentage points at 95 %."""

    def __post_init__(self) -> None:
        if self.batch > self.n:
            raise InputError(f"--batch is {self.batch}; it should be at most --n, which is {self.n}")

    @classmethod
    def options_for(cls, n: int, pilot: int) -> dict[str, Any]:
        """`n`, and the default batch, or n if that is smaller."""
        return {"n": n, "batch": min(cls.batch, n)}

    async def solve(self, problem: Problem, generator: Generator, scorer: Scorer) -> Result:
        rng = random.Random(derive_seed(generator.seed, problem.id, "adaptive"))
        candidates: list[Candidate] = []
        rewards: list[Reward] = []
        while True:
            drawn = await generator.finish(Candidate(problem), min(self.batch, self.n - len(candidates)))
            candidates += drawn
            if self.by == "reward":
                rewards += await scorer.score(drawn)
            groups = await generator.groups(candidates)
            scores = tally(groups, vote_shares(rewards) if rewards else [1.0] * len(candidates))
            answers = {group: score for group, score in zip(groups, scores, strict=True) if group is not None}
            exhausted = len(candidates) >= self.n or generator.spent
            if exhausted or self._settled([*answers.values()], rng):
                return Result(candidates, rewards, scores)

    def _settled(self, weights: Sequence[float], rng: random.Random) -> bool:
        first, second = sorted([*weights, 0.0, 0.0], reverse=True)[:2]
        leads = sum(rng.betavariate(first + 1, second + 1) > 0.5 for _ in range(self.DRAWS))
        return leads >= self.confidence * self.DRAWS
