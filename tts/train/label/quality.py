"""r_qual, the quality of each step in [0, 1] (arXiv 2506.18896, section 3), from a judge, from rollouts, or from a checker."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from tts.delimiters import Delimiter
from tts.errors import InputError
from tts.grading.pool import Grader
from tts.models.templates import fill
from tts.scorers.verdicts import Examiner, Scale
from tts.solving.generator import Generator, derive_seed
from tts.train.label.cache import Cache
from tts.train.label.checkers import CHECKERS
from tts.trajectory import BLANK_LINE, parse, tags_in, with_tags
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

SCALE = "0-10"
"""The judge's ratings; the highest maps to a quality of 1."""


class Quality(Protocol):
    """An estimator of r_qual."""

    async def rate(self, candidate: Candidate) -> Sequence[float | None]:
        """Return the quality in [0, 1] of every thinking step and then of every response step; None where it is not known.

        Raises:
            InputError: The trace cannot be rated; the message says why.
        """
        ...


class CheckerQuality:
    """The ratings of a checker, a function that says of every step whether it is correct (`tts.train.label.checkers`).

    Args:
        name: A name of CHECKERS, by default the checker of the bundled benchmark, or your own function as file.py:function.

    Raises:
        InputError: There is no such checker.
    """

    def __init__(self, name: str = "check") -> None:
        self.name, self._rate = name, CHECKERS.get(name)

    async def rate(self, candidate: Candidate) -> list[float]:
        trajectory, problem = candidate.trajectory, candidate.problem
        try:
            ratings = [float(r) for r in self._rate(problem.prompt, trajectory.thinking, trajectory.response, problem.answer)]
        except InputError:
            raise
        except Exception as error:  # the function is the user's; its failure on one trace must not end the command
            raise InputError(f"--quality {self.name} failed: {type(error).__name__}: {error}") from error
        if len(ratings) != len(trajectory.steps) or not all(0 <= rating <= 1 for rating in ratings):
            raise InputError(
                f"--quality {self.name} returned {ratings[:5]} for {len(trajectory.steps)} steps;"
                " expected one number from 0 to 1 per step"
            )
        return ratings


class RolloutQuality:
    """Monte Carlo estimates: the share of completions sampled after a step that are correct (Math-Shepherd, arXiv 2312.08935).

    After the last step there is nothing left to complete, so its quality is 1 if the trace's own answer is correct, else 0.

    Args:
        engine: The policy that completes the prefixes.
        grader: Compares answers with the reference.
        cache: Keeps the estimate of every prefix.
        n: Completions per prefix. Default: 8.
        sampling: How to draw the completions; `max_tokens` is that of each. Its seed is ignored.
        seed: Seed of the completions. Default: 0.
    """

    def __init__(
        self,
        engine: Engine,
        grader: Grader,
        cache: Cache,
        *,
        n: int = 8,
        sampling: Sampling = Sampling(),  # noqa: B008  # it is frozen
        seed: int = 0,
    ) -> None:
        self.engine, self.grader, self.cache, self.n, self.seed = engine, grader, cache, n, seed
        self.sampling = sampling

    async def rate(self, candidate: Candidate) -> list[float]:
        given = candidate.problem
        if given.answer is None:
            raise InputError(f"problem {given.id} has no answer, which --quality rollout needs")
        problem = replace(given, id="rollout")  # seeds and cache keys must not depend on the id that a file gives the problem
        *prefixes, _ = prefixes_of(candidate.text, candidate.problem.ends)
        last, *shares = await asyncio.gather(self._outcome(candidate), *(self._share(problem, prefix) for prefix in prefixes))
        return [*shares, last]

    async def _outcome(self, candidate: Candidate) -> float:
        [verdict] = await self.grader.judge([candidate])
        return float(bool(verdict.correct))

    async def _share(self, problem: Problem, prefix: str) -> float:
        how = sampled_by(self.n, self.sampling, self.seed)
        return float(await self.cache.get(lambda: self._complete(problem, prefix), "rollout", *how, problem, prefix))

    async def _complete(self, problem: Problem, prefix: str) -> float:
        sampling = replace(self.sampling, max_tokens=2**30)  # the prefix counts, and may be long
        generator = Generator(self.engine, problem, sampling, seed=derive_seed(self.seed, "rollout"), grader=self.grader)
        if tags := tags_in(generator.opened(Candidate(problem)).text):  # the chat template has already opened the thinking
            prefix = re.sub(rf"^\s*{re.escape(tags.open)}\n?", "", with_tags(prefix, tags))
        partial_solution = generator.append(Candidate(problem), prefix)
        return await share_correct(generator, partial_solution, self.n, self.sampling.max_tokens)


def sampled_by(n: int, sampling: Sampling, seed: int) -> tuple[Any, ...]:
    """What a share of correct completions depends on besides its prompt, as part of its key in the cache."""
    more = {name: value for name, value in sampling.parameters().items() if name not in ("temperature", "top_p")}
    shape = (*more.items(), *(("stop", stop) for stop in sampling.stop))
    return (n, sampling.max_tokens, sampling.temperature, sampling.top_p, seed, *shape)


async def share_correct(generator: Generator, candidate: Candidate, n: int, max_tokens: int) -> float:
    """Return the share of `n` sampled completions of `candidate`, of at most `max_tokens` new tokens, that are correct."""
    completed = await generator.finish(candidate, n, max_tokens=max_tokens)
    verdicts = await generator.grader.judge([Candidate(generator.problem, one.steps) for one in completed])
    return sum(bool(verdict.correct) for verdict in verdicts) / len(verdicts)


def prefixes_of(text: str, by: Delimiter = BLANK_LINE) -> list[str]:
    """Return, for every thinking step and response step, the text up to the start of the next step.

    The last prefix is the whole text. Windows line ends are converted. A text without steps has no prefixes.
    """
    text = text.replace("\r\n", "\n")
    steps = parse(text, by).steps
    ends, at = [], 0
    for step in steps:
        at = text.index(step, at) + len(step)
        ends.append(at)
    starts = [text.index(step, end) for step, end in zip(steps[1:], ends, strict=False)]
    return [text[:start] for start in starts] + [text] * bool(steps)


class JudgeQuality:
    """A language model's rating of each step from 0 to 10, divided by 10 (`tts.scorers.verdicts`).

    The judge sees the problem, the steps before, and the final response, as J(s_t | x, s_<t, a) in the paper. The paper does
    not publish its prompt and scale. A step that the judge does not rate has no quality.

    Args:
        engine: The language model.
        cache: Keeps the rating of every prompt.
        template: The prompt, with {problem}, {before}, {step} and {response} to be filled in. Default: JUDGE.
        think: Tokens that the judge may write before a rating that it does not give at once. Default: 4096.
        seed: Seed of the ratings. Default: 0.
    """

    def __init__(self, engine: Engine, cache: Cache, *, template: str = JUDGE, think: int = 4096, seed: int = 0) -> None:
        self.cache, self.template, self.sampled_by = cache, template, (SCALE, think, seed)
        self.examiner = Examiner(engine, Scale(SCALE), think=think, seed=seed)

    async def rate(self, candidate: Candidate) -> list[float | None]:
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
        ratings = list(await asyncio.gather(*map(self._rating, prompts)))
        if all(rating is None for rating in ratings):
            raise InputError(f"the judge rated no step on its scale of {SCALE}; try another --expert or --judge-prompt")
        return ratings

    async def _rating(self, prompt: str) -> float | None:
        async def ask() -> float | None:
            return (await self.examiner.ask(prompt)).value

        rating = await self.cache.get(ask, "verdict", *self.sampled_by, prompt)
        return None if rating is None else float(rating)
