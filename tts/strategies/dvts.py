"""Diverse verifier tree search (Beeching et al. 2024, https://huggingface.co/spaces/HuggingFaceH4/blogpost-scaling-test-time-compute)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tts.generator import Generator
from tts.registry import strategy
from tts.search import Node, Search, BranchingSearch, best, share
from tts.types import Problem, Result, Scorer


@strategy("dvts")
@dataclass(frozen=True)
class DVTS(BranchingSearch):
    """Grow n / width trees apart from each other, each greedily along its best of width steps; return the best of each."""

    async def solve(self, problem: Problem, generator: Generator, scorer: Scorer) -> Result:
        search = self.search(problem, generator, scorer, resample=self.resample)
        widths = share(self.n, self.n // self.width)
        first = await search.grow([search.root], [self.n])
        trees = [first[i :: len(widths)] for i in range(len(widths))]
        ends = await asyncio.gather(*(self._climb(search, tree, width) for tree, width in zip(trees, widths, strict=True) if tree))
        return search.result(ends)

    async def _climb(self, search: Search, children: list[Node], width: int) -> Node:
        """The finished solution that is reached by the best step each time."""
        while True:
            await search.score(children)
            [node] = best(children, 1)
            for child in children:
                child.fate = "kept" if child is node else "pruned: not the best of its tree"
            if node.done:
                return node
            children = await search.grow([node], [width])
