"""One problem's view of an engine and of a scorer: what a strategy calls, and the bill it runs up."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from tts.answers import Grader
from tts.clock import Clock
from tts.segment import Segmenter
from tts.trajectory import BOUNDARY, OPEN
from tts.types import Aggregate, Candidate, Engine, Problem, Reward, Sampling, Scorer, Step, Usage


def derive_seed(*parts: object) -> int:
    """A seed of 62 bits that is a pure function of what it is for, so that scheduling cannot change a sample."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


class Generator:
    """Draws steps and completions of one problem's candidates, and owns the count of what they cost.

    `seed` is the run's. The k-th continuation ever drawn from a prefix has a seed of its own, made of the run's seed,
    the problem, the prefix and k: the first 16 of 64 samples are the samples of n = 16.
    """

    def __init__(
        self,
        engine: Engine,
        problem: Problem,
        sampling: Sampling,
        *,
        seed: int = 0,
        usage: Usage | None = None,
        clock: Clock | None = None,
        grader: Grader | None = None,
        boundary: str = BOUNDARY,
    ) -> None:
        self.engine, self.sampling, self.seed, self.grader = engine, sampling, seed, grader or Grader()
        self.usage, self.clock = usage if usage is not None else Usage(), clock or Clock()
        self._prompt, self._opener = _cut_opener(engine, engine.encode(problem))
        self._boundary = boundary
        self._segmenter = Segmenter(engine.decode, (boundary,))
        self._drawn: Counter[tuple[int, ...]] = Counter()

    async def step(self, candidate: Candidate, n: int = 1, *, temperature: float | None = None) -> list[Candidate]:
        """Extend a candidate to its next step boundary, n ways. One that is done comes back as it is."""
        return await self._extend(candidate, n, temperature, (self._boundary,))

    async def finish(self, candidate: Candidate, n: int = 1, *, temperature: float | None = None) -> list[Candidate]:
        """Extend a candidate to its end, n ways, cut into steps. One that is done comes back as it is."""
        return await self._extend(candidate, n, temperature, ())

    async def groups(self, candidates: Sequence[Candidate]) -> list[int | None]:
        """Equal numbers for equivalent final answers (`1/2`, `0.5`), None for a candidate without one."""
        return [verdict.group for verdict in await self.grader.judge(candidates)]

    async def _extend(self, candidate: Candidate, n: int, temperature: float | None, stop: tuple[str, ...]) -> list[Candidate]:
        if candidate.done:
            return [candidate] * n
        if self._opener is not None and not candidate.steps:
            candidate += self._opener
        prefix = (*self._prompt, *candidate.token_ids)
        first = self._drawn[prefix]
        self._drawn[prefix] += n
        sampling = replace(
            self.sampling,
            temperature=self.sampling.temperature if temperature is None else temperature,
            stop=stop,
            seed=derive_seed(self.seed, candidate.problem.id, *prefix) + first,
        )
        with self.clock("generation"):
            generation = await self.engine.generate(prefix, n, sampling)
        self.clock.add("waiting", generation.waited)
        self.usage.calls += 1
        self.usage.prompt += generation.prompt_tokens
        self.usage.cached += generation.cached_tokens
        counted = generation.generated_tokens
        self.usage.generated += sum(len(step.token_ids) for step in generation.steps) if counted is None else counted
        return [replace(candidate, steps=(*candidate.steps, *self._cut(step))) for step in generation.steps]

    def _cut(self, step: Step) -> list[Step]:
        """A long continuation as the steps in which it would have been drawn one by one."""
        if not step.token_ids:  # a server that speaks text, or nothing was generated
            texts = [*re.findall(f".*?{re.escape(self._boundary)}|.+", step.text, re.DOTALL)] or [""]
            return [*(Step(text, (), "step") for text in texts[:-1]), replace(step, text=texts[-1])]
        pieces = list(self._segmenter.split(step.token_ids))
        steps, start = [], 0
        for piece in pieces:
            logprobs = step.logprobs[start : start + len(piece)] if step.logprobs is not None else None
            steps.append(Step(self.engine.decode(piece), piece, "step", logprobs))
            start += len(piece)
        return [*steps[:-1], replace(steps[-1], finish=step.finish)]


def _cut_opener(engine: Engine, prompt: tuple[int, ...]) -> tuple[tuple[int, ...], Step | None]:
    """A chat template that opens `<think>` writes the first step itself: here it goes from the prompt to the candidate.

    Without it, a trace that is cut off while it thinks would read as a response.
    """
    for start in range(len(prompt) - 1, max(len(prompt) - 8, -1), -1):
        text = engine.decode(prompt[start:])
        if OPEN in text:
            return (prompt[:start], Step(text, prompt[start:], "step")) if text.strip() == OPEN else (prompt, None)
    return prompt, None


class MeteredScorer:
    """A scorer that bills one problem, asks once for equal texts, and stamps rewards with the run's alpha and aggregate."""

    def __init__(
        self, scorer: Scorer, *, usage: Usage, clock: Clock, alpha: float = 1.0, aggregate: Aggregate = "mean"
    ) -> None:
        self.scorer, self.usage, self.clock, self.alpha, self.aggregate = scorer, usage, clock, alpha, aggregate

    async def score(self, candidates: Sequence[Candidate]) -> list[Reward]:
        distinct = {candidate.text: candidate for candidate in candidates}
        with self.clock("scoring"):
            rewards = await self.scorer.score(list(distinct.values()))
        self.usage.scored += sum(reward.tokens for reward in rewards)
        if not all(math.isfinite(value) for reward in rewards for value in (*reward.steps, reward.final or 0.0)):
            raise ValueError("the reward model returned a number that is not finite; try another precision or model")
        by_text = {
            text: replace(reward, alpha=self.alpha, how=self.aggregate) for text, reward in zip(distinct, rewards, strict=True)
        }
        return [by_text[candidate.text] for candidate in candidates]
