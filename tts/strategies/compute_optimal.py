"""Compute-optimal scaling (Snell et al. 2024, https://arxiv.org/abs/2408.03314): the strategy fits the difficulty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le

from tts.errors import InputError
from tts.options import configure
from tts.solving.generator import Generator
from tts.strategies import get_strategy
from tts.strategies.parallel import Parallel
from tts.types import Candidate, Count, Problem, Result, Scorer, Strategy

SEARCHES = ("beam", "lookahead", "dvts", "mcts", "particle")


@dataclass(frozen=True)
class ComputeOptimal(Strategy):
    """Estimate from a few samples how hard the problem is, then spend n, or a quarter of it, in the way that suits.

    Difficulty is judged by the mean step reward of the pilot's samples. They stay candidates where the strategy is a search or
    one of bon, weighted and majority.
    """

    n: Count = 16
    """Samples for a problem that is not easy, the pilot's among them where the strategy samples."""
    pilot: Count = 4
    """Samples to judge difficulty by."""
    easy_above: Annotated[float, Ge(0), Le(1)] = 0.8
    """Mean reward above which a problem is easy."""
    hard_below: Annotated[float, Ge(0), Le(1)] = 0.4
    """Mean reward below which it is hard."""
    easy: str = "weighted"
    """Strategy for easy problems, with n / 4."""
    medium: str = "beam"
    """Strategy for those between."""
    hard: str = "bon"
    """Strategy for hard ones."""

    def __post_init__(self) -> None:
        if self.pilot > self.n:
            raise InputError(f"--pilot is {self.pilot}, more than --n {self.n}")
        if self.hard_below > self.easy_above:
            raise InputError(f"--hard-below is {self.hard_below}, above --easy-above {self.easy_above}")
        for name in (self.easy, self.medium, self.hard):
            self._arm(name, self.n)

    async def solve(self, problem: Problem, generator: Generator, scorer: Scorer) -> Result:
        pilot = await generator.finish(Candidate(problem), self.pilot)
        rewards = await scorer.score(pilot)
        ease = sum(reward.aggregate("mean") for reward in rewards) / len(rewards)
        if ease > self.easy_above:
            arm = self._arm(self.easy, max(1, self.n // 4))
        else:
            arm = self._arm(self.hard if ease < self.hard_below else self.medium, self.n)
        if not isinstance(arm, Parallel):
            found = await arm.solve(problem, generator, scorer)
            if not found.tree:  # it may rank by something else than the reward
                return found
            return Result([*found.candidates, *pilot], [*found.rewards, *rewards], tree=found.tree)
        more = await generator.finish(Candidate(problem), arm.n - self.pilot) if arm.n > self.pilot else []
        candidates = [*pilot, *more]
        rewards += await scorer.score(more) if more else []
        groups = await generator.groups(candidates) if arm.uses_answers else []
        return Result(candidates, rewards, arm.rank(rewards, groups))

    def _arm(self, name: str, n: int) -> Strategy:
        if name == "compute-optimal":
            raise InputError("compute-optimal cannot choose itself; name another strategy")
        options = {"n": n}  # a search gets what the pilot left
        if name in SEARCHES:
            options["n"] = max(1, n - self.pilot)
        if name in SEARCHES and name != "particle":
            options["width"] = min(4, options["n"])
        return configure(get_strategy(name), options)
