"""Wall-clock seconds spent on each kind of work, with overlapping tasks counted once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter


class Clock:
    """A stopwatch for each kind of work.

    Within `with clock("scoring"): …`, a second counts once however many tasks are in such a block. `parent` counts the same
    blocks, together with those of its other children.
    """

    def __init__(self, parent: Clock | None = None) -> None:
        self.parent = parent
        self._spent: defaultdict[str, float] = defaultdict(float)
        self._open: Counter[str] = Counter()
        self._since: dict[str, float] = {}

    @contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        self._enter(kind)
        try:
            yield
        finally:
            self._leave(kind)

    def add(self, kind: str, seconds: float) -> None:
        """Add seconds that were measured elsewhere; those of several tasks add up."""
        self._spent[kind] += seconds
        if self.parent:
            self.parent.add(kind, seconds)

    def seconds(self, kind: str) -> float:
        """Seconds so far, including blocks that are still open; 0 for an unknown kind."""
        running = perf_counter() - self._since[kind] if self._open[kind] else 0.0
        return self._spent[kind] + running

    def _enter(self, kind: str) -> None:
        if not self._open[kind]:
            self._since[kind] = perf_counter()
        self._open[kind] += 1
        if self.parent:
            self.parent._enter(kind)

    def _leave(self, kind: str) -> None:
        self._open[kind] -= 1
        if not self._open[kind]:
            self._spent[kind] += perf_counter() - self._since[kind]
        if self.parent:
            self.parent._leave(kind)
