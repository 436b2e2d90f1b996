"""Token budgets, shared by concurrent requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass


@dataclass
class Grant:
    """A reservation of `count` samples of at most `each` tokens."""

    count: int
    each: int
    used: int = 0
    """Tokens that were generated; the holder sets it before the reservation ends."""


class Budget:
    """A limit on generated tokens that concurrent requests together never exceed.

    A request reserves the largest number of tokens that it may generate, and returns those that it did not use. `tokens` is the
    limit, by default none; `within` is an enclosing budget (a run's, for a problem's) from which the same tokens are taken.
    """

    def __init__(self, tokens: int | None = None, within: Budget | None = None) -> None:
        self.left, self.within, self._out = tokens, within, 0
        self._turn, self._settled = asyncio.Lock(), asyncio.Event()

    @property
    def limited(self) -> bool:
        return self.left is not None

    @property
    def spent(self) -> bool:
        """Whether no tokens are left and no open reservation may return any."""
        own = self.left is not None and self.left <= 0 and not self._out
        return own or (self.within is not None and self.within.spent)

    @asynccontextmanager
    async def reserve(self, n: int, each: int) -> AsyncIterator[Grant]:
        """Reserve up to n samples of `each` tokens: as many as fit, one shorter sample if none fits, or none (a count of 0).

        Waits while open reservations may still return tokens that are needed.
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
        async with self._turn:  # requests are served in order of arrival
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
