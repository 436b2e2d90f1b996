"""The bundled benchmark: chains of arithmetic, which the bundled models know.

Start with 7.
1) multiply by 8
2) multiply by 5
What is the last digit?
"""

from __future__ import annotations

from collections.abc import Iterator

from tts.demo import arith as world
from tts.types import Problem

PROBLEMS = 100
"""Problems when no limit is given; there are over a million."""


def test_split(*, limit: int | None = None) -> Iterator[Problem]:
    """Chains of arithmetic with a digit as the answer, test split."""
    return _problems("test", limit)


def dev_split(*, limit: int | None = None) -> Iterator[Problem]:
    """Chains of arithmetic, dev split: to choose settings on."""
    return _problems("dev", limit)


def train_split(*, limit: int | None = None) -> Iterator[Problem]:
    """Chains of arithmetic, train split."""
    return _problems("train", limit)


def _problems(split: world.Split, limit: int | None) -> Iterator[Problem]:
    for i, chain in enumerate(world.take(split, limit or PROBLEMS)):
        yield Problem(f"arith-{i}", chain.prompt, chain.answer)
