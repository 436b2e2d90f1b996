"""Monte Carlo tree search over steps, with the values of a PRM (Guan et al. 2025, https://arxiv.org/abs/2501.04519)."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from tts.errors import InputError
from tts.solving.generator import Generator
from tts.strategies.search import BranchingSearch, Node, Scale, StepSearch, best
from tts.types import Count, Problem, Result, Scorer


@dataclass(frozen=True)
class MCTS(BranchingSearch):
    """Monte Carlo tree search: descend to a leaf, draw `width` next steps, then `width` that follow the best of these, until a
    solution is finished, and back up its reward.

    The descent follows the child with the highest mean value plus a bonus for few visits; `rule` is the bonus. In PUCT all
    children of a node have the same prior. The n best finished solutions are returned.
    """

    simulations: Count = 32
    """Number of descents from the root."""
    rule: Literal["uct", "puct"] = "uct"
    """Bonus of a child with v visits and a parent with p: sqrt(ln(p) / v), where a child that was only drawn has v = 1, or
    sqrt(p) / (children (1 + v))."""
    c: Annotated[float, Ge(0)] = 2.0
    """Weight of the bonus; 0 always follows the highest mean value. PUCT needs about 1."""
    unvisited: Literal["reward", "zero"] = "reward"
    """Value of a child before its first visit: its own reward, or 0."""
    to_end: bool = True
    """Draw step after step in one simulation, until a solution is finished; otherwise only the steps after one leaf, and back
    up the best one's reward."""
    rollouts: bool = False
    """With --no-to-end, rate a step by the reward of a finished solution, rolled out from it, instead of by its own."""

    def __post_init__(self) -> None:
        """Accept any width: n limits how many solutions are returned, not how many are drawn in a round."""
        StepSearch.__post_init__(self)
        if self.resample and self.width == 1:
            raise InputError(
                "--resample has no effect with --width 1, where no step has a sibling to repeat; omit one of the two"
            )
        if self.rollouts and self.to_end:
            raise InputError("--rollouts has no effect where each simulation finishes a solution; add --no-to-end")

    async def solve(self, problem: Problem, generator: Generator, scorer: Scorer) -> Result:
        search = self.search(problem, generator, scorer, resample=self.resample)
        visits: defaultdict[Node, int] = defaultdict(int)
        worth: defaultdict[Node, float] = defaultdict(float)
        children: dict[Node, list[Node]] = {}
        scale = Scale()

        def bound(node: Node, parent: Node) -> float:
            own = scale(node.value) if self.unvisited == "reward" else 0.0
            mean = scale(worth[node] / visits[node]) if visits[node] else own
            return mean + self.c * self.bonus(visits[node], visits[parent], len(children[parent]))

        for _ in range(self.simulations):
            node = search.root
            path = [node]
            while node in children:
                node = max(children[node], key=lambda child: bound(child, path[-1]))
                path.append(node)
            if not node.done and children and generator.spent:
                break
            while not node.done:
                children[node] = await search.grow([node], [self.width])
                await search.score(children[node])
                scale.see(children[node])
                [node] = best(children[node], 1)
                path.append(node)
                if not self.to_end:
                    break
            end = node
            if self.rollouts and not node.done:
                [end] = await search.finish([node])
                scale.see([end])
            for visited in path:
                visits[visited] += 1
                worth[visited] += end.value
        ends = [node for node in search.nodes if node.done and node.reward]
        if not any(node.candidate.finish == "stop" for node in ends):  # finish the most promising solutions
            leaves = [node for node in search.nodes if node not in children and node.reward]
            ends += await search.finish(best(leaves, self.n))
        distinct = {node.candidate: node for node in reversed(ends)}
        return search.result(best(list(distinct.values())[::-1], self.n))

    def bonus(self, visits: int, parent: int, siblings: int) -> float:
        """The bonus for few visits, of a child among `siblings` whose parent has `parent` visits."""
        if self.rule == "puct":
            return math.sqrt(parent) / (siblings * (1 + visits))
        return math.sqrt(math.log(max(1, parent)) / max(1, visits))
