"""One sample: the baseline against which all other strategies are measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tts.solving.generator import Generator
from tts.types import Candidate, Problem, Result, Scorer, Strategy


@dataclass(frozen=True)
class Single(Strategy):
    """Sample one solution; with --temperature 0, the greedy one."""

    uses_scorer: ClassVar[bool] = False

    async def solve(self, problem: Problem, generator: Generator, scorer: Scorer) -> Result:
        return Result(await generator.finish(Candidate(problem)))
