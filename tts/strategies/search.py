"""The search tree of one problem: what was drawn from what, how it was rated, and what became of it.

Strategies that grow solutions step by step write their loop in terms of nodes; the tree keeps the account, so that a search
can be redrawn, and replayed, from its result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tts.errors import InputError
from tts.solving.generator import Generator
from tts.trajectory import BOUNDARY, CLOSE, OPEN, parse
from tts.types import Branch, Candidate, Count, Part, Problem, Result, Reward, Scorer, Step, Strategy


@dataclass(eq=False)
class Node:
    """A partial or complete solution in a tree."""

    candidate: Candidate
    parent: Node | None = None
    reward: Reward | None = None
    fate: str = "pruned: left over"
    """Whether it was kept or why it was pruned; the last word said of it holds."""
    copies: int = 1
    """How often it was drawn: siblings that repeat it are not rated again, yet have a place each."""

    @property
    def value(self) -> float:
        return self.reward.total if self.reward is not None else 0.0

    @property
    def done(self) -> bool:
        return self.candidate.done

    @property
    def added(self) -> tuple[Step, ...]:
        """What it has and its parent has not."""
        return self.candidate.steps[len(self.parent.candidate.steps) if self.parent is not None else 0 :]

    @property
    def standing(self) -> tuple[float, bool]:
        """What nodes are ordered by: at equal value, one that is truncated goes behind the others."""
        return self.value, self.candidate.finish != "length"


class Search:
    """Grows one problem's tree."""

    def __init__(
        self,
        problem: Problem,
        generator: Generator,
        scorer: Scorer,
        *,
        over: Part = "all",
        delimiters: tuple[str, str] = (BOUNDARY, BOUNDARY),
        resample: bool = False,
    ) -> None:
        """`over`: the part that is searched step by step; `delimiters` end steps of the thinking and of the response."""
        self.problem, self.generator, self.scorer = problem, generator, scorer
        self.over, self.delimiters, self.resample = over, delimiters, resample
        self.root = Node(generator.opened(Candidate(problem)), fate="kept")
        self.nodes: list[Node] = []

    async def grow(self, nodes: Sequence[Node], counts: Sequence[int], *, temperature: float | None = None) -> list[Node]:
        """A round: each node's children, `counts[i]` of node i, without those that repeat a sibling."""
        for node in nodes:
            node.fate = "kept"
        families = await self.generator.together(
            self._children(node, count, temperature) for node, count in zip(nodes, counts, strict=True)
        )
        return [child for family in families for child in family]

    async def draw(self, nodes: Sequence[Node], counts: Sequence[int]) -> list[list[Node]]:
        """A round in which equal siblings stay apart, as weighing them needs; the same node stands for both."""
        drawn = await self.generator.together(self.advance(node.candidate, n) for node, n in zip(nodes, counts, strict=True))
        families = []
        for node, count, candidates in zip(nodes, counts, drawn, strict=True):
            known = {child.candidate: child for child in self.nodes if child.parent is (None if node is self.root else node)}
            for candidate in candidates:
                if candidate not in known:
                    known[candidate] = self.add(candidate, node)
            family = [known[candidate] for candidate in candidates]
            families.append(family + family[-1:] * (count - len(family)))  # shorter where the budget ended first
        return families

    async def finish(self, nodes: Sequence[Node]) -> list[Node]:
        """A finished and rated solution behind each node, one roll-out each."""
        ends = await self.generator.together(self.generator.finish(node.candidate) for node in nodes)
        fresh = [node if node.done else self.add(end, node) for node, [end] in zip(nodes, ends, strict=True)]
        await self.score(fresh)
        return fresh

    async def score(self, nodes: Sequence[Node]) -> None:
        """Rate nodes that have no reward yet, in one batch."""
        fresh = [node for node in nodes if node.reward is None]
        rewards = await self.scorer.score([node.candidate for node in fresh]) if fresh else []
        for node, reward in zip(fresh, rewards, strict=True):
            node.reward = reward

    async def advance(self, candidate: Candidate, count: int, *, temperature: float | None = None) -> list[Candidate]:
        """Continue a candidate by one step of the part that is searched; what is not searched is drawn in one go."""
        children = await self._step(candidate, count, temperature)
        return await self.generator.together(self._until_it_says_something(candidate, child, temperature) for child in children)

    def add(self, candidate: Candidate, parent: Node | None) -> Node:
        node = Node(candidate, None if parent is self.root else parent)
        self.nodes.append(node)
        return node

    def result(self, nodes: Sequence[Node]) -> Result:
        """These nodes as the solutions, and the tree as it came to be."""
        for node in nodes:
            node.fate = "returned"
        return Result([node.candidate for node in nodes], [node.reward for node in nodes if node.reward], tree=self._tree())

    def _tree(self) -> list[Branch]:
        """First steps first, then their children, and so on: an order that does not depend on what was drawn when."""
        children: dict[Node | None, list[Node]] = {}
        for node in self.nodes:
            children.setdefault(node.parent, []).append(node)
        tree: list[Branch] = []
        level: list[tuple[Node | None, int | None]] = [(None, None)]
        depth = 0
        while level:
            following: list[tuple[Node | None, int | None]] = []
            for parent, number in level:
                for node in children.get(parent, ()):
                    following.append((node, len(tree)))
                    text, tokens = "".join(step.text for step in node.added), sum(len(step.token_ids) for step in node.added)
                    reward = node.reward.total if node.reward else None
                    tree.append(Branch(number, depth, text, tokens, node.candidate.finish, reward, node.fate))
            level, depth = following, depth + 1
        return tree

    async def _children(self, node: Node, count: int, temperature: float | None) -> list[Node]:
        drawn = await self.advance(node.candidate, count, temperature=temperature)
        if self.resample and (missing := count - len(set(drawn))) and not all(child.done for child in drawn):
            drawn += await self.advance(node.candidate, missing, temperature=temperature)
        family: dict[Candidate, Node] = {}
        for candidate in drawn:
            child = self.add(candidate, node)
            if candidate in family:
                child.fate = "pruned: repeats a sibling"
                family[candidate].copies += not self.resample  # else another was drawn in its place
            else:
                family[candidate] = child
        return list(family.values())

    async def _step(self, candidate: Candidate, count: int, temperature: float | None) -> list[Candidate]:
        thinking = _is_thinking(candidate)
        if self.over == "think" and thinking is False:
            return await self.generator.finish(candidate, count, temperature=temperature)
        if self.over == "response" and thinking:
            return await self.generator.step(candidate, count, temperature=temperature, stop=CLOSE)
        # before anything is written, either part may begin; and thinking ends where it ends, whatever its delimiter
        stops = {None: (*self.delimiters, CLOSE), True: (self.delimiters[0], CLOSE), False: self.delimiters[1:]}[thinking]
        if set(self.delimiters) == {BOUNDARY}:  # as in the field's searches, and in what is drawn in one go and cut
            stops = (BOUNDARY,)
        return await self.generator.step(candidate, count, temperature=temperature, stop=tuple(dict.fromkeys(stops)))

    async def _until_it_says_something(self, before: Candidate, child: Candidate, temperature: float | None) -> Candidate:
        """A step that adds nothing to rate (a tag, blank lines) goes on, and so do thinking that is not searched and a first
        step that ended at the other part's delimiter."""
        while not child.done and (
            parse(child.text) == parse(before.text)
            or (_is_thinking(child) and self.over == "response")
            or not (before.text.strip() or self._at_a_delimiter(child))
        ):
            [child] = await self._step(child, 1, temperature)
        return child

    def _at_a_delimiter(self, candidate: Candidate) -> bool:
        last, delimiter = candidate.steps[-1].text, self.delimiters[0 if _is_thinking(candidate) else 1]
        return delimiter in last or CLOSE in last


@dataclass(frozen=True)
class StepSearch(Strategy):
    """What searches over steps have in common."""

    n: Count = 16
    """Solutions in flight, and returned, at most."""
    search_over: Part = "all"
    """The part searched step by step: think, response or all; the rest is drawn in one go."""
    think_delimiter: str = BOUNDARY
    """What ends a step of the thinking; \\n is a line end."""
    response_delimiter: str = BOUNDARY
    """What ends a step of the response."""

    def search(self, problem: Problem, generator: Generator, scorer: Scorer, *, resample: bool = False) -> Search:
        """A new tree under these options."""
        delimiters = (self.think_delimiter.replace("\\n", "\n"), self.response_delimiter.replace("\\n", "\n"))
        return Search(problem, generator, scorer, over=self.search_over, delimiters=delimiters, resample=resample)


@dataclass(frozen=True)
class BranchingSearch(StepSearch):
    """Searches that try several continuations of a solution and keep some."""

    width: Count = 4
    """Continuations tried of each solution that is kept."""
    resample: bool = False
    """Draw once more in place of a step that repeats its sibling."""

    def __post_init__(self) -> None:
        if self.width > self.n:
            raise InputError(f"--width is {self.width}, more than --n {self.n}; a round would not fit into its budget")


def best(nodes: Sequence[Node], count: int) -> list[Node]:
    """The `count` nodes of the highest standing, best first; earlier ones before later ones."""
    return sorted(nodes, key=lambda node: node.standing, reverse=True)[:count]


def share(total: int, parts: int) -> list[int]:
    """`total` as evenly as it goes: share(10, 4) is [3, 3, 2, 2]."""
    return [total // parts + (i < total % parts) for i in range(parts)]


def _is_thinking(candidate: Candidate) -> bool | None:
    """Whether the next token belongs to the thinking; None where nothing has been written that would tell."""
    text = candidate.text
    return (OPEN in text and CLOSE not in text) if text.strip() else None
