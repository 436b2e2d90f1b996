"""Majority voting, or self-consistency (Wang et al. 2022, https://arxiv.org/abs/2203.11171)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tts.strategies.parallel import Parallel
from tts.types import Reward


@dataclass(frozen=True)
class Majority(Parallel):
    """Sample n solutions and choose the most frequent answer."""

    uses_scorer: ClassVar[bool] = False
    uses_answers: ClassVar[bool] = True
    counts_votes: ClassVar[bool] = True

    def rank(self, rewards: Sequence[Reward], groups: Sequence[int | None]) -> Sequence[float]:
        votes = Counter(group for group in groups if group is not None)
        return [votes[group] if group is not None else 0 for group in groups]
