"""The engine and the scorer of runs, loaded when they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tts.errors import InputError
from tts.runs.progress import Progress
from tts.runs.settings import RunSettings
from tts.scorers import compares
from tts.types import Candidate, Engine, Reward, Scorer, Strategy


@dataclass
class Models:
    """The engine and the scorer of one run or of several alike, each loaded when it is first asked for.

    Raises InputError where an object that a caller made lacks something that will be asked of it.
    """

    settings: RunSettings
    progress: Progress
    given_engine: Engine | None = None
    """An engine that the caller has loaded, and closes."""
    given_scorer: Scorer | None = None
    """A scorer that the caller has loaded, and closes."""
    _opened: list[Engine | Scorer] = field(default_factory=list)
    _checked: list[Engine | Scorer] = field(default_factory=list)

    def __post_init__(self) -> None:
        of_engines = ("context", "check_sampling", "tells_steps", "encode", "decode", "generate", "close")
        asked: dict[str, tuple[Any, tuple[str, ...]]] = {
            "Engine": (self.given_engine, of_engines),
            "Scorer": (self.given_scorer, ("by_step", "compares", "logprobs", "over", "score", "close")),
        }
        for base, (given, names) in asked.items():
            if given is not None and (lacking := [name for name in names if not hasattr(given, name)]):
                raise InputError(f"{type(given).__name__} has no {lacking[0]}; subclass tts.{base}, which has it")

    @cached_property
    def engine(self) -> Engine:
        """Raises InputError if it cannot be loaded."""
        if self.given_engine is not None:
            return self.given_engine
        self.progress.stage = f"loading {self.settings.model}"
        self._opened.append(engine := self.settings.load_engine())
        return engine

    @cached_property
    def scorer(self) -> Scorer:
        """Raises InputError if it cannot be loaded."""
        if self.given_scorer is not None:
            return self.given_scorer
        self.progress.stage = f"loading {self.settings.scorer}"
        self._opened.append(scorer := self.settings.load_scorer(policy=self.settings))
        return scorer

    @property
    def compares(self) -> bool:
        """Whether the scorer compares candidates with each other, so that their rewards are those of one size only."""
        return compares(self.settings.scorer) if self.given_scorer is None else self.given_scorer.compares

    def scorer_of(self, strategy: Strategy) -> Scorer:
        """The scorer, or one that refuses to score for a strategy that asks for no rewards."""
        return self.scorer if strategy.uses_scorer else _NoScorer()

    def load(self, strategy: Strategy) -> None:
        """Load what a strategy needs. Raises InputError, also where engine or strategy cannot do what is asked of them."""
        self.engine.check_sampling(self.settings.sampling)
        strategy.check_scorer(self.scorer_of(strategy))

    async def check(self, strategy: Strategy) -> None:
        """Find out whether what a strategy needs can be used, servers above all. Raises InputError if not."""
        for part in (self.engine, self.scorer_of(strategy)):
            if part not in self._checked:
                self.progress.stage = "asking the server" if part is self.engine else "asking the scorer's server"
                await part.check()
                self._checked.append(part)

    @property
    def notices(self) -> tuple[str, ...]:
        """What engine and scorer do otherwise than asked, as far as they are in use."""
        return tuple(notice for part in self._checked for notice in part.notices)

    async def close(self) -> None:
        """Let go of what was loaded here."""
        for part in self._opened:
            await part.close()


class _NoScorer(Scorer):
    """The scorer of a strategy that declares that it asks for no rewards."""

    async def score(self, candidates: Sequence[Candidate]) -> list[Reward]:
        raise RuntimeError("this strategy declares uses_scorer = False, yet it asked for rewards")
