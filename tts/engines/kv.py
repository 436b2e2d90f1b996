"""Keys and values: a cache with a slot for each running sample, and a store of prefixes that may be continued."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

if TYPE_CHECKING:
    from torch import Tensor

Tokens = tuple[int, ...]
"""Token ids."""

ROWS, COLUMNS = 8, 16
"""The number of rows of a batch, and the number of columns (tokens) that attention sees, are multiples of these.

With fewer rows or columns matrix libraries switch kernels, which changes the last bits of a row (seen below 4 rows and below 16
columns).
"""


class Span(NamedTuple):
    """Rows of a pass whose attention sees the same number of columns."""

    rows: slice
    columns: int


class SlotCache(Cache):
    """A cache for forward passes over rows of different lengths that come and go.

    Slots are grouped into spans, each with its own tensor, which is about as long as its longest row. What a pass reads is thus
    contiguous, which is twice as fast as reading a part of each slot of one large tensor.

    Call `prefill` or `decode` before each pass: `prefill` for chunks of prefixes outside the slots, `decode` for one token in
    each of the first slots.

    Args:
        layers: Number of layers of the model.
        span: Number of slots in a span.
    """

    def __init__(self, layers: int, span: int) -> None:
        super().__init__(layers=[_CacheLayer(self, layer) for layer in range(layers)])
        self.span = span
        self.spans: list[Span] = []
        """The spans of the next pass."""
        self._stores: list[_Store] = []
        self._positions: list[int] = []
        self._targets: list[Tensor] | None = None
        self._chunks: list[tuple[Tensor, Tensor] | None] = [None] * layers

    @property
    def columns(self) -> int:
        """Maximum number of columns that a row of the next pass sees."""
        return max(span.columns for span in self.spans)

    def prefill(self, batch: int, width: int, past: Tensor | None) -> None:
        """Prepare a pass over chunks of `width` tokens that follow `past` [layers, 2, batch, heads, length, size]."""
        self._positions = []
        self._chunks = [None if past is None else (past[i, 0], past[i, 1]) for i in range(len(self._chunks))]
        self.spans = [Span(slice(0, batch), width + (0 if past is None else past.shape[4]))]

    def prefilled(self) -> Tensor:
        """Return the keys and values of past and chunk, [layers, 2, batch, heads, length, size]."""
        computed = torch.stack([torch.stack(chunk) for chunk in self._chunks if chunk is not None])
        self._chunks = [None] * len(self._chunks)
        return computed

    def decode(self, positions: Sequence[int]) -> None:
        """Prepare a pass that writes one token for each row i, in slot i at positions[i]."""
        self._positions, self._targets, self.spans = list(positions), None, []
        for number, first in enumerate(range(0, len(positions), self.span)):
            rows = positions[first : first + self.span]
            needed = max(rows) + 1
            have = self._stores[number].kv.shape[4] if number < len(self._stores) else 0
            columns = have if needed <= have <= 2 * needed + COLUMNS else round_up(needed, 2 * COLUMNS)
            self.spans.append(Span(slice(first, first + len(rows)), columns))

    def attend(self, layer: int, keys: Tensor, values: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Store a layer's new keys and values [rows, heads, tokens, size].

        Returns the keys and values that the rows of each span see, [rows of the span, heads, columns, size].
        """
        if not self._positions:
            if (past := self._chunks[layer]) is not None:
                keys, values = torch.cat((past[0], keys), 2), torch.cat((past[1], values), 2)
            self._chunks[layer] = (keys, values)
            return [(keys, values)]
        if self._targets is None:  # in the first layer; the places are the same in the others
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
        """Copy a prefix's `kv` [layers, 2, heads, length, size] into `count` slots, beginning with slot `first`."""
        while count:
            number, slot = divmod(first, self.span)
            some = min(count, self.span - slot)
            store = self._reserve(number, slot + some, round_up(kv.shape[3], COLUMNS), kv)
            store.kv[:, :, slot : slot + some, :, : kv.shape[3]] = kv[:, :, None]
            first, count = first + some, count - some

    def read(self, slot: int, length: int) -> Tensor:
        """Return a copy of the first `length` columns of a slot, [layers, 2, heads, length, size]."""
        return self._stores[slot // self.span].kv[:, :, slot % self.span, :, :length].clone()

    def move(self, targets: Mapping[int, int], lengths: Mapping[int, int]) -> None:
        """Copy slots (source: target) to other slots, `lengths[source]` columns of each; all are read before any is written."""
        moving = [(target, self.read(source, lengths[source])) for source, target in targets.items()]
        for target, kv in moving:
            self.write(target, 1, kv)

    def _place(self, number: int, like: Tensor) -> Tensor:
        """Return where the next vectors of a span's rows and heads go, as indices into a layer's flattened slots."""
        (rows, columns), heads = self.spans[number], like.shape[1]
        positions = torch.tensor(self._positions[rows], device=like.device)
        store = self._reserve(number, len(positions), columns, like, shrink=True)
        first = torch.arange(len(positions) * heads, device=like.device).view(-1, heads) * store.kv.shape[4]
        return (first + positions[:, None]).flatten()

    def _reserve(self, number: int, slots: int, columns: int, like: Tensor, *, shrink: bool = False) -> _Store:
        """Return a span's store, resized to have at least so many slots and columns; exactly so many columns with `shrink`."""
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
    """The slots of a span, in one tensor `kv` [layers, 2, slots, heads, columns, size]."""

    def __init__(self, kv: Tensor) -> None:
        self.kv = kv
        self.layers = [(layer[0], layer[1]) for layer in kv]


class _CacheLayer(CacheLayerMixin):
    """One layer of a cache with a single span, with the interface that transformers' models expect."""

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
    """Keys and values of prefixes that may be continued, up to `limit` bytes; the least recently used are dropped first."""

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self._kept: OrderedDict[Tokens, Tensor] = OrderedDict()
        self._lengths: Counter[int] = Counter()

    def put(self, tokens: Tokens, kv: Tensor) -> None:
        """Store the prefix's `kv` [layers, 2, heads, len(tokens), size], unless it alone exceeds the limit."""
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
        """Return the keys and values of the longest stored prefix of `tokens`, or None."""
        for length in sorted((n for n, count in self._lengths.items() if count and n <= len(tokens)), reverse=True):
            if (kv := self._kept.get(tokens[:length])) is not None:
                self._kept.move_to_end(tokens[:length])
                return kv
        return None


def round_up(value: int, multiple: int) -> int:
    """Round a value up to a multiple."""
    return -(-value // multiple) * multiple
