"""The problems that a report shows with all of their candidates: all of them, or a sample where they are too many."""

from __future__ import annotations

import hashlib
from collections import Counter
from heapq import heappop, heappush

from tts.data.records import Record

PROBLEMS = 1000
"""Problems in a report, by default."""

CHARACTERS = 64_000_000
"""Characters of candidates and search trees in a report, at most; packed, that is about as many bytes of HTML or fewer."""

Entry = list[tuple[int, Record]]
"""One problem: (index of the run, its record) for each run that has it."""


class Sample:
    """The problems with the smallest hashes of id and text, which are the same for all runs and in whatever order rows come.

    Args:
        limit: Number of problems, at most. Default 1,000.
        characters: Characters of all of their rows, at most; one problem is shown, however long. Default 64 million.
    """

    def __init__(self, limit: int = PROBLEMS, characters: int = CHARACTERS) -> None:
        self.limit, self.characters = limit, characters
        self._seen: Counter[int] = Counter()
        self._entries: dict[int, Entry] = {}
        self._largest: list[int] = []  # a heap of the entries' hashes, negated
        self._bound: int | None = None
        self._length = 0

    def add(self, run: int, record: Record) -> None:
        """Take the row of run number `run`, if its problem belongs to the sample; leave out other problems for that."""
        key = _hash(record)
        self._seen[key] += 1
        if self._bound is not None and key >= self._bound:
            return
        if key not in self._entries:
            self._entries[key] = []
            heappush(self._largest, -key)
        self._entries[key].append((run, record))
        self._length += _length(record)
        while len(self._entries) > self.limit or (self._length > self.characters and len(self._entries) > 1):
            self._bound = -heappop(self._largest)
            self._length -= sum(_length(out) for _, out in self._entries.pop(self._bound))

    @property
    def problems(self) -> int:
        """Number of problems that the sample is from."""
        return len(self._seen)

    def mixed(self, runs: int) -> bool:
        """Whether a problem, shown or not, is missing in one of so many runs."""
        return any(count < runs for count in self._seen.values())

    @property
    def entries(self) -> list[Entry]:
        """The problems of the sample."""
        return list(self._entries.values())


def _hash(record: Record) -> int:
    text = f"{record.id}\x1f{record.problem}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())


def _length(record: Record) -> int:
    return sum(len(step) for attempt in record.candidates for step in attempt.steps) + sum(len(b.text) for b in record.tree)
