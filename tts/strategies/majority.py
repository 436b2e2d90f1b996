"""Majority voting, or self-consistency (Wang et al. 2022, https://arxiv.org/abs/2203.11171)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tts.strategies.parallel import Parallel
from tts.strategies.votes import tally
from tts.types import Reward


@dataclass(frozen=True)
class Majority(Parallel):
    """Sample n solutions and choose the most frequent answer."""

    uses_scorer: ClassVar[bool] = False
    uses_answers: ClassVar[bool] = True
    counts_votes: ClassVar[bool] = True

    def rank(self, rewards: Sequence[Reward], groups: Sequence[int | None]) -> Sequence[float]:
        return tally(groups, [1] * len(groups))
