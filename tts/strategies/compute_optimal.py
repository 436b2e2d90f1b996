"""Compute-optimal scaling (Snell et al. 2024, https://arxiv.org/abs/2408.03314): a strategy chosen by difficulty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le

from tts.errors import InputError
from tts.options import configure
from tts.solving.generator import Generator
from tts.strategies import get_strategy
from tts.types import Candidate, Count, Problem, Result, Sampling, Scorer, Strategy


@dataclass(frozen=True)
class ComputeOptimal(Strategy):
    """Estimate the difficulty of a problem from a few samples, then solve it with the strategy for that difficulty.

    The estimate is the mean step reward of these pilot samples. An easy problem gets n / 4 samples, any other n. Strategies
    that sample and rank continue from the pilot's samples, and searches add them to their solutions; other strategies do not
    use them. --easy, --medium and --hard also take strategies of your own (file.py:Class), with their default options.
    """

    n: Count = 16
    """Samples for a problem that is not easy, including the pilot's."""
    pilot: Count = 4
    """Samples from which the difficulty is estimated."""
    easy_above: Annotated[float, Ge(0), Le(1)] = 0.8
    """Mean step reward above which a problem is easy."""
    hard_below: Annotated[float, Ge(0), Le(1)] = 0.4
    """Mean step reward below which a problem is hard."""
    easy: str = "weighted"
    """Strategy for easy problems, with n / 4 samples."""
    medium: str = "beam"
    """Strategy for problems that are neither easy nor hard."""
    hard: str = "bon"
    """Strategy for hard problems."""

    def __post_init__(self) -> None:
        if self.pilot > self.n:
            raise InputError(f"--pilot is {self.pilot}; it should be at most --n, which is {self.n}")
        if self.hard_below > self.easy_above:
            raise InputError(f"--hard-below is {self.hard_below}; it should be at most --easy-above, {self.easy_above}")
        for name in (self.easy, self.medium, self.hard):
            self._arm(name, self.n)

    def check_sampling(self, sampling: Sampling) -> None:
        for name in (self.easy, self.medium, self.hard):
            self._arm(name, self.n).check_sampling(sampling)

    def check_scorer(self, scorer: Scorer) -> None:
        if not scorer.by_step:
            raise InputError(
                "compute-optimal estimates difficulty from step rewards, but this scorer rates a trace as a whole; use a reward"
                " model that rates steps"
            )
        for name in (self.easy, self.medium, self.hard):
            self._arm(name, self.n).check_scorer(scorer)

    async def solve(self, problem: Problem, generator: Generator, scorer: Scorer) -> Result:
        samples = await generator.finish(Candidate(problem), self.pilot)
        pilot = Result(samples, await scorer.score(samples))
        given = [step for reward in pilot.rewards for step in reward.known]
        if not all(0 <= step <= 1 for step in given):
            raise InputError(
                f"compute-optimal compares step rewards with --easy-above and --hard-below, which are between 0 and 1; this"
                f" scorer's are {min(given):.3g} to {max(given):.3g}. Use a reward model whose rewards are probabilities"
            )
        means = [reward.aggregate("mean") for reward in pilot.rewards if reward.known]
        ease = sum(means) / len(means) if means else (self.hard_below + self.easy_above) / 2  # not known: neither easy nor hard
        if ease > self.easy_above:
            arm = self._arm(self.easy, max(1, self.n // 4))
        else:
            arm = self._arm(self.hard if ease < self.hard_below else self.medium, self.n)
        return await arm.solve_after_pilot(problem, generator, scorer, pilot)

    def _arm(self, name: str, n: int) -> Strategy:
        cls = get_strategy(name)
        if issubclass(cls, ComputeOptimal):
            raise InputError("compute-optimal cannot choose itself; name another strategy")
        return configure(cls, cls.options_for(n, self.pilot))
