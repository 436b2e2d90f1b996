"""PRM-guided beam search (Snell et al. 2024, https://arxiv.org/abs/2408.03314)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tts.solving.generator import Generator
from tts.strategies.search import BranchingSearch, Node, Search, best, share
from tts.types import Problem, Result, Scorer


@dataclass(frozen=True)
class Beam(BranchingSearch):
    """Grow n solutions step by step; after each step, keep the n / width best and branch them to n again.

    A step that was drawn several times holds that many places in the beam. A finished solution keeps its place for as long as
    it is among the best, and costs no tokens; the search ends when no unfinished solution holds a place.
    """

    filter_duplicates: bool = False
    """Give a step that was drawn several times one place, as search-and-learn's recipes do. The next round draws as many
    continuations all the same."""

    async def solve(self, problem: Problem, generator: Generator, scorer: Scorer) -> Result:
        search, places = self.search(problem, generator, scorer, resample=self.resample), self.n // self.width
        children = await search.grow([search.root], [self.n])
        finished: list[Node] = []
        while True:
            await self.rate(search, children)
            finished += [node for node in children if node.done]
            rivals = best([*finished, *(node for node in children if not node.done)], places)
            single = self.filter_duplicates
            leading = [copy for node in rivals for copy in [node] * (1 if single or node.done else node.copies)][:places]
            beams = Counter(node for node in leading if not node.done)
            for node in children:
                if node in leading:
                    node.keep()
                else:
                    node.prune("not among the best")
            if not beams:
                break
            children = await search.grow([*beams], self._counts(beams, leading))
        return search.result(best(finished, self.n))

    def _counts(self, beams: Counter[Node], leading: Sequence[Node]) -> list[int]:
        """Continuations of each beam; the places of finished solutions are not branched."""
        if self.filter_duplicates:
            return share(self.n - self.width * sum(node.done for node in leading), len(beams))
        extra = share(self.n % self.width, len(beams))
        return [self.width * copies + more for copies, more in zip(beams.values(), extra, strict=True)]

    async def rate(self, search: Search, nodes: Sequence[Node]) -> None:
        """Give each node the reward by which it is compared with the others: here its own."""
        await search.score(nodes)
