"""Combine many small awaits into few large calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_THREAD = ThreadPoolExecutor(1, thread_name_prefix="tts-batch")
"""Shared by all batchers: each thread that uses torch has its own pool of workers, and idle pools slow down the busy one."""


def groups(items: Sequence[T], size: Callable[[T], int], most: int) -> Iterator[Sequence[T]]:
    """Yield consecutive items whose sizes add up to at most `most`; a larger item alone."""
    start = total = 0
    for i, item in enumerate(items):
        if i > start and total + size(item) > most:
            yield items[start:i]
            start, total = i, 0
        total += size(item)
    if items:
        yield items[start:]


class Batcher(Generic[T, R]):
    """Collects items while the previous batch runs in a thread, then runs them together.

    An exception in `fn` is raised to those who await an item of that batch, and to no others.

    Args:
        fn: A function from a batch of items to as many results, in order. It runs in a thread.
        max_size: Maximum number of items in a batch.
    """

    def __init__(self, fn: Callable[[list[T]], Sequence[R]], max_size: int) -> None:
        self.fn, self.max_size = fn, max_size
        self._queue: list[tuple[T, asyncio.Future[R]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def __call__(self, items: Sequence[T]) -> list[R]:
        """Return the results of `items`, in order."""
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[R]] = [loop.create_future() for _ in items]
        self._queue += zip(items, futures, strict=True)
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._drain())
        return list(await asyncio.gather(*futures))

    async def _drain(self) -> None:
        while self._queue:
            waiting = -1
            while waiting != len(self._queue):  # let every problem that is ready to run add its items
                waiting = len(self._queue)
                await asyncio.sleep(0)
            batch, self._queue = self._queue[: self.max_size], self._queue[self.max_size :]
            try:
                results = await asyncio.get_running_loop().run_in_executor(_THREAD, self.fn, [item for item, _ in batch])
            except Exception as error:  # those who await an item of this batch handle its failure
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
            else:
                for (_, future), result in zip(batch, results, strict=True):
                    if not future.done():
                        future.set_result(result)
