"""The search tree of one problem: which step was drawn from which, its reward, and whether it was kept.

Strategies that grow solutions step by step write their loop in terms of nodes. The tree records every draw, so that a search
can be displayed, and replayed, from its result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tts.delimiters import delimiter
from tts.errors import InputError
from tts.solving.generator import Generator
from tts.trajectory import BOUNDARY, is_thinking, tags_in
from tts.types import REPEATS, Branch, Candidate, Count, Fate, Part, Problem, Result, Reward, Scorer, Step, Strategy


@dataclass(eq=False)
class Node:
    """A partial or complete solution in a tree."""

    candidate: Candidate
    parent: Node | None = None
    reward: Reward | None = None
    fate: Fate = "pruned"
    """What the search did with it. `keep` and `prune` may be called repeatedly; the last call counts."""
    reason: str = "left over"
    """Why it was pruned."""
    copies: int = 1
    """Number of times it was drawn. Siblings that repeat it are not scored again, but each of them counts as a place."""

    def keep(self) -> None:
        """Mark the node as one that the search continues."""
        self.fate, self.reason = "kept", ""

    def prune(self, reason: str) -> None:
        """Mark the node as dropped, with a reason that readers of the tree understand (`not among the best`)."""
        self.fate, self.reason = "pruned", reason

    @property
    def value(self) -> float:
        """The total reward; 0 while the node has not been scored."""
        return self.reward.total if self.reward is not None else 0.0

    @property
    def done(self) -> bool:
        return self.candidate.done

    @property
    def added(self) -> tuple[Step, ...]:
        """The steps that its parent does not have."""
        return self.candidate.steps[len(self.parent.candidate.steps) if self.parent is not None else 0 :]

    @property
    def standing(self) -> tuple[bool, bool, float]:
        """Sort key of nodes: as in `Preference`, but that one in progress can still finish."""
        return self.candidate.finish != "length", self.reward is None or self.reward.rated, self.value


class Scale:
    """Values on the scale of the bonus: as they are where rewards are probabilities. Others are mapped to [0, 1], by the
    smallest and the largest value of the tree so far, as in MuZero (https://arxiv.org/abs/1911.08265, appendix B)."""

    def __init__(self) -> None:
        self.low, self.high, self.bounded = math.inf, -math.inf, True

    def see(self, nodes: Sequence[Node]) -> None:
        for reward in (node.reward for node in nodes):
            if reward is not None and reward.rated:
                self.low, self.high = min(self.low, reward.total), max(self.high, reward.total)
                self.bounded &= reward.share is not None

    def __call__(self, value: float) -> float:
        return value if self.bounded else (value - self.low) / ((self.high - self.low) or 1.0)


class Search:
    """Grows the tree of one problem.

    `over` is the part of the solutions that is searched step by step; the rest is drawn in one go. `delimiters` are the strings
    that end a step of the thinking and of the response; None stands for those of the problem's step delimiter. With `resample`,
    steps that repeat a sibling are drawn once more.
    """

    def __init__(
        self,
        problem: Problem,
        generator: Generator,
        scorer: Scorer,
        *,
        over: Part = "all",
        delimiters: tuple[tuple[str, ...] | None, tuple[str, ...] | None] = (None, None),
        resample: bool = False,
    ) -> None:
        self.problem, self.generator, self.scorer = problem, generator, scorer
        self.over, self.resample = over, resample
        self.delimiters = tuple(generator.stops if stops is None else stops for stops in delimiters)
        self.root = Node(generator.opened(Candidate(problem)), fate="kept", reason="")
        self.nodes: list[Node] = []

    async def grow(self, nodes: Sequence[Node], counts: Sequence[int], *, temperature: float | None = None) -> list[Node]:
        """Draw `counts[i]` children of each node i and return the distinct ones, all families in one list."""
        for node in nodes:
            node.keep()
        families = await self.generator.together(
            self._children(node, count, temperature) for node, count in zip(nodes, counts, strict=True)
        )
        return [child for family in families for child in family]

    async def draw(self, nodes: Sequence[Node], counts: Sequence[int]) -> list[list[Node]]:
        """Draw `counts[i]` children of each node i, one family per node.

        Equal siblings are one node, which is in the family as often as it was drawn, so that weights count it that often.
        """
        drawn = await self.generator.together(self.advance(node.candidate, n) for node, n in zip(nodes, counts, strict=True))
        families = []
        for node, count, candidates in zip(nodes, counts, drawn, strict=True):
            known = {child.candidate: child for child in self.nodes if child.parent is (None if node is self.root else node)}
            for candidate in candidates:
                if candidate not in known:
                    known[candidate] = self.add(candidate, node)
            family = [known[candidate] for candidate in candidates]
            families.append(family + family[-1:] * (count - len(family)))  # fewer were drawn if the budget ran out
        return families

    async def finish(self, nodes: Sequence[Node]) -> list[Node]:
        """Roll out each node to a finished solution, and score the solutions."""
        ends = await self.generator.together(self.generator.finish(node.candidate) for node in nodes)
        fresh = [node if node.done else self.add(end, node) for node, [end] in zip(nodes, ends, strict=True)]
        await self.score(fresh)
        return fresh

    async def score(self, nodes: Sequence[Node]) -> None:
        """Score the nodes that have no reward yet, in one batch."""
        fresh = [node for node in nodes if node.reward is None]
        rewards = await self.scorer.score([node.candidate for node in fresh]) if fresh else []
        for node, reward in zip(fresh, rewards, strict=True):
            node.reward = reward

    async def advance(self, candidate: Candidate, count: int, *, temperature: float | None = None) -> list[Candidate]:
        """Continue a candidate by one step, `count` ways. A part that is not searched is drawn in one go."""
        children = await self._step(candidate, count, temperature)
        return await self.generator.together(self._until_ratable(candidate, child, temperature) for child in children)

    def add(self, candidate: Candidate, parent: Node | None) -> Node:
        """Add a candidate to the tree as a child of `parent`."""
        node = Node(candidate, None if parent is self.root else parent)
        self.nodes.append(node)
        return node

    def result(self, nodes: Sequence[Node]) -> Result:
        """The nodes as the candidates of a result, with the whole tree."""
        for node in nodes:
            node.fate, node.reason = "returned", ""
        return Result([node.candidate for node in nodes], [node.reward for node in nodes if node.reward], tree=self._tree())

    def _tree(self) -> list[Branch]:
        """All nodes, level by level: an order that does not depend on the timing of the draws."""
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
                    reward = node.reward.total if node.reward and node.reward.rated else None
                    tree.append(Branch(number, depth, text, tokens, node.candidate.finish, reward, node.fate, node.reason))
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
                child.prune(REPEATS)
                family[candidate].copies += not self.resample  # with resampling, another was drawn in its place
            else:
                family[candidate] = child
        return list(family.values())

    async def _step(self, candidate: Candidate, count: int, temperature: float | None) -> list[Candidate]:
        thinking = _is_thinking(candidate)
        if self.over == "think" and thinking is False:
            return await self.generator.finish(candidate, count, temperature=temperature)
        if self.over == "response" and thinking:
            stops = self._closers(candidate)
        elif set(self.delimiters) == {(BOUNDARY,)}:  # as in other search libraries, and in solutions drawn in one go
            stops = self.delimiters[0]
        elif thinking is False:
            stops = self.delimiters[1]
        else:  # before the first token either part may follow; and a closing tag ends the thinking, whatever its delimiter
            either = self.delimiters[0] + (() if thinking else self.delimiters[1])
            stops = (*either, *self._closers(candidate))
        return await self.generator.step(candidate, count, temperature=temperature, stop=tuple(dict.fromkeys(stops)))

    async def _until_ratable(self, before: Candidate, child: Candidate, temperature: float | None) -> Candidate:
        """Continue a step that has nothing to rate yet (a tag, blank lines), thinking that is not searched, and a first step
        that ended at the delimiter of the other part."""
        while not child.done and (
            child.trajectory == before.trajectory
            or (_is_thinking(child) and self.over == "response")
            or not (before.text.strip() or self._at_a_delimiter(child))
        ):
            [child] = await self._step(child, 1, temperature)
        return child

    def _at_a_delimiter(self, candidate: Candidate) -> bool:
        last, stops = candidate.steps[-1].text, self.delimiters[0 if _is_thinking(candidate) else 1]
        tags = tags_in(candidate.text)
        return any(stop in last for stop in stops) or (tags is not None and tags.close in last)

    def _closers(self, candidate: Candidate) -> tuple[str, ...]:
        """The tags that may close the candidate's thinking: one, once it has been opened."""
        tags = tags_in(candidate.text)
        return (tags.close,) if tags is not None else self.generator.closers


@dataclass(frozen=True)
class StepSearch(Strategy):
    """Base class of strategies that search over steps."""

    n: Count = 16
    """Maximum number of solutions in progress, and returned."""
    search_over: Part = "all"
    """Part searched step by step: think, response or all; the rest is drawn in one go."""
    think_delimiter: str | None = None
    """What ends a step of the thinking; by default as --step-delimiter says."""
    response_delimiter: str | None = None
    """What ends a step of the response; by default as --step-delimiter says."""

    def __post_init__(self) -> None:
        for part, other in (("think", "response"), ("response", "think")):
            if self.search_over == part and getattr(self, f"{other}_delimiter") not in (None, BOUNDARY):  # once the default
                raise InputError(f"--{other}-delimiter has no effect with --search-over {part}; omit one of the two")

    def check_scorer(self, scorer: Scorer) -> None:
        if "all" not in (self.search_over, scorer.over) and self.search_over != scorer.over:
            raise InputError(
                f"--search-over is {self.search_over}, but the scorer rates only the {scorer.over} steps; search over these, or"
                " use a scorer that rates the others"
            )

    @classmethod
    def options_for(cls, n: int, pilot: int) -> dict[str, Any]:
        """The option `n`, less the pilot's samples: these are candidates already when the search returns its own."""
        return {"n": max(1, n - pilot)}

    def search(self, problem: Problem, generator: Generator, scorer: Scorer, *, resample: bool = False) -> Search:
        """A new tree with these options."""
        think, response = (
            None if given is None else delimiter(given).stops for given in (self.think_delimiter, self.response_delimiter)
        )
        return Search(problem, generator, scorer, over=self.search_over, delimiters=(think, response), resample=resample)


@dataclass(frozen=True)
class BranchingSearch(StepSearch):
    """Base class of searches that draw several continuations of a solution and keep the best."""

    width: Count = 4
    """Continuations drawn from each solution that is kept."""
    resample: bool = False
    """Draw once more in place of a step that repeats a sibling."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width > self.n:
            raise InputError(f"--width is {self.width}; it should be at most --n, which is {self.n}")

    @classmethod
    def options_for(cls, n: int, pilot: int) -> dict[str, Any]:
        """`n` less the pilot's samples, and the default width, or n if that is smaller."""
        options = super().options_for(n, pilot)
        return options | {"width": min(cls.width, options["n"])}


def best(nodes: Sequence[Node], count: int) -> list[Node]:
    """The `count` nodes with the highest `standing`, best first; among equal ones, earlier ones first."""
    return sorted(nodes, key=lambda node: node.standing, reverse=True)[:count]


def share(total: int, parts: int) -> list[int]:
    """Split `total` into parts as equal as possible: share(10, 4) is [3, 3, 2, 2]."""
    return [total // parts + (i < total % parts) for i in range(parts)]


def _is_thinking(candidate: Candidate) -> bool | None:
    """Whether the next token belongs to the thinking; None while the text is blank, as either part may follow."""
    text = candidate.text
    return is_thinking(text) if text.strip() else None
