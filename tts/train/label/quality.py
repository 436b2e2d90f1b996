"""r_qual, the quality of each step: by a judge, by rollouts, or by a programmatic checker; each in [0, 1]."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from functools import partial
from typing import Protocol

from tts.errors import InputError
from tts.grading.pool import Grader
from tts.models.templates import fill
from tts.solving.generator import Generator, derive_seed
from tts.train.label.cache import Cache
from tts.train.label.checkers import CHECKERS
from tts.trajectory import CLOSE, OPEN, parse
from tts.types import Candidate, Engine, Problem, Sampling

JUDGE = """\
You rate one step of a solution. Judge whether it is logically correct, coherent with the steps before it, and a step forward \
towards the final response.

Problem:
{problem}

Steps before:
{before}

Step to rate:
{step}

Final response:
{response}

Rate the step on a scale of 0 to 10: 0 is wrong or misleading, 5 is neither harmful nor of use, 10 is correct and brings the \
solution forward. Answer with "Rating: " and a whole number."""

SCALE = 10
"""The judge's highest rating, which counts as 1."""
TRIES = 3
"""Times that a judge is asked before its lack of a rating is an error."""


class Quality(Protocol):
    """Rates every step of a trajectory, thinking and response."""

    async def rate(self, candidate: Candidate) -> list[float]:
        """One number in [0, 1] for each step. Raises InputError where the trace cannot be rated."""
        ...


class Check:
    """Ratings by a checker (`tts.train.label.checkers`), a function that says of every step whether it is right."""

    def __init__(self, name: str = "check") -> None:
        self.name, self._rate = name, CHECKERS.get(name)

    async def rate(self, candidate: Candidate) -> list[float]:
        trajectory, problem = candidate.trajectory, candidate.problem
        ratings = [float(r) for r in self._rate(problem.prompt, trajectory.thinking, trajectory.response, problem.answer)]
        if len(ratings) != len(trajectory.steps) or not all(0 <= rating <= 1 for rating in ratings):
            raise InputError(
                f"--quality {self.name} gave {ratings[:5]} for {len(trajectory.steps)} steps;"
                " expected a number from 0 to 1 for each"
            )
        return ratings


class Rollout:
    """Monte Carlo: the share of `n` completions from after a step that reach the answer (Math-Shepherd, arXiv 2312.08935).

    The last step of all is rated by whether the trace's own answer is right: there is nothing left to complete.
    """

    def __init__(
        self,
        engine: Engine,
        grader: Grader,
        cache: Cache,
        *,
        n: int = 8,
        max_tokens: int = 2048,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.engine, self.grader, self.cache, self.n, self.seed = engine, grader, cache, n, seed
        self.max_tokens, self.temperature = max_tokens, temperature

    async def rate(self, candidate: Candidate) -> list[float]:
        given = candidate.problem
        if given.answer is None:
            raise InputError(f"problem {given.id} has no answer, which --quality rollout needs")
        problem = replace(given, id="rollout")  # seeds and cache go by what is asked, not by what a file calls it
        *prefixes, _ = prefixes_of(candidate.text)
        own, *shares = await asyncio.gather(self._own(candidate), *(self._rate(problem, prefix) for prefix in prefixes))
        return [*shares, own]

    async def _own(self, candidate: Candidate) -> float:
        [verdict] = await self.grader.judge([candidate])
        return float(bool(verdict.correct))

    async def _rate(self, problem: Problem, prefix: str) -> float:
        about = (self.n, self.max_tokens, self.temperature, self.seed)
        return float(await self.cache.get(lambda: self._complete(problem, prefix), "rollout", *about, problem, prefix))

    async def _complete(self, problem: Problem, prefix: str) -> float:
        sampling = Sampling(self.temperature, max_tokens=2**30)
        generator = Generator(self.engine, problem, sampling, seed=derive_seed(self.seed, "rollout"), grader=self.grader)
        if generator.opened(Candidate(problem)).steps:  # the chat template has opened the thinking already
            prefix = re.sub(rf"^\s*{OPEN}\n?", "", prefix)
        begun = generator.append(Candidate(problem), prefix)
        return await share_correct(generator, begun, self.n, self.max_tokens)


async def share_correct(generator: Generator, begun: Candidate, n: int, max_tokens: int) -> float:
    """The share of `n` completions whose answer is right."""
    ends = await generator.finish(begun, n, max_tokens=max_tokens)
    verdicts = await generator.grader.judge([Candidate(generator.problem, end.steps) for end in ends])
    return sum(bool(verdict.correct) for verdict in verdicts) / len(verdicts)


def prefixes_of(text: str) -> list[str]:
    """The text up to where each next step begins, for every thinking step and response step; the last one is all of it."""
    text = text.replace("\r\n", "\n")
    steps = parse(text).steps
    ends, at = [], 0
    for step in steps:
        at = text.index(step, at) + len(step)
        ends.append(at)
    starts = [text.index(step, end) for step, end in zip(steps[1:], ends, strict=False)]
    return [text[:start] for start in starts] + [text] * bool(steps)


class Judge:
    """A language model's rating of each step, given the problem, the steps before and the response; 0 to 10, divided by 10."""

    def __init__(self, engine: Engine, cache: Cache, *, template: str = JUDGE, max_tokens: int = 256, seed: int = 0) -> None:
        self.engine, self.cache, self.template, self.max_tokens, self.seed = engine, cache, template, max_tokens, seed

    async def rate(self, candidate: Candidate) -> list[float]:
        trajectory, steps = candidate.trajectory, candidate.trajectory.steps
        prompts = [
            fill(
                self.template,
                problem=candidate.problem.prompt,
                before="\n\n".join(steps[:i]) or "(none)",
                step=step,
                response="\n\n".join(trajectory.response) or "(none)",
            )
            for i, step in enumerate(steps)
        ]
        return list(await asyncio.gather(*(self.cache.get(partial(self._ask, p), "judge", self.seed, p) for p in prompts)))

    async def _ask(self, prompt: str) -> float:
        said = ""
        for attempt in range(TRIES):
            sampling = Sampling(float(attempt > 0), max_tokens=self.max_tokens, seed=derive_seed(self.seed, prompt, attempt))
            [step] = (await self.engine.generate(self.engine.encode(Problem("judge", prompt)), 1, sampling)).steps
            said = step.text.rpartition(CLOSE)[2]
            found = re.findall(r"[Rr]ating\W*(\d+)", said)
            if found and int(found[-1]) <= SCALE:
                return int(found[-1]) / SCALE
        raise InputError(f"the judge gave no rating from 0 to {SCALE} in {TRIES} tries; it said {said.strip()[-60:]!r}")
