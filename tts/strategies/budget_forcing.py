"""Budget forcing (s1, Muennighoff et al. 2025, https://arxiv.org/abs/2501.19393)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from annotated_types import Ge

from tts.errors import InputError
from tts.solving.generator import Generator
from tts.strategies.majority import Majority
from tts.trajectory import tags_in
from tts.types import Candidate, Count, Problem, Result, Sampling, Scorer, Step, Strategy


@dataclass(frozen=True)
class BudgetForcing(Strategy):
    """Control the length of thinking: write "Wait" in place of an early `</think>`, and write `</think>` at a maximum.

    Solutions without a thinking part are not changed.
    """

    n: Count = 1
    """Number of solutions; above 1, the most frequent answer is chosen."""
    min_thinking: Annotated[int, Ge(0)] = 256
    """Tokens of thinking below which its end is replaced."""
    max_thinking: Count = 1024
    """Tokens of thinking at which it is closed."""
    waits: Annotated[int, Ge(0)] = 4
    """Maximum number of times that the end of the thinking is replaced."""
    word: str = "Wait"
    """Text written in place of the end of the thinking."""
    final: str = "Final Answer:"
    """Text written after a `</think>` forced at the maximum, so that the response does not think on; empty for none."""

    uses_scorer: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.min_thinking > self.max_thinking:
            raise InputError(
                f"--min-thinking is {self.min_thinking}; it should be at most --max-thinking, which is {self.max_thinking}"
            )

    def check_sampling(self, sampling: Sampling) -> None:
        if self.max_thinking >= sampling.max_tokens:
            raise InputError(
                f"--max-thinking is {self.max_thinking}; it should be below --max-tokens, which is {sampling.max_tokens} for"
                " thinking and response together, or no tokens are left for the response"
            )

    async def solve(self, problem: Problem, generator: Generator, scorer: Scorer) -> Result:
        stops = (*generator.stops, *generator.closers)
        starts = await generator.step(Candidate(problem), self.n, stop=stops, max_tokens=self.max_thinking)
        candidates = await generator.together(self._solve_one(generator, start) for start in starts)
        votes = Majority(n=self.n).rank([], await generator.groups(candidates)) if self.n > 1 else ()
        return Result(candidates, scores=votes)

    async def _solve_one(self, generator: Generator, candidate: Candidate) -> Candidate:
        candidate = self._reopened(candidate, 0)
        tags = tags_in(candidate.text)
        if tags is not None and tags.open in candidate.text:
            candidate = await self._think(generator, candidate, tags.close)
        [candidate] = await generator.finish(candidate)
        return candidate

    async def _think(self, generator: Generator, candidate: Candidate, close: str) -> Candidate:
        """The candidate with its thinking closed by the tag `close`, or as far as it came if it ended before that."""
        waits = self.waits
        while not candidate.done:
            used = len(candidate.token_ids)
            if close in candidate.text:
                if used >= self.min_thinking or not waits:
                    break
                waits -= 1
                candidate = _replace_end(generator, candidate, close, self.word)
            elif used >= self.max_thinking:
                return generator.append(candidate, f"\n\n{close}\n\n{self.final}")
            else:
                [candidate] = await generator.step(candidate, stop=close, max_tokens=self.max_thinking - used)
                candidate = self._reopened(candidate, used)
        return candidate

    def _reopened(self, candidate: Candidate, used: int) -> Candidate:
        """The candidate as unfinished, if it only ended because the last request reached `max_thinking`."""
        if candidate.finish != "length" or not used < len(candidate.token_ids) >= self.max_thinking:
            return candidate
        return replace(candidate, steps=(*candidate.steps[:-1], replace(candidate.steps[-1], finish="step")))


def _replace_end(generator: Generator, candidate: Candidate, close: str, word: str) -> Candidate:
    """The candidate with `word` in place of the tag `close`. The tokens before it stay as they were drawn."""
    *steps, last = candidate.steps
    wanted = last.text.partition(close)[0]
    kept, text = next(
        (last.token_ids[:k], text)
        for k in range(len(last.token_ids), -1, -1)
        if wanted.startswith(text := generator.engine.decode(last.token_ids[:k]))
    )
    logprobs = last.logprobs[: len(kept)] if last.logprobs is not None else None
    shortened = replace(candidate, steps=(*steps, Step(text, kept, "step", logprobs)))
    return generator.append(shortened, wanted[len(text) :] + word)
