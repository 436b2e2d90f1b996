"""Particle filtering and particle Gibbs (Puri et al. 2025, https://arxiv.org/abs/2502.01618)."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt, Le

from tts.errors import InputError
from tts.solving.generator import Generator, derive_seed
from tts.strategies.search import Node, StepSearch
from tts.types import CERTAIN, Count, Problem, Result, Scorer


@dataclass(frozen=True)
class Particle(StepSearch):
    """Particle filtering: grow n solutions in parallel and, after each step, resample them by weights made of their rewards.

    With several iterations this is particle Gibbs: each iteration after the first keeps one solution of the previous iteration
    as its reference, whose steps are not drawn again.
    """

    weights: Literal["logit", "reward"] = "logit"
    """What the softmax of the weights is taken of: the log-odds of the reward, as a share of the largest total possible, or
    the reward itself. Rewards that are not between 0 and 1 are taken as they are."""
    softmax_temperature: Annotated[float, Gt(0)] = 1.0
    """Temperature of that softmax; lower values follow the reward model more closely. Rewards themselves need about 0.1."""
    ess: Annotated[float, Gt(0), Le(1)] = 1.0
    """Resample when the effective sample size falls to this share of n; 1 resamples after every step."""
    iterations: Count = 1
    """Number of passes; above 1 this is particle Gibbs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations > 1 and self.n == 1:
            raise InputError("--iterations has no effect with --n 1: the only solution is the reference; give a larger --n")

    async def solve(self, problem: Problem, generator: Generator, scorer: Scorer) -> Result:
        search = self.search(problem, generator, scorer)
        rng = random.Random(derive_seed(generator.seed, problem.id, "particle"))
        reference: list[Node] = []
        particles: list[Node] = []
        for _ in range(self.iterations):
            particles = [search.root] * self.n
            depth = 0
            while not all(node.done for node in particles):
                moving = Counter(node for node in particles[len(reference[:1]) :] if not node.done)
                grown = await search.draw(list(moving), list(moving.values()))
                pools = {parent: list(children) for parent, children in zip(moving, grown, strict=True)}
                moved = [reference[min(depth, len(reference) - 1)]] if reference else []
                moved += [node if node.done else pools[node].pop() for node in particles[len(moved) :]]
                await search.score(list(dict.fromkeys(moved)))
                for node in moved:
                    node.keep()
                weights = self._weights(moved)
                if 1 / sum(weight**2 for weight in weights) <= self.ess * self.n + 1e-9 and not all(
                    node.done for node in moved
                ):
                    chosen = rng.choices(range(self.n), weights, k=self.n)
                    if reference:
                        chosen[0] = 0  # the reference always survives
                    for i, node in enumerate(moved):
                        if i in chosen:
                            node.keep()
                        else:
                            node.prune("not resampled")
                    moved = [moved[i] for i in chosen]
                particles, depth = moved, depth + 1
            if self.iterations > 1:
                [end] = rng.choices(particles, self._weights(particles))
                reference = _path(end)
        return search.result(list(dict.fromkeys(particles)))

    def _weights(self, nodes: Sequence[Node]) -> list[float]:
        """Resampling weights, which sum to 1. A particle without a verdict has none, unless no particle has one."""
        rewards = [node.reward for node in nodes if node.reward is not None and node.reward.rated]
        if not rewards:
            return [1 / len(nodes)] * len(nodes)
        values = [reward.total for reward in rewards]
        shares = [reward.share for reward in rewards]
        if self.weights == "logit" and None not in shares:
            values = [_logit(share or 0.0) for share in shares]
        weights = [math.exp((value - max(values)) / self.softmax_temperature) for value in values]
        each = iter(weights)
        rated = [node.reward is not None and node.reward.rated for node in nodes]
        return [next(each) / sum(weights) if known else 0.0 for known in rated]


def _logit(probability: float) -> float:
    clipped = min(max(probability, CERTAIN), 1 - CERTAIN)
    return math.log(clipped / (1 - clipped))


def _path(node: Node | None) -> list[Node]:
    """The nodes from the first step to this one."""
    path: list[Node] = []
    while node is not None:
        path.insert(0, node)
        node = node.parent
    return path
