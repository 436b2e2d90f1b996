"""Where a step ends: the one place that decides it, for tokens as they are drawn and for complete token sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

Decode = Callable[[Sequence[int]], str]


class Segmenter:
    """Finds the tokens that complete a stop string, decoding only where one can be complete.

    `decode` turns token ids into text; `stops` are the stop strings. Raises ValueError if one of them is empty.
    """

    def __init__(self, decode: Decode, stops: Sequence[str]) -> None:
        if not all(stops):
            raise ValueError(f"a stop string must not be empty, got {list(stops)!r}")
        self.decode, self.stops = decode, tuple(stops)
        self._last = {stop[-1] for stop in stops}
        self._window = max((len(stop.encode()) for stop in stops), default=0)  # a token has at least one byte
        self._may_end: dict[int, bool] = {}

    def ends(self, tokens: Sequence[int]) -> bool:
        """Whether the last of a step's tokens so far completes a stop string."""
        return self._may_complete(tokens[-1]) and self._completes(tokens[-self._window :])

    def split(self, tokens: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """Cut after every token that completes a stop string, as step-by-step generation would."""
        start = 0
        for end, token in enumerate(tokens, 1):
            found = self._may_complete(token) and self._completes(tokens[max(start, end - self._window) : end])
            if found or end == len(tokens):
                yield tuple(tokens[start:end])
                start = end

    def _may_complete(self, token: int) -> bool:
        may = self._may_end.get(token)
        if may is None:
            text = self.decode([token])  # a replacement character: the last bytes of some character, which may be a stop's last
            may = self._may_end[token] = "\N{REPLACEMENT CHARACTER}" in text or not self._last.isdisjoint(text)
        return may

    def _completes(self, tail: Sequence[int]) -> bool:
        text = self.decode(tail)
        return any(stop in text for stop in self.stops)
