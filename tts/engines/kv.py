"""Keys and values: a slot for every sample under way, and a store of finished prefixes for their children."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

if TYPE_CHECKING:
    from torch import Tensor

Tokens = tuple[int, ...]

ROWS, COLUMNS = 8, 16
"""Batches come in multiples of so many rows, and look at multiples of so many columns: with others, matrix libraries switch
kernels and the last bits of a row change (seen below 4 rows and below 16 columns)."""


class Span(NamedTuple):
    """Rows of a pass that look at equally many columns."""

    rows: slice
    columns: int


class SlotCache(Cache):
    """What lets one forward pass serve rows of different lengths that come and go.

    The slots lie in spans of `span`, each in a tensor of its own that is about as long as its longest row: what a pass looks at
    has no gaps, which memory delivers twice as fast as a part of every slot.

    Before a pass, say which kind it is: `prefill` computes chunks of prefixes outside the slots, `decode` one token for each
    of the first slots.
    """

    def __init__(self, layers: int, span: int) -> None:
        super().__init__(layers=[_Layer(self, layer) for layer in range(layers)])
        self.span = span
        self.spans: list[Span] = []
        """Of the next pass."""
        self._stores: list[_Store] = []
        self._positions: list[int] = []
        self._targets: list[Tensor] | None = None
        self._chunks: list[tuple[Tensor, Tensor] | None] = [None] * layers

    @property
    def columns(self) -> int:
        """The most that a row of the next pass looks at."""
        return max(span.columns for span in self.spans)

    def prefill(self, batch: int, width: int, past: Tensor | None) -> None:
        """The next pass computes chunks of `width` that follow `past` [layers, 2, batch, heads, length, size]."""
        self._positions = []
        self._chunks = [None if past is None else (past[i, 0], past[i, 1]) for i in range(len(self._chunks))]
        self.spans = [Span(slice(0, batch), width + (0 if past is None else past.shape[4]))]

    def prefilled(self) -> Tensor:
        """Keys and values of past and chunk, [layers, 2, batch, heads, length, size]."""
        computed = torch.stack([torch.stack(chunk) for chunk in self._chunks if chunk is not None])
        self._chunks = [None] * len(self._chunks)
        return computed

    def decode(self, positions: Sequence[int]) -> None:
        """The next pass writes row i's token at positions[i], in slot i."""
        self._positions, self._targets, self.spans = list(positions), None, []
        for number, first in enumerate(range(0, len(positions), self.span)):
            rows = positions[first : first + self.span]
            needed = max(rows) + 1
            have = self._stores[number].kv.shape[4] if number < len(self._stores) else 0
            columns = have if needed <= have <= 2 * needed + COLUMNS else round_up(needed, 2 * COLUMNS)
            self.spans.append(Span(slice(first, first + len(rows)), columns))

    def attend(self, layer: int, keys: Tensor, values: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Take a layer's keys and values [rows, heads, tokens, size]; what each span's rows then look at, in the same form."""
        if not self._positions:
            if (past := self._chunks[layer]) is not None:
                keys, values = torch.cat((past[0], keys), 2), torch.cat((past[1], values), 2)
            self._chunks[layer] = (keys, values)
            return [(keys, values)]
        if self._targets is None:  # the first layer: places are the same in all
            self._targets = [self._place(number, keys) for number in range(len(self.spans))]
        seen = []
        for span, store, target in zip(self.spans, self._stores, self._targets, strict=False):
            live, size = span.rows.stop - span.rows.start, keys.shape[-1]
            ours = store.layers[layer]
            for slots, fresh in zip(ours, (keys, values), strict=True):
                slots.view(-1, size).index_copy_(0, target, fresh[span.rows].reshape(-1, size))
            seen.append((ours[0][:live], ours[1][:live]))
        return seen

    def write(self, first: int, count: int, kv: Tensor) -> None:
        """Copy a prefix's `kv` [layers, 2, heads, length, size] to `count` slots from `first` on."""
        while count:
            number, slot = divmod(first, self.span)
            some = min(count, self.span - slot)
            store = self._reserve(number, slot + some, round_up(kv.shape[3], COLUMNS), kv)
            store.kv[:, :, slot : slot + some, :, : kv.shape[3]] = kv[:, :, None]
            first, count = first + some, count - some

    def read(self, slot: int, length: int) -> Tensor:
        """A copy of a slot's first columns, [layers, 2, heads, length, size]."""
        return self._stores[slot // self.span].kv[:, :, slot % self.span, :, :length].clone()

    def move(self, targets: Mapping[int, int], lengths: Mapping[int, int]) -> None:
        """Copy slots to other slots, `lengths` columns of each; all are read before one is written."""
        moving = [(target, self.read(source, lengths[source])) for source, target in targets.items()]
        for target, kv in moving:
            self.write(target, 1, kv)

    def _place(self, number: int, like: Tensor) -> Tensor:
        """Where a span's rows and heads have their next vector, in one layer's slots made flat."""
        (rows, columns), heads = self.spans[number], like.shape[1]
        positions = torch.tensor(self._positions[rows], device=like.device)
        store = self._reserve(number, len(positions), columns, like, shrink=True)
        first = torch.arange(len(positions) * heads, device=like.device).view(-1, heads) * store.kv.shape[4]
        return (first + positions[:, None]).flatten()

    def _reserve(self, number: int, slots: int, columns: int, like: Tensor, *, shrink: bool = False) -> _Store:
        """A span's store with room for so many slots and columns, and, where it should `shrink`, no more columns."""
        if number == len(self._stores):
            self._stores.append(_Store(like.new_zeros(len(self.layers), 2, 0, like.shape[-3], 0, like.shape[-1])))
        old = self._stores[number].kv
        _, _, have, _, length, _ = old.shape
        if slots <= have and (columns == length or (columns < length and not shrink)):
            return self._stores[number]
        slots = have if slots <= have else min(round_up(max(slots, have * 3 // 2), ROWS), self.span)
        columns = columns if shrink else max(columns, length)
        new = old.new_zeros(*old.shape[:2], slots, old.shape[3], columns, old.shape[5])
        kept = min(length, columns)
        new[:, :, :have, :, :kept] = old[:, :, :, :, :kept]
        self._stores[number] = _Store(new)
        return self._stores[number]


class _Store:
    """A span's slots."""

    def __init__(self, kv: Tensor) -> None:
        """`kv` [layers, 2, slots, heads, columns, size]"""
        self.kv = kv
        self.layers = [(layer[0], layer[1]) for layer in kv]


class _Layer(CacheLayerMixin):
    """A layer as transformers' models know it, for a cache with one span."""

    is_sliding = False

    def __init__(self, cache: SlotCache, layer: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cache, self.layer = cache, layer

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        [seen] = self.cache.attend(self.layer, key_states, value_states)
        return seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.columns, 0

    def get_seq_length(self) -> int:
        return self.cache.columns if self.cache._positions else 0

    def get_max_length(self) -> int:
        return -1


class PrefixStore:
    """Keys and values of prefixes that may be continued, the least recently used forgotten first."""

    def __init__(self, limit: int) -> None:
        """`limit` in bytes."""
        self.limit, self.size = limit, 0
        self._kept: OrderedDict[Tokens, Tensor] = OrderedDict()
        self._lengths: Counter[int] = Counter()

    def put(self, tokens: Tokens, kv: Tensor) -> None:
        """Keep `kv` [layers, 2, heads, len(tokens), size]."""
        if tokens in self._kept or kv.nbytes > self.limit:
            return
        self._kept[tokens] = kv
        self._lengths[len(tokens)] += 1
        self.size += kv.nbytes
        while self.size > self.limit:
            forgotten, old = self._kept.popitem(last=False)
            self._lengths[len(forgotten)] -= 1
            self.size -= old.nbytes

    def longest(self, tokens: Tokens) -> Tensor | None:
        """What is kept of the longest prefix of `tokens`, or None."""
        for length in sorted((n for n, count in self._lengths.items() if count and n <= len(tokens)), reverse=True):
            if (kv := self._kept.get(tokens[:length])) is not None:
                self._kept.move_to_end(tokens[:length])
                return kv
        return None


def round_up(value: int, multiple: int) -> int:
    """The next multiple that is not below the value."""
    return -(-value // multiple) * multiple
