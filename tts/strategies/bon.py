"""Best-of-N sampling (Cobbe et al. 2021, https://arxiv.org/abs/2110.14168)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tts.strategies.parallel import Parallel
from tts.types import Reward


@dataclass(frozen=True)
class BestOfN(Parallel):
    """Sample n solutions and choose the one with the highest reward."""

    def rank(self, rewards: Sequence[Reward], groups: Sequence[int | None]) -> Sequence[float]:
        return [reward.total for reward in rewards]
