"""Diverse verifier tree search (Beeching et al. 2024, https://huggingface.co/spaces/HuggingFaceH4/blogpost-scaling-test-time-compute)."""

from __future__ import annotations

from dataclasses import dataclass

from tts.solving.generator import Generator
from tts.strategies.search import BranchingSearch, best, share
from tts.types import Problem, Result, Scorer


@dataclass(frozen=True)
class DVTS(BranchingSearch):
    """Grow n / width independent trees, each greedily along the best of width steps, and return the best of each tree."""

    async def solve(self, problem: Problem, generator: Generator, scorer: Scorer) -> Result:
        search = self.search(problem, generator, scorer, resample=self.resample)
        widths = share(self.n, self.n // self.width)
        first = await search.grow([search.root], [self.n])
        trees = [family for i in range(len(widths)) if (family := first[i :: len(widths)])]
        while True:
            await search.score([child for tree in trees for child in tree])
            leaders = [best(tree, 1)[0] for tree in trees]
            for child in {child for tree in trees for child in tree} - set(leaders):
                child.prune("not the best of its tree")
            live = [i for i, leader in enumerate(leaders) if not leader.done]
            if not live:
                return search.result(leaders)
            trees = [[leader] for leader in leaders]  # a finished leader stays as it is
            for child in await search.grow([leaders[i] for i in live], [widths[i] for i in live]):
                tree = trees[leaders.index(child.parent)]  # type: ignore[arg-type]
                tree[:] = [*(node for node in tree if node is not child.parent), child]
