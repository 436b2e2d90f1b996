"""Several servers of one model: each problem stays with one of them, and moves on where that one is lost."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from typing import Any, Generic, Protocol, TypeVar

from tts.engines.http import BusyError, JsonClient
from tts.errors import InputError
from tts.types import Candidate, Engine, Generation, Part, Problem, Reward, Sampling, Scorer

REST = 30.0
"""Seconds for which a server that was lost is left out."""

RETRIES = 5
"""How often all servers are asked again where none answers."""

T = TypeVar("T")


class _Asked(Protocol):
    """What engines and scorers have in common."""

    @property
    def notices(self) -> Sequence[str]: ...
    async def check(self) -> None: ...
    async def close(self) -> None: ...


Member = TypeVar("Member", bound=_Asked)


class Servers(Generic[Member]):
    """Engines or scorers alike, each with its server, and who is asked for what.

    Keys are spread by rendezvous hashing (Thaler and Ravishankar 1998): a key has its own order of members. It stays with the
    first as long as that one answers, so prefixes stay in its cache, and the keys of a lost member are spread over the others.

    Args:
        members: One for each address.
        names: Their addresses.
    """

    def __init__(self, members: Sequence[Member], names: Sequence[str]) -> None:
        self.members, self.names = list(members), list(names)
        for member in members:
            _hand_over(member)
        self._resting = [0.0] * len(members)
        """When a member that was lost may be asked again."""
        self._notices: list[str] = []

    def order(self, key: str) -> list[int]:
        """The members' numbers, in the order in which the key asks them."""
        return sorted(range(len(self.names)), key=lambda i: hashlib.sha256(f"{self.names[i]}\0{key}".encode()).digest())

    async def ask(self, key: str, request: Callable[[Member], Awaitable[T]]) -> T:
        """Put a request to the first member that answers; ask all again while none does. Raises ServerError in the end."""
        for attempt in range(RETRIES + 1):
            now = time.monotonic()
            for i in sorted(self.order(key), key=lambda i: self._resting[i] > now):  # stable: those at rest come last
                try:
                    result = await request(self.members[i])
                except BusyError as error:
                    self._resting[i], lost = time.monotonic() + REST, error
                    self._note(f"lost the server {self.names[i]} and went on with the others ({error})")
                else:
                    self._resting[i] = 0.0
                    return result
            if attempt < RETRIES:
                await asyncio.sleep(0.5 * 2**attempt * random.uniform(0.5, 1.5))
        raise lost

    async def check(self) -> None:
        """Check all members. Raises InputError where none can be used, or one for another reason than that it is lost."""
        found = await asyncio.gather(*(member.check() for member in self.members), return_exceptions=True)
        errors = [error for error in found if error is not None]
        for i, error in enumerate(found):
            if error is not None and (len(errors) == len(found) or not isinstance(error.__cause__, BusyError)):
                raise error
            if error is not None:
                self._resting[i] = time.monotonic() + REST
                self._note(f"began without the server {self.names[i]} ({error})")

    @property
    def notices(self) -> list[str]:
        """Those of all members, once each."""
        return list(dict.fromkeys([*self._notices, *(notice for member in self.members for notice in member.notices)]))

    def _note(self, notice: str) -> None:
        if all(known.partition(" (")[0] != notice.partition(" (")[0] for known in self._notices):
            self._notices.append(notice)

    async def close(self) -> None:
        for member in self.members:
            await member.close()


def _hand_over(member: Any) -> None:
    """Let a lost connection be an error at once, as another server can take the request."""
    for part in (member, getattr(member, "reader", None), getattr(member, "engine", None)):
        if isinstance(client := getattr(part, "client", None), JsonClient):
            client.waits_for_lost = False


class SeveralEngines(Engine):
    """An engine on several servers of one model.

    Args:
        engines: A client for each server.
        urls: The servers' addresses.

    Raises:
        InputError: `check` raises it where the servers say that they run different models.
    """

    def __init__(self, engines: Sequence[Engine], urls: Sequence[str]) -> None:
        self.servers = Servers(engines, urls)
        self._first = engines[0]
        self._key: str | None = None
        """The problem that all requests are about; None where they are about any."""

    @property
    def context(self) -> int | None:  # type: ignore[override]  # a field of other engines
        known = [engine.context for engine in self.servers.members if engine.context is not None]
        return min(known, default=None)

    @property
    def served(self) -> str | None:  # type: ignore[override]
        return next((engine.served for engine in self.servers.members if engine.served is not None), None)

    @property
    def notices(self) -> Sequence[str]:
        return self.servers.notices

    def for_problem(self, problem: Problem) -> Engine:
        routed = copy(self)
        routed._key = problem.id
        return routed

    def encode(self, problem: Problem) -> tuple[int, ...]:
        return self._first.encode(problem)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._first.decode(token_ids)

    def tokenize(self, text: str) -> tuple[int, ...]:
        return self._first.tokenize(text)

    async def tells_steps(self) -> bool:
        return await self.servers.ask("", lambda engine: engine.tells_steps())

    async def check(self) -> None:
        await self.servers.check()
        said = {
            engine.served: url for engine, url in zip(self.servers.members, self.servers.names, strict=True) if engine.served
        }
        if len(said) > 1:
            listed = "; ".join(f"{url} serves {served}" for served, url in said.items())
            raise InputError(f"the servers do not run the same model: {listed}")

    async def generate(self, prefix: Sequence[int], n: int, sampling: Sampling) -> Generation:
        key = " ".join(map(str, prefix[:256])) if self._key is None else self._key
        return await self.servers.ask(key, lambda engine: engine.generate(prefix, n, sampling))

    async def close(self) -> None:
        await self.servers.close()


class SeveralScorers(Scorer):
    """A scorer on several servers of one model; the candidates of a problem are rated by one of them.

    Args:
        scorers: A client for each server.
        urls: The servers' addresses.
    """

    def __init__(self, scorers: Sequence[Scorer], urls: Sequence[str]) -> None:
        self.servers = Servers(scorers, urls)
        first = scorers[0]
        self.by_step, self.compares, self.logprobs, self.exact = first.by_step, first.compares, first.logprobs, first.exact
        self.over: Part = first.over

    @property
    def notices(self) -> Sequence[str]:
        return self.servers.notices

    async def check(self) -> None:
        await self.servers.check()

    async def score(self, candidates: Sequence[Candidate]) -> list[Reward]:
        key = candidates[0].problem.id if candidates else ""
        return await self.servers.ask(key, lambda scorer: scorer.score(candidates))

    async def close(self) -> None:
        await self.servers.close()
