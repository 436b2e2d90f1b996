"""A language model as the judge of every step: the expectation of its verdict (arXiv 2504.00891, 2504.16828)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from tts.demo import POLICY
from tts.engines import load_engine
from tts.errors import InputError
from tts.models.templates import fill, read_template
from tts.options import Count, Natural
from tts.scorers.verdicts import YES_NO, Examiner, Scale
from tts.types import Candidate, Engine, Reward, Scorer

STEP = """\
Here are a problem, and a solution to it as far as it has come.

Problem:
{problem}

Solution so far:
{before}

Next step:
{step}

"""

WHOLE = """\
Here are a problem, and a solution to it.

Problem:
{problem}

Solution:
{step}

"""

IS_RIGHT = "Is the {what} right{given}? Answer Yes or No."
HOW_RIGHT = """\
How sure are you that the {what} is right{given}, from {low} (it is wrong) to {high} (it is right)? Answer with the \
number."""


class Judge(Scorer):
    """A language model as the judge: it is asked about every step, and about the solution as a whole.

    A reward is the expected value of the verdict on a scale, P(yes) / (P(yes) + P(no)) by default. A judge that thinks is given
    tokens for that, and its verdict is read after the thinking; a judge that answers at once does not use them. A question
    without a verdict has no reward. Nothing in a trace is taken for a field of a template.

    Args:
        engine: What runs the judge: the name of an engine, or an engine.
        model: The judge; by default the run's policy.
        url: The engine's server.
        scale: Labels of a verdict: yes/no, or the ends of a scale of whole numbers, as 1-5 or 0-10, whose highest counts 1.
        template: Question about a step, or a file with it: a text with {problem}, {before} (the steps before) and {step}. It
            should ask for a verdict on the scale.
        whole: Question about a whole solution, or a file with it: a text with {problem} and {step}.
        think: Tokens that the judge may write before its verdict, where it does not give it at once; 0 for none.
        critique: Whether it writes before every verdict, also where it would give it at once.
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
        scale: str = YES_NO,
        template: str | None = None,
        whole: str | None = None,
        think: Natural = 4096,
        critique: bool = False,
        draws: Count = 4,
        final: bool = True,
        seed: int = 0,
        **engine_args: Any,
    ) -> None:
        if critique and not think:
            raise InputError("--scorer-arg critique needs tokens to write; give --scorer-arg think more than 0")
        labels = Scale(scale)
        question = HOW_RIGHT if labels.numeric else IS_RIGHT
        ends = {"low": labels.low, "high": labels.high} if labels.numeric else {}
        step = STEP + question.format(what="next step", given=", given what comes before", **ends)
        solution = WHOLE + question.format(what="final answer", given="", **ends)
        self.template, self.whole = (
            read_template(text, "step", "the judge's template") for text in (template or step, whole or solution)
        )
        if isinstance(engine, str):
            engine = load_engine(engine, model, url=url, options=engine_args)
        self.engine: Engine = engine
        self.exact = engine.exact
        self.final = final
        self.examiner = Examiner(engine, labels, think=think, critique=critique, draws=draws, seed=seed)

    async def score(self, candidates: Sequence[Candidate]) -> list[Reward]:
        return list(await asyncio.gather(*(self._judge(candidate) for candidate in candidates)))

    @property
    def notices(self) -> Sequence[str]:
        return self.engine.notices

    async def check(self) -> None:
        await self.engine.check()

    async def close(self) -> None:
        await self.engine.close()

    async def _judge(self, candidate: Candidate) -> Reward:
        steps, problem = candidate.trajectory.steps, candidate.problem.prompt
        prompts = [
            fill(self.template, problem=problem, before="\n\n".join(steps[:i]) or "(nothing)", step=step)
            for i, step in enumerate(steps)
        ]
        if self.final and steps:
            prompts.append(fill(self.whole, problem=problem, before="", step=candidate.text))
        verdicts = await asyncio.gather(*map(self.examiner.ask, prompts))
        values = [verdict.value for verdict in verdicts]
        final = values.pop() if self.final and steps else None
        return Reward(
            tuple(values),
            final,
            tokens=sum(verdict.tokens for verdict in verdicts),
            final_missing=self.final and final is None,
        )
