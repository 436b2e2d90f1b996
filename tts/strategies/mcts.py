"""Monte Carlo tree search over steps, with PUCT and PRM values (as in Guan et al. 2025, https://arxiv.org/abs/2501.04519)."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from tts.solving.generator import Generator
from tts.strategies.search import BranchingSearch, Node, StepSearch, best
from tts.types import Count, Problem, Result, Scorer


@dataclass(frozen=True)
class MCTS(BranchingSearch):
    """Monte Carlo tree search: descend by PUCT to a leaf, draw `width` next steps, and back up the best one's reward.

    All children of a node have the same prior. The n best finished solutions are returned.
    """

    simulations: Count = 32
    """Number of descents from the root."""
    c: Annotated[float, Ge(0)] = 1.0
    """Weight of exploration in PUCT; 0 always follows the highest mean value."""
    rollouts: bool = False
    """Rate a step by the reward of a finished solution, rolled out from it, instead of by its own reward."""

    def __post_init__(self) -> None:
        """Accept any width: n limits how many solutions are returned, not how many are drawn in a round."""
        StepSearch.__post_init__(self)

    async def solve(self, problem: Problem, generator: Generator, scorer: Scorer) -> Result:
        search = self.search(problem, generator, scorer, resample=self.resample)
        visits: defaultdict[Node, int] = defaultdict(int)
        worth: defaultdict[Node, float] = defaultdict(float)
        children: dict[Node, list[Node]] = {}

        def puct(node: Node, parent: Node) -> float:
            mean = worth[node] / visits[node] if visits[node] else node.value
            prior = 1 / len(children[parent])
            return mean + self.c * prior * math.sqrt(visits[parent]) / (1 + visits[node])

        for _ in range(self.simulations):
            node = search.root
            path = [node]
            while node in children:
                node = max(children[node], key=lambda child: puct(child, path[-1]))
                path.append(node)
            if not node.done:
                if children and generator.spent:
                    break
                children[node] = await search.grow([node], [self.width])
                await search.score(children[node])
                [node] = best(children[node], 1)
                path.append(node)
            end = node
            if self.rollouts and not node.done:
                [end] = await search.finish([node])
            for visited in path:
                visits[visited] += 1
                worth[visited] += end.value
        ends = [node for node in search.nodes if node.done and node.reward]
        if not any(node.candidate.finish == "stop" for node in ends):  # finish the most promising solutions
            leaves = [node for node in search.nodes if node not in children and node.reward]
            ends += await search.finish(best(leaves, self.n))
        distinct = {node.candidate: node for node in reversed(ends)}
        return search.result(best(list(distinct.values())[::-1], self.n))
