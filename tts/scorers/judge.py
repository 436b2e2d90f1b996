"""A language model as the judge of every step: the probability of its verdict (arXiv 2504.00891, 2504.16828)."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Sequence
from typing import Any

from tts.demo import POLICY
from tts.engines import load_engine
from tts.models.templates import fill, read_template
from tts.options import Count, Natural
from tts.solving.generator import derive_seed
from tts.types import Candidate, Engine, Problem, Reward, Sampling, Scorer

TEMPLATE = """\
Here are a problem, and a solution to it as far as it has come.

Problem:
{problem}

Solution so far:
{before}

Next step:
{step}

Is the next step right, given what comes before? Answer Yes or No."""

WHOLE = """\
Here are a problem, and a solution to it.

Problem:
{problem}

Solution:
{step}

Is the final answer right? Answer Yes or No."""

VERDICT = "Verdict:"


class Judge(Scorer):
    """A language model as the judge: it is asked about every step, and about the solution as a whole.

    A reward is P(yes) / (P(yes) + P(no)) for the first token of the verdict. The probabilities are those that the engine
    reports of the verdicts drawn; where only one of the two words was drawn, the other gets the rest; where neither was, it is
    0.5. Nothing in a trace is taken for a field of a template.

    Args:
        engine: What runs the judge: the name of an engine, or an engine.
        model: The judge; by default the run's policy.
        url: The engine's server.
        template: Question about a step, or a file with it: a text with {problem}, {before} (the steps before) and {step}.
        whole: Question about a whole solution, or a file with it: a text with {problem} and {step}.
        critique: Tokens that the judge may write, greedily, up to the word "Verdict:", before it gives its verdict.
        draws: Verdicts drawn for each question.
        final: Whether the solution as a whole is rated too.
        seed: Random seed of the verdicts.
        engine_args: The engine's own options.
    """

    def __init__(
        self,
        *,
        engine: Any = "transformers",
        model: str = POLICY,
        url: str | None = None,
        template: str = TEMPLATE,
        whole: str = WHOLE,
        critique: Natural = 0,
        draws: Count = 4,
        final: bool = True,
        seed: int = 0,
        **engine_args: Any,
    ) -> None:
        if isinstance(engine, str):
            engine = load_engine(engine, model, url=url, options=engine_args)
        self.engine: Engine = engine
        self.exact = engine.exact
        self.critique, self.draws, self.final, self.seed = critique, draws, final, seed
        self.template, self.whole = (read_template(text, "step", "the judge's template") for text in (template, whole))

    async def score(self, candidates: Sequence[Candidate]) -> list[Reward]:
        return list(await asyncio.gather(*(self._judge(candidate) for candidate in candidates)))

    async def close(self) -> None:
        await self.engine.close()

    async def _judge(self, candidate: Candidate) -> Reward:
        steps = (*candidate.trajectory.thinking, *candidate.trajectory.response)
        prompts = [
            fill(self.template, problem=candidate.problem.prompt, before="\n\n".join(steps[:i]) or "(nothing)", step=step)
            for i, step in enumerate(steps)
        ]
        if self.final and steps:
            prompts.append(fill(self.whole, problem=candidate.problem.prompt, before="", step=candidate.text))
        asked = await asyncio.gather(*(self._ask(prompt) for prompt in prompts))
        values = [value for value, _ in asked]
        final = values.pop() if self.final and steps else 0.0 if self.final else None
        return Reward(tuple(values), final, tokens=sum(tokens for _, tokens in asked))

    async def _ask(self, prompt: str) -> tuple[float, int]:
        """P(yes), and the tokens that were read and written for it."""
        prefix = self.engine.encode(Problem("judge", prompt))
        spent = 0
        if self.critique:
            sampling = Sampling(temperature=0, max_tokens=self.critique, stop=(VERDICT,))
            [written] = (await self.engine.generate(prefix, 1, sampling)).steps
            tail = written.token_ids
            if written.finish == "stop":
                tail = tail[:-1]  # the token that ends a text
            prefix = (*prefix, *tail, *(() if written.finish == "step" else self.engine.tokenize(f"\n{VERDICT}")))
            spent += len(written.token_ids)
        sampling = Sampling(max_tokens=1, seed=derive_seed(self.seed, "judge", *prefix), logprobs=True)
        drawn = (await self.engine.generate(prefix, self.draws, sampling)).steps
        spent += len(prefix) + sum(len(step.token_ids) for step in drawn)
        said: dict[str, dict[tuple[int, ...], float]] = {"yes": {}, "no": {}}
        for step in drawn:
            word = re.sub(r"\W", "", step.text).lower()
            if word in said and step.logprobs:
                said[word][step.token_ids] = math.exp(step.logprobs[0])
        yes, no = (sum(tokens.values()) for tokens in said.values())
        if not yes and not no:
            return 0.5, spent
        if yes and no:
            return yes / (yes + no), spent
        return (yes if yes else 1 - no), spent
