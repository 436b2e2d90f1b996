"""Tokens that may still be generated, shared by requests that overlap."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass


@dataclass
class Grant:
    """Leave to draw `count` samples of at most `each` tokens; who has it says how many were `used`."""

    count: int
    each: int
    used: int = 0


class Budget:
    """Who asks reserves the most that the answer can be, and gives back what it was not; so the sum never passes the limit.

    A problem's budget may lie within the run's.
    """

    def __init__(self, tokens: int | None = None, within: Budget | None = None) -> None:
        self.left, self.within, self._out = tokens, within, 0
        self._turn, self._settled = asyncio.Lock(), asyncio.Event()

    @property
    def limited(self) -> bool:
        return self.left is not None

    @property
    def spent(self) -> bool:
        """Whether nothing is left, and nothing is out that may still come back."""
        own = self.left is not None and self.left <= 0 and not self._out
        return own or (self.within is not None and self.within.spent)

    @asynccontextmanager
    async def reserve(self, n: int, each: int) -> AsyncIterator[Grant]:
        """As many of n samples of `each` tokens as there is room for now; one shorter one where there is less; else none.

        Waits while what others have reserved may still come back.
        """
        grant = Grant(n, each)
        async with self._hold(grant), self.within._hold(grant) if self.within else nullcontext():
            if not grant.each:
                grant.count = 0
            yield grant

    @asynccontextmanager
    async def _hold(self, grant: Grant) -> AsyncIterator[None]:
        if self.left is None:
            yield
            return
        async with self._turn:  # in order of arrival
            while grant.count * grant.each > self.left and self._out:
                self._settled.clear()
                await self._settled.wait()
            left = max(0, self.left)
            grant.count = min(grant.count, max(1, left // max(1, grant.each)))
            grant.each = min(grant.each, left)
            held = grant.count * grant.each
            self.left -= held
            self._out += 1
        try:
            yield
        finally:
            self.left += held - grant.used
            self._out -= 1
            self._settled.set()
