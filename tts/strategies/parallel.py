"""Strategies that sample n solutions at once and differ only in how they rank them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tts.solving.generator import Generator
from tts.types import Candidate, Count, Problem, Result, Reward, Scorer, Strategy


@dataclass(frozen=True)
class Parallel(Strategy):
    """Sample n solutions, then rank them: any subset of the n is what a smaller n would have ranked."""

    n: Count = 16
    """Solutions to sample."""

    uses_answers: ClassVar[bool] = False
    """Whether the ranking asks which answers are equivalent."""

    @abstractmethod
    def rank(self, rewards: Sequence[Reward], groups: Sequence[int | None]) -> Sequence[float]:
        """A score per candidate, higher is better. `rewards` is empty unless `uses_scorer`, `groups` unless `uses_answers`."""

    async def solve(self, problem: Problem, generator: Generator, scorer: Scorer) -> Result:
        candidates = await generator.finish(Candidate(problem), self.n)
        rewards = await scorer.score(candidates) if self.uses_scorer else []
        groups = await generator.groups(candidates) if self.uses_answers else []
        return Result(candidates, rewards, self.rank(rewards, groups))
