"""The generator and the scorer that a strategy gets for one problem; they own its seeds, budget and usage."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import Counter
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from time import perf_counter
from typing import Any, TypeVar

from tts.grading.pool import Grader
from tts.solving.budget import Budget
from tts.solving.clock import Clock
from tts.solving.scoring import check_rewards
from tts.solving.segment import Segmenter
from tts.trajectory import TAGS
from tts.types import Aggregate, Candidate, Engine, Generation, Problem, Reward, Sampling, Scorer, Step, Usage

T = TypeVar("T")

OPENER_TOKENS = 32
"""Tokens at the end of a prompt among which a tag that opens thinking is looked for."""


def derive_seed(*parts: object) -> int:
    """A 62-bit seed that depends only on `parts`, so that scheduling cannot change a sample."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


class Generator:
    """Draws steps and completions of one problem's candidates, and counts the tokens they use.

    The k-th continuation ever drawn from a prefix has a seed of its own, derived from the run's seed, the problem, the prefix
    and k. So the first 16 of 64 samples are the samples of n = 16.

    A candidate is truncated (its finish is `length`) when it has `sampling.max_tokens` tokens, when the context is full, when
    the budget is spent, and at the deadline. Penalties and `sampling.min_tokens` count the tokens of the candidate so far, in
    however many requests they were drawn.

    Args:
        engine: Backend that draws the tokens.
        problem: Problem to solve.
        sampling: Default of how to draw. Its stop strings end a solution, whose text is cut before them.
        seed: Seed of the run. Default 0.
        usage: Counter of tokens and calls to add to. Default: a new one.
        clock: Clock to time generation with. Default: a new one.
        grader: Decides which answers are equivalent. Default: a new one, whose worker processes `grader.close()` ends.
        budget: Limit on generated tokens. Default: none.
        deadline: Time of `time.perf_counter`, in seconds, at which generation stops. Default: none.
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
        budget: Budget | None = None,
        deadline: float | None = None,
    ) -> None:
        self.engine, self.problem, self.sampling, self.seed = engine, problem, sampling, seed
        self.usage, self.clock, self.grader = usage if usage is not None else Usage(), clock or Clock(), grader or Grader()
        self.budget, self.deadline = budget or Budget(), deadline
        self._prompt, self._opener = cut_opener(engine, engine.encode(problem))
        self._segmenter = Segmenter(engine.decode, problem.ends.stops)
        self._drawn: Counter[tuple[int, ...]] = Counter()

    async def step(
        self,
        candidate: Candidate,
        n: int = 1,
        *,
        temperature: float | None = None,
        stop: str | tuple[str, ...] | None = None,
        max_tokens: int | None = None,
        logprobs: bool = False,
        confidence: int = 0,
    ) -> list[Candidate]:
        """Extend a candidate by one step, n ways.

        A candidate that is done is returned as it is; one for which no tokens or time are left is returned truncated.

        Args:
            candidate: Candidate to extend.
            n: Number of continuations. Default 1.
            temperature: Default: that of the generator's sampling.
            stop: String or strings that end the step. Default: those of the problem's step delimiter.
            max_tokens: Limit on the tokens of this step. Default: that of the generator's sampling.
            logprobs: Whether to keep the log-probability of each token.
            confidence: How many of the likeliest tokens to keep the confidence of each token over, where the engine reports it.
                Default 0, for none.

        Returns:
            n candidates.
        """
        stop = self.stops if stop is None else (stop,) if isinstance(stop, str) else stop
        sampling = self._sampling(temperature, stop, max_tokens, logprobs, confidence)
        return await self._extend(self.opened(candidate), n, sampling)

    async def finish(
        self,
        candidate: Candidate,
        n: int = 1,
        *,
        temperature: float | None = None,
        max_tokens: int | None = None,
        logprobs: bool = False,
        confidence: int = 0,
    ) -> list[Candidate]:
        """Extend a candidate to its end, n ways, and cut the text into steps.

        A candidate that is done is returned as it is. Arguments are those of `step`.

        Returns:
            n candidates; fewer, but at least one, if the budget ran out before all of them had begun.
        """
        candidate = self.opened(candidate)
        sampling = self._sampling(temperature, (), max_tokens, logprobs, confidence)
        if self.deadline is None or not await self.engine.tells_steps():
            ends = await self._extend(candidate, n, sampling)
        else:  # step by step, so that finished steps can be returned at the deadline
            ends = await self.together(self._by_steps(candidate, sampling) for _ in range(n))
        undrawn = candidate.cut_off()
        return [end for end in ends if end != undrawn] or ends[:1]

    def opened(self, candidate: Candidate) -> Candidate:
        """The candidate, starting with the tag that opens thinking if the chat template ends in one."""
        return candidate + self._opener if self._opener is not None and not candidate.steps else candidate

    @cached_property
    def closers(self) -> tuple[str, ...]:
        """The tags that close thinking and that the model can write: where a step ends, as long as its tags are not known."""
        return tuple(tags.close for tags in TAGS if tags.close in self.engine.decode(self.engine.tokenize(tags.close)))

    @cached_property
    def stops(self) -> tuple[str, ...]:
        """The strings that end a step; of several, those that the model can write."""
        stops = self.problem.ends.stops
        return stops[:1] + tuple(stop for stop in stops[1:] if stop in self.engine.decode(self.engine.tokenize(stop)))

    def append(self, candidate: Candidate, text: str) -> Candidate:
        """The candidate with a step that was not sampled, such as the "Wait" of budget forcing; its tokens are not counted."""
        return self.opened(candidate) + Step(text, self.engine.tokenize(text), "step")

    def about(self, prompt: str, *which: object) -> Generator:
        """A generator for another prompt about the same problem, such as a request to revise an attempt.

        It shares usage, budget and deadline with this one. `which` separates uses of equal prompts: each value has samples of
        its own.
        """
        return Generator(
            self.engine, replace(self.problem, prompt=prompt), self.sampling,
            seed=derive_seed(self.seed, "about", *which), usage=self.usage, clock=self.clock, grader=self.grader,
            budget=self.budget, deadline=self.deadline,
        )  # fmt: skip

    async def together(self, work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
        """Run coroutines concurrently and return their results in order. If one fails, the others are cancelled.

        Under a token budget they run one after another, so that which of them gets the last tokens does not depend on timing.
        """
        if self.budget.limited:
            return [await coroutine for coroutine in work]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(coroutine) for coroutine in work]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def groups(self, candidates: Sequence[Candidate]) -> list[int | None]:
        """A group number for each candidate, equal for equivalent final answers (`1/2`, `0.5`); None without an answer."""
        return [verdict.group for verdict in await self.grader.judge(candidates)]

    @property
    def out_of_time(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and perf_counter() >= self.deadline

    @property
    def spent(self) -> bool:
        """Whether nothing more can be drawn, because the budget is spent or the deadline has passed."""
        return self.budget.spent or self.out_of_time

    def _sampling(
        self, temperature: float | None, stop: tuple[str, ...], max_tokens: int | None, logprobs: bool, confidence: int
    ) -> Sampling:
        return replace(
            self.sampling,
            temperature=self.sampling.temperature if temperature is None else temperature,
            max_tokens=self.sampling.max_tokens if max_tokens is None else max_tokens,
            stop=(*stop, *self.sampling.stop),
            logprobs=logprobs or self.sampling.logprobs,
            confidence=confidence,
        )

    async def _by_steps(self, candidate: Candidate, sampling: Sampling) -> Candidate:
        left = sampling.max_tokens
        while not candidate.done:
            before = len(candidate.token_ids)
            stop = (*self.stops, *self.sampling.stop)
            [candidate] = await self._extend(candidate, 1, replace(sampling, stop=stop, max_tokens=left))
            left -= len(candidate.token_ids) - before
        return candidate

    async def _extend(self, candidate: Candidate, n: int, sampling: Sampling) -> list[Candidate]:
        if candidate.done:
            return [candidate] * n
        prefix = (*self._prompt, *candidate.token_ids)
        first = self._drawn[prefix]
        self._drawn[prefix] += n
        written = len(candidate.token_ids) - (len(self._opener.token_ids) if self._opener is not None else 0)
        most = min(sampling.max_tokens, self.sampling.max_tokens - written)
        if written and self.engine.context is not None:  # the engine refuses a prompt that is too long
            most = min(most, self.engine.context - len(prefix))
        drawn: list[Candidate] = []
        while len(drawn) < n and most > 0 and not self.out_of_time:
            seed = derive_seed(self.seed, candidate.problem.id, *prefix) + first + len(drawn)
            try:
                async with asyncio.timeout(self._seconds_left), self.budget.reserve(n - len(drawn), most) as grant:
                    if not grant.count:
                        break
                    grant.used = grant.count * grant.each  # the tokens of an interrupted request count as used
                    least = min(max(0, self.sampling.min_tokens - written), grant.each)
                    asked = replace(sampling, max_tokens=grant.each, min_tokens=least, written=written, seed=seed)
                    generation = await self._ask(prefix, grant.count, asked)
                    grant.used = _generated(generation)
            except TimeoutError:
                if not self.out_of_time:
                    raise
                break
            for step in generation.steps:
                drawn.append(replace(candidate, steps=(*candidate.steps, *self._cut(step, sampling.stop))))
        return drawn + [candidate.cut_off()] * (n - len(drawn))

    @property
    def _seconds_left(self) -> float | None:
        return None if self.deadline is None else self.deadline - perf_counter()

    async def _ask(self, prefix: tuple[int, ...], n: int, sampling: Sampling) -> Generation:
        """The engine's answer to one request, added to the usage."""
        with self.clock("generation"):
            generation = await self.engine.generate(prefix, n, sampling)
        self.clock.add("waiting", generation.waited)
        self.usage.calls += 1
        self.usage.prompt += generation.prompt_tokens
        self.usage.cached += generation.cached_tokens
        self.usage.generated += _generated(generation)
        return generation

    def _ended(self, step: Step) -> Step:
        """A continuation that stopped at the end of a solution (`--stop`), cut before it; any other as it is.

        Its tokens are kept: they were drawn, and nothing continues them.
        """
        ends = [at for end in self.sampling.stop if (at := step.text.find(end)) >= 0] if step.finish == "step" else []
        return replace(step, text=step.text[: min(ends)], finish="stop") if ends else step

    def _cut(self, step: Step, stops: tuple[str, ...]) -> list[Step]:
        """Cut a continuation drawn in one go into the steps in which it would have been drawn one by one."""
        if set(stops) - set(self.sampling.stop):
            return [self._ended(step)]
        step, drawn = self._ended(step), step
        if not step.token_ids:  # from a server that returns text only, or an empty continuation
            ends = "|".join(map(re.escape, self.problem.ends.stops))
            texts = [match[0] for match in re.finditer(f".*?(?:{ends})|.+", step.text, re.DOTALL)] or [""]
            return [*(Step(text, (), "step") for text in texts[:-1]), replace(step, text=texts[-1])]
        steps, start = [], 0
        for token_ids in self._segmenter.split(step.token_ids):
            part = slice(start, start + len(token_ids))
            logprobs = step.logprobs[part] if step.logprobs is not None else None
            top = step.top[part] if step.top is not None else None
            confidence = step.confidence[part] if step.confidence is not None else None
            steps.append(Step(self.engine.decode(token_ids), token_ids, "step", logprobs, top, confidence))
            start = part.stop
        if step.text != drawn.text:  # an end may reach over several steps
            left = len(step.text)
            for i, cut in enumerate(steps):
                steps[i] = replace(cut, text=cut.text[: max(0, left)])
                left -= len(cut.text)
        return [*steps[:-1], replace(steps[-1], finish=step.finish)]


def _generated(generation: Generation) -> int:
    counted = generation.generated_tokens
    return sum(len(step.token_ids) for step in generation.steps) if counted is None else counted


def cut_opener(engine: Engine, prompt: tuple[int, ...]) -> tuple[tuple[int, ...], Step | None]:
    """Split a tag that opens thinking, such as `<think>`, off the end of a prompt; it becomes the candidate's first step.

    Otherwise a trace truncated while it thinks would be read as a response. Returns the rest of the prompt and the step, or the
    whole prompt and None.
    """
    for start in range(len(prompt) - 1, max(len(prompt) - OPENER_TOKENS, -1), -1):
        text = engine.decode(prompt[start:])
        if any(tags.open in text for tags in TAGS):
            opens = text.strip() in (tags.open for tags in TAGS)
            return (prompt[:start], Step(text, prompt[start:], "step")) if opens else (prompt, None)
    return prompt, None


def _rated_as(candidate: Candidate) -> tuple[str, bool]:
    """What a candidate's steps depend on: its text, and, where a step's end shows only in what follows, whether it is done."""
    return candidate.text, candidate.done or not candidate.problem.ends.looks_ahead


class MeteredScorer(Scorer):
    """A scorer that counts the usage of one problem, scores equal texts once, and sets alpha and aggregate of the rewards.

    Args:
        scorer: Scorer to call.
        usage: Counter to which the tokens read are added.
        clock: Clock that times scoring.
        alpha: Weight of the final reward in the total. Default 1.
        aggregate: How step rewards become one number. Default: their mean.
    """

    def __init__(
        self, scorer: Scorer, *, usage: Usage, clock: Clock, alpha: float = 1.0, aggregate: Aggregate = "mean"
    ) -> None:
        self.scorer, self.usage, self.clock, self.alpha, self.aggregate = scorer, usage, clock, alpha, aggregate
        self.by_step, self.compares, self.logprobs, self.over = scorer.by_step, scorer.compares, scorer.logprobs, scorer.over

    async def score(self, candidates: Sequence[Candidate]) -> list[Reward]:
        """One reward per candidate, in order. Raises InputError for rewards that `check_rewards` refuses."""
        if self.compares:  # each of several equal texts is a vote
            return await self._score(candidates)
        distinct = {_rated_as(candidate): candidate for candidate in candidates}
        rewards = await self._score(list(distinct.values()))
        found = dict(zip(distinct, rewards, strict=True))
        return [found[_rated_as(candidate)] for candidate in candidates]

    async def _score(self, candidates: Sequence[Candidate]) -> list[Reward]:
        with self.clock("scoring"):
            rewards = await self.scorer.score(candidates)
        check_rewards(rewards, candidates, self.over)
        self.usage.scored += sum(reward.tokens for reward in rewards)
        return [replace(reward, alpha=self.alpha, how=self.aggregate) for reward in rewards]
