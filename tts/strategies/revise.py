"""Sequential self-revision, in one chain or several parallel ones (Snell et al. 2024, https://arxiv.org/abs/2408.03314)."""

from __future__ import annotations

from dataclasses import dataclass

from tts.errors import InputError
from tts.solving.generator import Generator
from tts.trajectory import BOUNDARY
from tts.types import Candidate, Count, Problem, Result, Scorer, Strategy

REQUEST = """{problem}

Here is an earlier attempt at this problem:

{attempt}

Check it step by step. If it is wrong, say where; then give a complete solution of your own, ending with the final answer."""


@dataclass(frozen=True)
class Revise(Strategy):
    """Solve the problem, then solve it again with the previous attempt in the prompt; choose the best attempt by reward."""

    n: Count = 8
    """Total number of attempts."""
    chains: Count = 1
    """Number of parallel chains; the first attempt of each is an independent sample."""

    def __post_init__(self) -> None:
        if self.chains > self.n:
            raise InputError(f"--chains is {self.chains}; it should be at most --n, which is {self.n}")

    async def solve(self, problem: Problem, generator: Generator, scorer: Scorer) -> Result:
        firsts = await generator.finish(Candidate(problem), self.chains)
        lengths = [self.n // self.chains + (i < self.n % self.chains) for i in range(self.chains)]
        chains = await generator.together(
            self._revise(generator, first, length, number)
            for number, (first, length) in enumerate(zip(firsts, lengths, strict=False))
        )
        attempts = [attempt for chain in chains for attempt in chain]
        return Result(attempts, await scorer.score(attempts))

    async def _revise(self, generator: Generator, first: Candidate, length: int, number: int) -> list[Candidate]:
        chain = [first]
        while len(chain) < length and not generator.spent:
            response = BOUNDARY.join(chain[-1].trajectory.response) or "(it was not finished)"
            request = REQUEST.format(problem=first.problem.prompt, attempt=response)
            try:
                chain += await generator.about(request, number, len(chain)).finish(Candidate(first.problem))
            except InputError:  # the prompt with the attempt in it does not fit into the context
                break
        return chain
