"""Deep Think with Confidence (Fu et al. 2025, https://arxiv.org/abs/2508.15260)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Le

from tts.errors import InputError
from tts.solving.confidence import Measure, measured, quantile
from tts.solving.generator import Generator
from tts.strategies.votes import tally
from tts.types import Candidate, Count, Problem, Result, Scorer, Strategy


@dataclass(frozen=True)
class DeepConf(Strategy):
    """Take a vote among the solutions in which the policy was most confident; with --warmup, stop other solutions early.

    The confidence of a token is minus the mean log-probability of the `top` most probable tokens in its place: it is high where
    the policy leaves no alternatives. With an engine that does not report these, it is the log-probability of the drawn token,
    and that of a solution its exponential. A vote weighs the confidence of its solution.
    """

    n: Count = 16
    """Maximum number of solutions."""
    keep: Annotated[float, Gt(0), Le(1)] = 0.9
    """Share of the solutions that vote, the most confident first; with a warm-up, its share. The paper has 0.9 and 0.1."""
    measure: Measure = "lowest"
    """Confidence of a solution: that of its lowest group, the mean over its `bottom` tenth of groups, over its `tail` (the last
    group), or over all its tokens. With a warm-up, the lowest group decides which solutions vote, and this is their weight."""
    window: Count = 2048
    """Number of consecutive tokens in a group; a shorter solution is one group."""
    top: Annotated[int, Ge(0)] = 20
    """Number of most probable tokens for the confidence of a token; 0 takes the drawn token."""
    warmup: Annotated[int, Ge(0)] = 0
    """Solutions to finish first; later ones are stopped once a group is less confident than those of the votes. 0: all."""
    consensus: Annotated[float, Gt(0)] = 0.95
    """After a warm-up, share of the votes at which the leading answer ends the sampling; above 1 it never does."""
    batch: Count = 4
    """After a warm-up, solutions per round."""

    uses_scorer: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.warmup > self.n:
            raise InputError(f"--warmup is {self.warmup}; it should be at most --n, which is {self.n}")

    async def solve(self, problem: Problem, generator: Generator, scorer: Scorer) -> Result:
        start = Candidate(problem)
        candidates = await generator.finish(start, self.warmup or self.n, logprobs=True, confidence=self.top)
        drawn = [step for candidate in candidates for step in candidate.steps if step.text]
        if drawn and all(step.logprobs is None for step in drawn):
            raise InputError("deepconf needs the log-probabilities of tokens, which this engine does not return")
        groups = await generator.groups(candidates)
        if not self.warmup:
            answered = [candidate for candidate, group in zip(candidates, groups, strict=True) if group is not None]
            return self._vote(candidates, groups, self.measure, self._threshold(answered or candidates, self.measure))
        threshold = self._threshold(candidates, "lowest")
        result = self._vote(candidates, groups, "lowest", threshold)
        while len(candidates) < self.n and not generator.spent and not self._settled(result, groups):
            count = min(self.batch, self.n - len(candidates))
            candidates += await generator.together(self._while_confident(generator, start, threshold) for _ in range(count))
            groups = await generator.groups(candidates)
            result = self._vote(candidates, groups, "lowest", threshold)
        return result

    def confidence(self, candidate: Candidate, measure: Measure) -> float:
        """The confidence of a solution, above 0; 0 without log-probabilities."""
        if tokens := [value for step in candidate.steps for value in step.confidence or ()]:
            return measured(tokens, measure, self.window)
        tokens = [logprob for step in candidate.steps for logprob in step.logprobs or ()]
        return math.exp(measured(tokens, measure, self.window)) if tokens else 0.0

    def _threshold(self, candidates: Sequence[Candidate], measure: Measure) -> float:
        """The confidence that the share `keep` of the candidates reaches."""
        return quantile([self.confidence(candidate, measure) for candidate in candidates], 1 - self.keep) - 1e-9

    def _vote(self, candidates: list[Candidate], groups: Sequence[int | None], by: Measure, threshold: float) -> Result:
        """The vote of the answers that reach the threshold by the measure `by`; of all answers if none does."""
        voting = [
            group is not None and self.confidence(c, by) >= threshold for c, group in zip(candidates, groups, strict=True)
        ]
        weights = [
            self.confidence(candidate, self.measure) if votes or not any(voting) else 0.0
            for candidate, votes in zip(candidates, voting, strict=True)
        ]
        return Result(list(candidates), scores=tally(groups, weights))

    def _settled(self, result: Result, groups: Sequence[int | None]) -> bool:
        """Whether the leading answer has its share of the votes."""
        votes = dict(zip(groups, result.scores, strict=True)).values()
        return max(votes) >= self.consensus * sum(votes) > 0

    async def _while_confident(self, generator: Generator, candidate: Candidate, threshold: float) -> Candidate:
        while not candidate.done:
            [candidate] = await generator.step(candidate, logprobs=True, confidence=self.top)
            full = len(candidate.token_ids) >= self.window
            if full and not candidate.done and self.confidence(candidate, "lowest") < threshold:
                return candidate.cut_off()
        return candidate
