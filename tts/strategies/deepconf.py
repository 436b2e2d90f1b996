"""Deep Think with Confidence (Fu et al. 2025, https://arxiv.org/abs/2508.15260)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Le

from tts.errors import InputError
from tts.solving.generator import Generator
from tts.strategies.votes import tally
from tts.types import Candidate, Count, Problem, Result, Scorer, Strategy


@dataclass(frozen=True)
class DeepConf(Strategy):
    """Take a vote among the solutions in which the policy is most confident, and stop solutions of low confidence early.

    The confidence of a solution is the lowest mean log-probability of any `window` of consecutive tokens; a vote has the weight
    exp(confidence). The paper averages the log-probabilities of the top candidates for each token; here it is the
    log-probability of the drawn token, which every engine reports.
    """

    n: Count = 16
    """Number of solutions."""
    keep: Annotated[float, Gt(0), Le(1)] = 0.5
    """Share of the solutions that vote, the most confident first."""
    window: Count = 16
    """Number of tokens over which confidence is averaged."""
    warmup: Annotated[int, Ge(0)] = 0
    """Solutions to finish first. Later ones are stopped once their confidence falls below that of every warm-up solution that
    would vote; 0 finishes all solutions."""

    uses_scorer: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.warmup > self.n:
            raise InputError(f"--warmup is {self.warmup}; it should be at most --n, which is {self.n}")

    async def solve(self, problem: Problem, generator: Generator, scorer: Scorer) -> Result:
        start = Candidate(problem)
        candidates = await generator.finish(start, self.warmup or self.n, logprobs=True)
        drawn = [step for candidate in candidates for step in candidate.steps if step.text]
        if drawn and all(step.logprobs is None for step in drawn):
            raise InputError("deepconf needs the log-probabilities of tokens, which this engine does not return")
        if self.warmup < self.n and self.warmup:
            threshold = self._threshold(candidates)
            rest = range(self.n - self.warmup)
            candidates += await generator.together(self._while_confident(generator, start, threshold) for _ in rest)
        threshold = self._threshold([candidate for candidate in candidates if candidate.finish == "stop"] or candidates)
        confidences = map(self.confidence, candidates)
        weights = [math.exp(confidence) if confidence >= threshold else 0.0 for confidence in confidences]
        return Result(candidates, scores=tally(await generator.groups(candidates), weights))

    def confidence(self, candidate: Candidate) -> float:
        """The lowest mean log-probability of any window of tokens: at most 0, and -inf without log-probabilities."""
        logprobs = [logprob for step in candidate.steps for logprob in step.logprobs or ()]
        if not logprobs:
            return -math.inf
        width = min(self.window, len(logprobs))
        return min(sum(logprobs[i : i + width]) / width for i in range(len(logprobs) - width + 1))

    def _threshold(self, candidates: list[Candidate]) -> float:
        """The confidence of the least confident candidate that votes."""
        order = sorted(map(self.confidence, candidates), reverse=True)
        return order[max(1, round(self.keep * len(order))) - 1]

    async def _while_confident(self, generator: Generator, candidate: Candidate, threshold: float) -> Candidate:
        while not candidate.done:
            [candidate] = await generator.step(candidate, logprobs=True)
            if not candidate.done and len(candidate.token_ids) >= self.window and self.confidence(candidate) < threshold:
                return candidate.cut_off()
        return candidate
