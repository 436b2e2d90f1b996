"""Weighted voting: best-of-N over answers instead of solutions (Li et al. 2022, https://arxiv.org/abs/2206.02336)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tts.strategies.parallel import Parallel
from tts.strategies.votes import tally, vote_weights
from tts.types import Reward


@dataclass(frozen=True)
class Weighted(Parallel):
    """Sample n solutions and choose the answer with the largest sum of rewards.

    Rewards that are not probabilities (log-probabilities, lengths, implicit rewards, sums of logits) are first made positive:
    one that is a standard deviation lower than another, among the problem's samples, counts 1/e of it.
    """

    uses_answers: ClassVar[bool] = True

    def rank(self, rewards: Sequence[Reward], groups: Sequence[int | None]) -> Sequence[float]:
        return tally(groups, vote_weights(rewards))
