"""Votes: how much each sample counts in favour of its answer, whatever the range of the rewards."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

from tts.types import Reward

SMALLEST = sys.float_info.min
"""The least that a vote counts: too little to change a sum, and more than nothing."""


def tally(groups: Sequence[int | None], weights: Sequence[float]) -> list[float]:
    """The result of a vote, as a score for each candidate.

    Args:
        groups: For each candidate a number, equal for equivalent answers, or None without an answer.
        weights: How much each candidate's vote counts. A weight below SMALLEST counts as SMALLEST.

    Returns:
        The summed weights of the candidate's answer; 0, which is less than any answer has, without an answer.
    """
    votes: dict[int, float] = {}
    for group, weight in zip(groups, weights, strict=True):
        if group is not None:
            votes[group] = votes.get(group, 0) + max(weight, SMALLEST)
    return [votes[group] if group is not None else 0 for group in groups]


def vote_weights(rewards: Sequence[Reward]) -> list[float]:
    """The weights of a problem's candidates in a weighted vote: positive, and larger for a higher reward.

    If all rewards are made of probabilities, with r_hat between 0 and the largest value possible (1 + alpha), r_hat is the
    weight. Others (log-probabilities, lengths, implicit rewards, sums of logits) have no natural zero. Their weight is
    exp((r - max) / s), with the standard deviation s of the pool: a reward that is one standard deviation lower counts 1/e. It
    does not depend on the unit of the rewards, and is 1 for all where rewards are equal.
    """
    shares = [share(reward) for reward in rewards]
    totals = [reward.total for reward in rewards]
    return _relative(totals) if None in shares else [max(total, SMALLEST) for total in totals]


def vote_shares(rewards: Sequence[Reward]) -> list[float]:
    """The same weights on a scale on which no vote exceeds 1, for rules that compare them with numbers of votes."""
    shares = [value for reward in rewards if (value := share(reward)) is not None]
    if len(shares) < len(rewards):
        return _relative([reward.total for reward in rewards])
    return [max(value, SMALLEST) for value in shares]


def share(reward: Reward) -> float | None:
    """r_hat as a share of the largest value it can have; None if it is not made of probabilities."""
    if reward.how == "sum-logit":
        return None
    by_steps = bool(reward.steps) and reward.how != "final"
    weight = 1.0 if reward.how == "final" else reward.alpha
    most = by_steps + (max(0.0, weight) if reward.final is not None else 0.0)
    if not 0 <= reward.total <= most:
        return None
    return reward.total / most if most else 0.0


def _relative(totals: Sequence[float]) -> list[float]:
    mean = math.fsum(totals) / len(totals)
    spread = math.hypot(*(total - mean for total in totals)) / math.sqrt(len(totals))
    top = max(totals)
    return [max(math.exp((total - top) / spread), SMALLEST) if spread else 1.0 for total in totals]
