"""Votes: how much each sample counts in favour of its answer, whatever the range of the rewards."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence

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
    does not depend on the unit of the rewards, and is 1 for all where rewards are equal. A candidate that is not rated has the
    weight SMALLEST.
    """
    return _weights(rewards, lambda reward: reward.total)


def vote_shares(rewards: Sequence[Reward]) -> list[float]:
    """The same weights on a scale on which no vote exceeds 1, for rules that compare them with numbers of votes."""
    return _weights(rewards, lambda reward: reward.share or 0.0)


def _weights(rewards: Sequence[Reward], of_probability: Callable[[Reward], float]) -> list[float]:
    rated = [reward for reward in rewards if reward.rated]
    if all(reward.share is not None for reward in rated):
        return [max(of_probability(reward), SMALLEST) for reward in rewards]
    weights = iter(standardized([reward.total for reward in rated]))
    return [max(next(weights), SMALLEST) if reward.rated else SMALLEST for reward in rewards]


def standardized(values: Sequence[float]) -> list[float]:
    """exp((v - max) / s) for each value v, with their standard deviation s: at most 1, and 1 for all where all are equal."""
    mean, top = math.fsum(values) / len(values), max(values)
    spread = math.hypot(*(value - mean for value in values)) / math.sqrt(len(values)) or 1.0
    return [math.exp((value - top) / spread) for value in values]
