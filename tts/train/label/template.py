"""r_final, the template-guided trajectory reward (arXiv 2506.18896, section 3.2).

It measures whether the reasoning of a trace generalises: an expert extracts its plan, and a policy solves the problem by it.
"""

from __future__ import annotations

from dataclasses import replace

from tts.errors import InputError
from tts.grading.pool import Grader
from tts.models.templates import fill
from tts.solving.generator import Generator, derive_seed
from tts.train.label.cache import Cache
from tts.train.label.quality import sampled_by, share_correct
from tts.trajectory import response_of
from tts.types import Candidate, Engine, Problem, Sampling

EXTRACT = """\
Here are a problem and a solution to it. Extract the reasoning template: the plan of the solution as a short list of steps, in \
general terms, so that somebody could solve this problem by following it. Leave out numbers that were computed on the way, and \
the final answer.

Problem:
{problem}

Solution:
{solution}

Template:"""

GUIDED = """\
{problem}

Solve the problem by following this template:
{template}"""

TEMPLATE_TOKENS = 1024
"""Tokens of a template, at most."""


class TemplateReward:
    """The share of a policy's solutions that are correct when it follows the template of a trace.

    Args:
        expert: Extracts the template, greedily.
        policy: Solves the problem under the template.
        grader: Compares answers with the reference.
        cache: Keeps the templates and the shares.
        n: Solutions per template. Default: 8.
        sampling: How to draw the solutions. Its seed is ignored.
        seed: Seed of the solutions. Default: 0.
    """

    def __init__(
        self, expert: Engine, policy: Engine, grader: Grader, cache: Cache, *, n: int = 8,
        sampling: Sampling = Sampling(), seed: int = 0,  # noqa: B008  # it is frozen
    ) -> None:  # fmt: skip
        self.expert, self.policy, self.grader, self.cache = expert, policy, grader, cache
        self.n, self.sampling, self.seed = n, sampling, seed

    async def rate(self, candidate: Candidate) -> tuple[str, float]:
        """Return the template of a trace, and r_final in [0, 1].

        Raises:
            InputError: The expert wrote no template.
        """
        problem = candidate.problem
        request = fill(EXTRACT, problem=problem.prompt, solution=candidate.text)
        template = str(await self.cache.get(lambda: self._extract(request), "template", self.seed, request))
        prompt = fill(GUIDED, problem=problem.prompt, template=template)
        guided = replace(problem, id="guided", prompt=prompt)
        how = sampled_by(self.n, self.sampling, self.seed)
        return template, float(await self.cache.get(lambda: self._solve(guided), "guided", *how, guided))

    async def _extract(self, prompt: str) -> str:
        sampling = Sampling(0, max_tokens=TEMPLATE_TOKENS, seed=derive_seed(self.seed, "template"))
        [step] = (await self.expert.generate(self.expert.encode(Problem("template", prompt)), 1, sampling)).steps
        template = response_of(step.text).strip()
        if not template:
            raise InputError(
                "the expert wrote no template, or not outside its thinking; try another --expert, or --final outcome"
            )
        return template

    async def _solve(self, guided: Problem) -> float:
        seed = derive_seed(self.seed, "guided")
        generator = Generator(self.policy, guided, self.sampling, seed=seed, grader=self.grader)
        return await share_correct(generator, Candidate(guided), self.n, self.sampling.max_tokens)
