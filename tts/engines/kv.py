"""Keys and values: a slot for every sample under way, and a store of finished prefixes for their children."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

if TYPE_CHECKING:
    from torch import Tensor

Tokens = tuple[int, ...]


class SlotCache(Cache):
    """What lets one transformers forward pass serve rows of different lengths that come and go.

    Before a pass, say which kind it is: `prefill` computes chunks of prefixes outside the slots, `decode` one token
    for each of the first slots.
    """

    def __init__(self, layers: int, rows: int) -> None:
        """`rows`: slots are made in multiples of this many."""
        self.slots = [_SlotLayer(self) for _ in range(layers)]
        super().__init__(layers=list(self.slots))
        self.rows = rows
        self.positions: Tensor | None = None
        self.length = 0

    def prefill(self, past: Tensor | None) -> None:
        """The next pass computes chunks that follow `past` [layers, 2, batch, heads, length, size]."""
        self.positions, self.length = None, 0 if past is None else past.shape[4]
        for i, layer in enumerate(self.slots):
            layer.chunk = None if past is None else (past[i, 0], past[i, 1])

    def prefilled(self) -> Tensor:
        """Keys and values of past and chunk, [layers, 2, batch, heads, length, size]."""
        chunks = [layer.chunk for layer in self.slots]
        for layer in self.slots:
            layer.chunk = None
        return torch.stack([torch.stack(chunk) for chunk in chunks if chunk is not None])

    def decode(self, positions: Tensor, length: int) -> None:
        """The next pass writes row i's token at positions[i] and looks at the first `length` columns."""
        self.positions, self.length = positions, length

    def write(self, first: int, count: int, kv: Tensor) -> None:
        """Copy a prefix's `kv` [layers, 2, heads, length, size] to `count` slots from `first` on."""
        for layer, (keys, values) in zip(self.slots, kv, strict=True):
            layer.write(first, count, keys, values)

    def read(self, slot: int, length: int) -> Tensor:
        """A copy of a slot's first columns, [layers, 2, heads, length, size]."""
        return torch.stack([torch.stack((x.keys[slot, :, :length], x.values[slot, :, :length])) for x in self.slots])

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        if sources:
            for layer in self.slots:
                layer.keys[list(targets)] = layer.keys[list(sources)]
                layer.values[list(targets)] = layer.values[list(sources)]


class _SlotLayer(CacheLayerMixin):
    """One layer's slots, [slots, heads, length, size]; every slot has a length of its own."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cache = cache
        self.chunk: tuple[Tensor, Tensor] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = (x.new_zeros(0, x.shape[-3], 0, x.shape[-1]) for x in (key_states, value_states))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.cache.positions is None:
            fresh = (key_states, value_states)
            if self.chunk is not None:
                fresh = (torch.cat((self.chunk[0], key_states), 2), torch.cat((self.chunk[1], value_states), 2))
            self.chunk = fresh
            return fresh
        rows, length = len(key_states), self.cache.length
        self._reserve(rows, length, key_states, value_states)
        every, where = torch.arange(rows, device=key_states.device), self.cache.positions[:rows]
        self.keys[every, :, where] = key_states[:, :, 0]
        self.values[every, :, where] = value_states[:, :, 0]
        return self.keys[:rows, :, :length], self.values[:rows, :, :length]

    def write(self, first: int, count: int, keys: Tensor, values: Tensor) -> None:
        self._reserve(first + count, keys.shape[1], keys, values)
        for store, fresh in ((self.keys, keys), (self.values, values)):
            store[first : first + count, :, : fresh.shape[1]] = fresh

    def _reserve(self, slots: int, length: int, keys: Tensor, values: Tensor) -> None:
        """Grow, by half as much again at least, where there are too few slots or they are too short."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        have_slots, heads, have_length, size = self.keys.shape
        if slots <= have_slots and length <= have_length:
            return
        if slots > have_slots:
            slots = -(-max(slots, have_slots * 3 // 2) // self.cache.rows) * self.cache.rows
        if length > have_length:
            length = max(length, have_length * 3 // 2)
        slots, length = max(slots, have_slots), max(length, have_length)
        for name in ("keys", "values"):
            old: Tensor = getattr(self, name)
            new = old.new_zeros(slots, heads, length, size)
            new[:have_slots, :, :have_length] = old
            setattr(self, name, new)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.length, 0

    def get_seq_length(self) -> int:
        return 0 if self.cache.positions is None else self.cache.length

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
