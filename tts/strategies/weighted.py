"""Weighted voting: best-of-N over answers instead of solutions (Li et al. 2022, https://arxiv.org/abs/2206.02336)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tts.strategies.parallel import Parallel
from tts.types import Reward


@dataclass(frozen=True)
class Weighted(Parallel):
    """Sample n solutions and choose the answer with the largest sum of rewards."""

    uses_answers: ClassVar[bool] = True

    def rank(self, rewards: Sequence[Reward], groups: Sequence[int | None]) -> Sequence[float]:
        votes: defaultdict[int | None, float] = defaultdict(float)
        for reward, group in zip(rewards, groups, strict=True):
            votes[group] += reward.total
        return [votes[group] if group is not None else 0.0 for group in groups]
