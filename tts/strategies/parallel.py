"""Base class of the strategies that draw n independent samples and differ only in how they rank them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tts.solving.generator import Generator
from tts.types import Candidate, Count, Problem, Result, Reward, Scorer, Strategy


@dataclass(frozen=True)
class Parallel(Strategy):
    """Sample n solutions, then rank them.

    The samples are independent, so any subset of them is what a smaller n would have ranked; curves over N, and sweeps, are
    computed from one pool in this way.
    """

    n: Count = 16
    """Number of solutions to sample."""

    uses_answers: ClassVar[bool] = False
    """Whether the ranking depends on which answers are equivalent. If not, the score of a candidate must depend on that
    candidate alone: expectations over subsets are then computed in closed form."""
    counts_votes: ClassVar[bool] = False
    """Whether the score of a candidate is the number of equivalent answers, and nothing else. Expectations over subsets are
    then computed in closed form (`tts.evals.statistics.majority_of_k`)."""

    @abstractmethod
    def rank(self, rewards: Sequence[Reward], groups: Sequence[int | None]) -> Sequence[float]:
        """A score for each candidate; the highest is chosen.

        `rewards` has one reward per candidate, or is empty if `uses_scorer` is False. `groups` has one number per candidate,
        equal for equivalent answers and None without an answer, or is empty if `uses_answers` is False.
        """

    async def solve(self, problem: Problem, generator: Generator, scorer: Scorer) -> Result:
        candidates = await generator.finish(Candidate(problem), self.n)
        return await self._ranked(candidates, await scorer.score(candidates) if self.uses_scorer else [], generator)

    async def solve_after_pilot(self, problem: Problem, generator: Generator, scorer: Scorer, pilot: Result) -> Result:
        """Rank the pilot's samples together with new ones, as many as are missing from n; all of them have rewards."""
        missing = self.n - len(pilot.candidates)
        more = await generator.finish(Candidate(problem), missing) if missing > 0 else []
        rewards = await scorer.score(more) if more else []
        return await self._ranked([*pilot.candidates, *more], [*pilot.rewards, *rewards], generator)

    async def _ranked(self, candidates: Sequence[Candidate], rewards: Sequence[Reward], generator: Generator) -> Result:
        groups = await generator.groups(candidates) if self.uses_answers else []
        return Result(candidates, rewards, self.rank(rewards, groups))
