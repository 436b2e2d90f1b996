"""Deep Think with Confidence (Fu et al. 2025, https://arxiv.org/abs/2508.15260)."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Le

from tts.errors import InputError
from tts.solving.generator import Generator
from tts.types import Candidate, Count, Problem, Result, Scorer, Strategy


@dataclass(frozen=True)
class DeepConf(Strategy):
    """Let only the solutions vote that the policy itself was sure of, weighted by how sure; give up weak ones early.

    A solution is as sure as its least sure `window` of tokens. The paper averages the log-probabilities of the top candidates
    for each token; here it is that of the drawn token, which every engine reports.
    """

    n: Count = 16
    """Solutions."""
    keep: Annotated[float, Gt(0), Le(1)] = 0.5
    """Share of solutions that vote, the most confident."""
    window: Count = 16
    """Tokens over which confidence is averaged."""
    warmup: Annotated[int, Ge(0)] = 0
    """Solutions to finish first; later ones are given up once they are less sure than the least sure of these that would vote.
    0 finishes all."""

    uses_scorer: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.warmup > self.n:
            raise InputError(f"--warmup is {self.warmup}, more than --n {self.n}")

    async def solve(self, problem: Problem, generator: Generator, scorer: Scorer) -> Result:
        start = Candidate(problem)
        candidates = await generator.finish(start, self.warmup or self.n, logprobs=True)
        if all(step.logprobs is None for candidate in candidates for step in candidate.steps if step.text):
            raise InputError("deepconf needs the log-probabilities of tokens, which this engine does not give")
        if self.warmup < self.n and self.warmup:
            bar = self._bar(candidates)
            rest = range(self.n - self.warmup)
            candidates += await generator.together(self._while_sure(generator, start, bar) for _ in rest)
        bar = self._bar([candidate for candidate in candidates if candidate.finish == "stop"] or candidates)
        groups = await generator.groups(candidates)
        votes: defaultdict[int, float] = defaultdict(float)
        for candidate, group in zip(candidates, groups, strict=True):
            if group is not None and (sure := self.confidence(candidate)) >= bar:
                votes[group] += math.exp(sure)
        return Result(candidates, scores=[votes.get(group, 0.0) if group is not None else 0.0 for group in groups])

    def confidence(self, candidate: Candidate) -> float:
        """The lowest mean log-probability of any window of tokens, at most 0."""
        logprobs = [logprob for step in candidate.steps for logprob in step.logprobs or ()]
        if not logprobs:
            return -math.inf
        width = min(self.window, len(logprobs))
        return min(sum(logprobs[i : i + width]) / width for i in range(len(logprobs) - width + 1))

    def _bar(self, candidates: list[Candidate]) -> float:
        """The confidence of the least sure one that votes."""
        order = sorted(map(self.confidence, candidates), reverse=True)
        return order[max(1, round(self.keep * len(order))) - 1]

    async def _while_sure(self, generator: Generator, candidate: Candidate, bar: float) -> Candidate:
        while not candidate.done:
            [candidate] = await generator.step(candidate, logprobs=True)
            if not candidate.done and len(candidate.token_ids) >= self.window and self.confidence(candidate) < bar:
                return candidate.cut_off()
        return candidate
