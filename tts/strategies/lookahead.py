"""Lookahead search (Snell et al. 2024, https://arxiv.org/abs/2408.03314)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from tts.errors import InputError
from tts.strategies.beam import Beam
from tts.strategies.search import Node, Search
from tts.types import Candidate


@dataclass(frozen=True)
class Lookahead(Beam):
    """Beam search that rates a step by the reward at the end of a roll-out of k further steps; k = 0 is beam search."""

    k: Annotated[int, Ge(0)] = 1
    """Steps of the roll-out."""
    rollout_temperature: Annotated[float, Ge(0)] = 0.0
    """Sampling temperature of the roll-out; 0 is greedy."""
    keep_rollout: bool = False
    """Continue a kept step from the end of its roll-out instead of discarding the roll-out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k == 0 and (self.keep_rollout or self.rollout_temperature):
            name = "--keep-rollout" if self.keep_rollout else "--rollout-temperature"
            raise InputError(f"{name} has no effect with --k 0, which rolls nothing out; omit one of the two")

    async def rate(self, search: Search, nodes: Sequence[Node]) -> None:
        ends = await search.generator.together(self._roll_out(search, node.candidate) for node in nodes)
        rewards = await search.scorer.score(ends)
        for node, end, reward in zip(nodes, ends, rewards, strict=True):
            node.reward = reward
            if self.keep_rollout:
                node.candidate = end

    async def _roll_out(self, search: Search, candidate: Candidate) -> Candidate:
        for _ in range(self.k):
            [candidate] = await search.advance(candidate, 1, temperature=self.rollout_temperature)
        return candidate
