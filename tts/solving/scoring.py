"""Whether what a scorer returns can be used: a number or None for every step, and none that is not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tts.errors import InputError
from tts.types import Candidate, Part, Reward


def check_rewards(rewards: Sequence[Reward], candidates: Sequence[Candidate], over: Part) -> None:
    """Refuse rewards that say nothing, or that nobody could assign to steps.

    Raises:
        InputError: There is not one reward per candidate; a reward has steps, but not one for each step of the part `over`; or
            a number is not finite.
    """
    if len(rewards) != len(candidates):
        raise InputError(f"the scorer returned {len(rewards)} rewards for {len(candidates)} candidates; expected one for each")
    for reward, candidate in zip(rewards, candidates, strict=True):
        expected = len(candidate.part(over))
        if reward.steps and len(reward.steps) != expected:
            raise InputError(
                f"the scorer returned {len(reward.steps)} step rewards for a trace with {expected} steps to rate; expected one"
                " for each, None where there is no verdict, or none at all"
            )
        if not all(math.isfinite(value) for value in (*reward.known, reward.final or 0.0)):
            raise InputError(
                "the scorer returned a reward that is not finite; try another precision or another model, and give None where"
                " there is no verdict"
            )
