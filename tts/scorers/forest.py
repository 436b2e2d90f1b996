"""The hidden states of a decoder for many sequences at once, with shared prefixes computed once.

Sequences form a forest of prefixes. The new tokens of a batch go through the model as one row without padding. In attention,
each piece of the forest sees the keys and values of its ancestors. These stay in a pool for later sequences, such as the next
steps of a search whose earlier steps were scored before. The pool's size is bounded; the least recently used pieces are dropped
first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface

from tts.errors import InputError
from tts.models import weights

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Slots = NDArray[np.int64]

ATTENTION = "tts_forest"
"""The name under which the attention below is registered with transformers."""

GRAIN, BLOCK = 16, 128
"""The number of rows of a matrix is a multiple of GRAIN, and a token's attention covers keys up to the end of its BLOCK of
positions, whichever piece it is in. With other shapes matrix libraries switch kernels or the order of sums, and the last bits
of a reward would depend on what else was scored."""


class _Piece:
    """Consecutive tokens with the same ancestors: an edge of the forest."""

    __slots__ = ("children", "computed", "ids", "parent", "slots", "used")

    def __init__(self, parent: _Piece | None, ids: Sequence[int], slots: Slots, used: int) -> None:
        self.parent, self.ids, self.slots, self.used = parent, ids, slots, used
        self.children: dict[int, _Piece] = {}
        self.computed = False

    @property
    def begin(self) -> int:
        """The position of its first token."""
        return self.parent.begin + len(self.parent.ids) if self.parent is not None else 0

    def path(self) -> Slots:
        """Return the slots of all tokens from the beginning of the sequence to the end of this piece."""
        pieces: list[Slots] = []
        piece: _Piece | None = self
        while piece is not None:
            pieces.append(piece.slots)
            piece = piece.parent
        return np.concatenate(pieces[::-1])

    def split(self, at: int) -> _Piece:
        """Split off the first `at` tokens as a new parent piece, and return it."""
        assert self.parent is not None
        head = _Piece(self.parent, self.ids[:at], self.slots[:at], self.used)
        self.parent.children[self.ids[0]] = head
        head.children[self.ids[at]], head.computed = self, self.computed
        self.parent, self.ids, self.slots = head, self.ids[at:], self.slots[at:]
        return head


class Forest:
    """A decoder with a pool of keys, values and hidden states. It is not thread-safe.

    Args:
        body: A transformers decoder without its head. Its attention is replaced.
        limit: Size of the pool in bytes; it is larger if a batch or a context needs it.
        batch_tokens: Maximum number of new tokens in a pass. A single longer sequence is a pass of its own.
        context: Maximum length of a sequence, in tokens.
    """

    def __init__(self, body: Any, *, limit: int, batch_tokens: int, context: int) -> None:
        body.set_attn_implementation(ATTENTION)
        config = body.config.get_text_config()
        self.body, self.batch_tokens, self.context = body, batch_tokens, context
        self.exact = weights.is_exact(body)
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        token = 2 * config.num_hidden_layers * config.num_key_value_heads * size + config.hidden_size
        self.capacity = max(limit // (token * body.dtype.itemsize), batch_tokens, context) + 1  # slot 0 is padding
        self.forwarded = 0
        """Number of tokens that have gone through the model so far."""
        self.clear()

    def clear(self) -> None:
        """Empty the pool."""
        self.root = _Piece(None, (), np.zeros(0, np.int64), 0)
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.hidden: Tensor | None = None
        self._slots = 1
        self._free = np.zeros(0, np.int64)
        self._tick = 0

    @torch.inference_mode()
    def __call__(self, sequences: Sequence[Sequence[int]], positions: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return the hidden states at some positions of each sequence.

        Args:
            sequences: Token ids.
            positions: For each sequence, indices into it in ascending order. Tokens after the last one are not computed.

        Returns:
            A tensor [positions, size] for each sequence.
        """
        results: list[Tensor] = []
        try:
            for wave, new in self._waves(sequences, positions):
                if new:
                    self._forward(new)
                for slots in wave:
                    results.append(self.hidden[slots.to(self.hidden.device)] if self.hidden is not None else torch.zeros(0, 1))
        except BaseException:
            self.clear()  # pieces that were added but not computed must not be found again
            raise
        return results

    def _waves(
        self, sequences: Sequence[Sequence[int]], positions: Sequence[Sequence[int]]
    ) -> Iterator[tuple[list[Tensor], list[_Piece]]]:
        """Divide sequences into passes; yield the slots to read for each sequence, and the pieces to compute."""
        wave: list[Tensor] = []
        new: list[_Piece] = []
        count = 0
        self._tick += 1
        for ids, at in zip(sequences, positions, strict=True):
            needed = ids[: at[-1] + 1] if len(at) else ids[:0]
            grown = self._grow(needed, new, self.batch_tokens - count)
            if grown is None:  # no room in this pass, or in the pool without dropping what this pass uses
                yield wave, new
                wave, new, count = [], [], 0
                self._tick += 1
                grown = self._grow(needed, new, self.capacity)
                assert grown is not None, "the pool is smaller than the context"
            path, added = grown
            count += added
            wave.append(torch.from_numpy(path[np.asarray(at, np.int64)]))
        yield wave, new

    def _grow(self, ids: Sequence[int], new: list[_Piece], room: int) -> tuple[Slots, int] | None:
        """Add the part of a sequence that is not in the forest as a new piece.

        Returns the slots of the whole sequence and the number of new tokens, or None if there are more of them than `room`, or
        the pool is full.
        """
        piece, done = self.root, 0
        while done < len(ids):
            child = piece.children.get(ids[done])
            if child is None:
                break
            child.used = self._tick
            shared = _shared(child.ids, ids, done)
            done += shared
            if shared < len(child.ids):
                head = child.split(shared)
                if not head.computed:
                    new.append(head)
                piece = head
                break
            piece = child
        if missing := len(ids) - done:
            slots = self._take(missing) if missing <= room else None
            if slots is None:
                return None
            child = _Piece(piece, tuple(ids[done:]), slots, self._tick)
            piece.children[ids[done]] = piece = child
            new.append(child)
        return piece.path(), missing

    def _take(self, count: int) -> Slots | None:
        """Take free slots, dropping old pieces if necessary; return None if the rest of the pool is in use by this pass."""
        while len(self._free) < count and self._slots + count - len(self._free) <= self.capacity:
            more = min(max(count - len(self._free), self._slots, 1024), self.capacity - self._slots)
            self._free = np.concatenate((self._free, np.arange(self._slots, self._slots + more)))
            self._slots += more
        if len(self._free) < count:
            self._forget(max(count, self.capacity // 8))
        if len(self._free) < count:
            return None
        taken, self._free = self._free[:count], self._free[count:]
        return taken

    def _forget(self, count: int) -> None:
        """Free about `count` slots of pieces that have no children and are not used in this pass, the oldest first."""
        free, heap = [self._free], sorted(self._leaves(), key=lambda piece: piece.used)
        while heap and sum(map(len, free)) < count:
            for leaf in heap:
                free.append(leaf.slots)
                assert leaf.parent is not None
                del leaf.parent.children[leaf.ids[0]]
                if sum(map(len, free)) >= count:
                    break
            heap = sorted(self._leaves(), key=lambda piece: piece.used)
        self._free = np.concatenate(free)

    def _leaves(self) -> Iterator[_Piece]:
        stack = [self.root]
        while stack:
            piece = stack.pop()
            if piece.children:
                stack.extend(piece.children.values())
            elif piece.used != self._tick and piece is not self.root:
                yield piece

    def _forward(self, new: list[_Piece]) -> None:
        """Compute the hidden states, keys and values of pieces."""
        ids = [token for piece in new for token in piece.ids]
        count = _round_up(len(ids), GRAIN)  # the rest is padding, in slot 0
        positions = np.concatenate([piece.begin + np.arange(len(piece.ids)) for piece in new])
        slots = torch.from_numpy(np.concatenate([piece.slots for piece in new]))
        device = self.body.device
        plan = _Plan(self, slots.to(device), new)
        hidden = self.body(
            input_ids=pad(torch.tensor([ids], device=device), (0, count - len(ids))),
            position_ids=pad(torch.from_numpy(positions)[None].to(device), (0, count - len(ids))),
            use_cache=False,
            forest=plan,
        ).last_hidden_state[0, : len(ids)]
        self.hidden = self._fitting(self.hidden, hidden)
        self.hidden[slots.to(hidden.device)] = hidden
        for piece in new:
            piece.computed = True
        self.forwarded += len(ids)

    def _fitting(self, pool: Tensor | None, rows: Tensor) -> Tensor:
        """Return a pool [slots, …] for rows like these, enlarged if it is smaller than the number of slots in use."""
        if pool is not None and len(pool) >= self._slots:
            return pool
        grown = rows.new_zeros(self._slots, *rows.shape[1:])
        if pool is not None:
            grown[: len(pool)] = pool
        return grown

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the keys and values [tokens, heads, size] of new tokens into a layer's pool, and return the pool."""
        self.keys[layer] = self._fitting(self.keys.get(layer), keys)
        self.values[layer] = self._fitting(self.values.get(layer), values)
        self.keys[layer][slots] = keys
        self.values[layer][slots] = values
        return self.keys[layer], self.values[layer]


def _shared(known: Sequence[int], ids: Sequence[int], start: int) -> int:
    """Return how many tokens at the beginning of `known` equal those of `ids` from `start` on."""
    if tuple(ids[start : start + len(known)]) == known:
        return len(known)
    return next(i for i, token in enumerate(known) if start + i == len(ids) or ids[start + i] != token)


@dataclass(frozen=True)
class _Group:
    """Blocks of the same size, whose attention is computed in one call."""

    queries: Tensor
    """Indices of each block's tokens among the new tokens, [blocks, rows]; padding points after the last."""
    keys: Tensor
    """Slots of the tokens from the sequence's beginning to the block's end, [blocks, columns]."""
    seen: Tensor
    """Which of the keys each query sees, [blocks, 1, rows, columns]."""

    def to(self, device: torch.device) -> _Group:
        """Copy the group to a device."""
        return _Group(self.queries.to(device), self.keys.to(device), self.seen.to(device))


class _Plan:
    """The layout of one pass, for its attention."""

    def __init__(self, forest: Forest, slots: Tensor, new: list[_Piece]) -> None:
        self.forest, self.slots, self.count = forest, slots, len(slots)
        sizes: dict[tuple[int, int], list[tuple[int, int, Slots]]] = {}
        start = 0
        for piece in new:
            path = piece.path()
            first, end = len(path) - len(piece.ids), len(path)
            while first < end:
                last = min(end, (first // BLOCK + 1) * BLOCK)
                size = (_round_up(last - first, GRAIN), _round_up(last, BLOCK))
                sizes.setdefault(size, []).append((start, first, path[:last]))
                start += last - first
                first = last
        self.groups = [self._group(*size, blocks).to(slots.device) for size, blocks in sorted(sizes.items())]

    def _group(self, rows: int, columns: int, blocks: list[tuple[int, int, Slots]]) -> _Group:
        """Group blocks, given as (start among the new tokens, start in the sequence, slots up to the block's end)."""
        queries = np.full((len(blocks), rows), self.count)
        keys = np.zeros((len(blocks), columns), np.int64)
        for i, (start, first, slots) in enumerate(blocks):
            queries[i, : len(slots) - first] = np.arange(start, start + len(slots) - first)
            keys[i, : len(slots)] = slots
        positions = np.array([first for _, first, _ in blocks])[:, None] + np.arange(rows)
        seen = np.arange(columns) <= positions[:, None, :, None]
        return _Group(torch.from_numpy(queries), torch.from_numpy(keys), torch.from_numpy(seen))


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    scaling: float,
    forest: _Plan,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute attention with transformers' interface: query [1, heads, tokens, size] to output [1, tokens, heads, size]."""
    if others := [name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None]:
        raise InputError(f"this model's attention uses {others[0]}, which scoring in this process does not support")
    slots = forest.slots.to(key.device)
    fresh = (x[0, :, : forest.count].transpose(0, 1) for x in (key, value))
    keys, values = forest.forest.write(module.layer_idx, slots, *fresh)
    queries = pad(query[0].transpose(0, 1)[: forest.count], (0, 0, 0, 0, 0, 1))
    output = queries.new_zeros(max(forest.count + 1, query.shape[2]), *queries.shape[1:])
    repeats = query.shape[1] // key.shape[1]
    for group in forest.groups:
        group = group.to(key.device)
        k, v = (pool[group.keys].transpose(1, 2) for pool in (keys, values))
        if repeats > 1:
            k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        q = queries[group.queries].transpose(1, 2)
        output[group.queries] = scaled_dot_product_attention(q, k, v, attn_mask=group.seen, scale=scaling).transpose(1, 2)
    return output[None, : query.shape[2]], None


AttentionInterface.register(ATTENTION, _attend)
