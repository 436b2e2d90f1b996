"""The embedded engine: a transformers model, decoded in one continuous batch.

Requests join and leave between any two tokens; siblings share one prefill. A sample is a function of its prefix and
its seed alone: every row's arithmetic is the same whatever runs beside it, because rows come in multiples of ROWS and
lengths in multiples of COLUMNS (with fewer rows, matrix libraries switch kernels and the last bits of a row change),
and its random numbers are a hash of (seed, position).
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.cache_utils import Cache, CacheLayerMixin

from tts import chat, models
from tts.errors import InputError
from tts.segment import Segmenter
from tts.types import Finish, Generation, Problem, Sampling, Step

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

ROWS, COLUMNS = 16, 64


class TransformersEngine:
    """Continuous batching over a `transformers` causal language model.

    `max_rows` bounds the samples that decode together. Raises InputError where the model cannot be used.
    """

    def __init__(self, model: str, *, max_rows: int = 256) -> None:
        if models.is_reward_model(models.load_config(model)):
            raise InputError(f"{model!r} is a reward model, not a policy: give it as --scorer, and a language model as --model")
        self.tokenizer = models.load_tokenizer(model)
        # eager: its sums do not depend on the batch size or the padding; sdpa's CPU kernel's do
        self.model: Any = models.load_weights(AutoModelForCausalLM, model, dtype="auto", attn_implementation="eager")
        self.context: int = self.model.config.max_position_embeddings
        ends = self.model.generation_config.eos_token_id
        self._ends = {self.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        self._segmenters: dict[tuple[str, ...], Segmenter] = {}
        self._loop = _DecodeLoop(self.model, max_rows, self._ends)

    def encode(self, problem: Problem) -> tuple[int, ...]:
        if not self.tokenizer.chat_template:
            return tuple(self.tokenizer.encode(problem.prompt))
        return tuple(chat.encode(self.tokenizer, [chat.Turn("user", [problem.prompt])], open_turn=True))

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    async def generate(self, prefix: Sequence[int], n: int, sampling: Sampling) -> Generation:
        room = self.context - len(prefix)
        if room < 1:
            raise InputError(f"a prompt of {len(prefix)} tokens leaves no room in the model's context of {self.context}")
        segmenter = self._segmenters.setdefault(sampling.stop, Segmenter(self.decode, sampling.stop))
        rows = [_Row(tuple(prefix), sampling, sampling.seed + i, segmenter, min(sampling.max_tokens, room)) for i in range(n)]
        await self._loop.run(rows)
        steps = tuple(Step(self.decode(row.tokens), tuple(row.tokens), row.finish) for row in rows)
        return Generation(steps, prompt_tokens=len(prefix))


@dataclass(eq=False, slots=True)
class _Row:
    """One sample under way."""

    prefix: tuple[int, ...]
    sampling: Sampling
    seed: int
    segmenter: Segmenter
    room: int
    tokens: list[int] = field(default_factory=list)
    finish: Finish = "length"

    def push(self, token: int, ends: set[int]) -> bool:
        """Take a token; say whether the sample goes on."""
        self.tokens.append(token)
        if token in ends:
            self.finish = "stop"
        elif self.segmenter.stops and self.segmenter.ends(self.tokens):
            self.finish = "step"
        else:
            return len(self.tokens) < self.room
        return False


@dataclass(eq=False, slots=True)
class _Request:
    """Siblings that share a prefix, and who waits for them."""

    rows: list[_Row]
    future: asyncio.Future[None]
    loop: asyncio.AbstractEventLoop
    left: int

    def settle(self, error: Exception | None = None) -> None:
        def set_result() -> None:
            if self.future.done():
                return
            if error:
                self.future.set_exception(error)
            else:
                self.future.set_result(None)

        with suppress(RuntimeError):  # the event loop has closed: nobody waits any more
            self.loop.call_soon_threadsafe(set_result)


class _DecodeLoop:
    """A thread that decodes all rows that run, one token a turn, and lets new ones in between turns."""

    def __init__(self, model: Any, max_rows: int, ends: set[int]) -> None:
        self.model, self.max_rows, self.ends = model, -(-max_rows // ROWS) * ROWS, ends
        self.device = model.device
        self.cache = _SlotCache(model.config.num_hidden_layers)
        self.rows: list[tuple[_Row, _Request]] = []  # row i lives in slot i of the cache
        self.waiting: deque[_Request] = deque()
        self.lock = threading.Condition()
        self.thread: threading.Thread | None = None

    async def run(self, rows: list[_Row]) -> None:
        """Return when every row has finished. More rows than fit in the batch go in several requests."""
        loop = asyncio.get_running_loop()
        parts = [rows[i : i + self.max_rows] for i in range(0, len(rows), self.max_rows)]
        requests = [_Request(part, loop.create_future(), loop, len(part)) for part in parts]
        with self.lock:
            self.waiting.extend(requests)
            if self.thread is None or not self.thread.is_alive():
                self.thread = threading.Thread(target=self._work, name="tts-decode", daemon=True)
                self.thread.start()
            self.lock.notify()
        await asyncio.gather(*(request.future for request in requests))

    @torch.inference_mode()
    def _work(self) -> None:
        while True:
            with self.lock:
                while not self.waiting and not self.rows:
                    if not self.lock.wait(timeout=60):
                        return  # nobody came: the next request starts a new thread
                admitted = self._admit()
            try:
                if admitted:
                    self._prefill(admitted)
                if self.rows:
                    self._decode()
            except Exception as error:  # a model's failure belongs to those who wait for it; the loop goes on
                for request in {id(r): r for r in [*(request for _, request in self.rows), *admitted]}.values():
                    request.settle(error)
                self.rows.clear()

    def _admit(self) -> list[_Request]:
        """In order of arrival, the requests whose rows all fit, and none that somebody gave up."""
        admitted, free = [], self.max_rows - len(self.rows)
        while self.waiting and len(self.waiting[0].rows) <= free:
            request = self.waiting.popleft()
            if not request.future.cancelled():
                admitted.append(request)
                free -= len(request.rows)
        return admitted

    def _prefill(self, requests: list[_Request]) -> None:
        """Compute each prefix once, copy its keys and values to a slot per sibling, and draw their first tokens."""
        by_length: dict[int, list[_Request]] = {}
        for request in requests:
            by_length.setdefault(_round_up(len(request.rows[0].prefix), ROWS), []).append(request)
        for length, group in sorted(by_length.items()):
            lengths = [len(request.rows[0].prefix) for request in group]
            ids = torch.zeros(len(group), length, dtype=torch.long)
            for i, request in enumerate(group):
                ids[i, : lengths[i]] = torch.tensor(request.rows[0].prefix)
            self.cache.prefill()
            # causal: what is padded on the right cannot be seen from the left
            hidden = self.model.base_model(
                input_ids=ids.to(self.device),
                attention_mask=_causal(length, self.model.dtype, self.device),
                position_ids=torch.arange(length, device=self.device)[None],
                past_key_values=self.cache,
            ).last_hidden_state
            last = hidden[torch.arange(len(group)), torch.tensor(lengths) - 1]
            logits = self._logits(last)
            siblings = torch.tensor([i for i, request in enumerate(group) for _ in request.rows])
            first = len(self.rows)
            self.rows += [(row, request) for request in group for row in request.rows]
            self.cache.adopt(siblings, first, _round_up(max(lengths) + 1, COLUMNS))
            self._push(self._draw(logits[siblings.to(self.device)], [row for row, _ in self.rows[first:]]), first)

    def _decode(self) -> None:
        """One token for every row."""
        count = len(self.rows)
        padded = _round_up(count, ROWS)
        positions = [len(row.prefix) + len(row.tokens) - 1 for row, _ in self.rows] + [0] * (padded - count)
        ids = [row.tokens[-1] for row, _ in self.rows] + [0] * (padded - count)
        length = _round_up(max(positions) + 1, COLUMNS)
        where = torch.tensor(positions, device=self.device)
        self.cache.decode(where, length)
        unseen = torch.arange(length, device=self.device)[None] > where[:, None]
        mask = torch.zeros(padded, length, dtype=self.model.dtype, device=self.device).masked_fill_(unseen, -torch.inf)
        hidden = self.model.base_model(
            input_ids=torch.tensor(ids, device=self.device)[:, None],
            attention_mask=mask[:, None, None],
            position_ids=where[:, None],
            past_key_values=self.cache,
        ).last_hidden_state
        self._push(self._draw(self._logits(hidden[:, -1])[:count], [row for row, _ in self.rows]), 0)

    def _logits(self, hidden: Tensor) -> Tensor:
        """[rows, vocabulary] in float32, computed on a multiple of ROWS rows."""
        count = len(hidden)
        padded = torch.nn.functional.pad(hidden, (0, 0, 0, _round_up(count, ROWS) - count))
        logits: Tensor = self.model.get_output_embeddings()(padded)[:count]
        return logits.float()

    def _draw(self, logits: Tensor, rows: list[_Row]) -> list[int]:
        temperature = [row.sampling.temperature for row in rows]
        top_p = [row.sampling.top_p for row in rows]
        u = uniform([row.seed for row in rows], [len(row.tokens) for row in rows])
        return draw(logits, temperature, top_p, u).tolist()

    def _push(self, tokens: list[int], first: int) -> None:
        """Give the rows from `first` on their tokens; finished ones leave and the last rows move into their slots."""
        finished = [
            slot for slot, ((row, _), token) in enumerate(zip(self.rows[first:], tokens, strict=True), first)
            if not row.push(token, self.ends)
        ]  # fmt: skip
        for slot in finished:
            request = self.rows[slot][1]
            request.left -= 1
            if not request.left:
                request.settle()
        gone = set(finished)
        gone.update(slot for slot, (_, request) in enumerate(self.rows) if request.future.cancelled())
        if not gone:
            return
        stay = len(self.rows) - len(gone)
        holes = [slot for slot in sorted(gone) if slot < stay]
        movers = [slot for slot in range(stay, len(self.rows)) if slot not in gone]
        for hole, mover in zip(holes, movers, strict=True):
            self.rows[hole] = self.rows[mover]
        del self.rows[stay:]
        self.cache.move(movers, holes)


class _SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, [slots, heads, length, head size]; every slot has a length of its own."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, cache: _SlotCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cache = cache
        self.prefilled: tuple[Tensor, Tensor] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = (x.new_zeros(0, x.shape[1], 0, x.shape[3]) for x in (key_states, value_states))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.cache.positions is None:
            self.prefilled = (key_states, value_states)
            return self.prefilled
        rows, length = len(key_states), self.cache.length
        self.reserve(rows, length)
        every = torch.arange(rows, device=key_states.device)
        self.keys[every, :, self.cache.positions] = key_states[:, :, 0]
        self.values[every, :, self.cache.positions] = value_states[:, :, 0]
        return self.keys[:rows, :, :length], self.values[:rows, :, :length]

    def reserve(self, slots: int, length: int) -> None:
        """Grow, by half as much again at least, where there are too few slots or they are too short."""
        have_slots, heads, have_length, size = self.keys.shape
        if slots > have_slots or length > have_length:
            slots = max(have_slots, _round_up(max(slots, have_slots * 3 // 2), ROWS)) if slots > have_slots else have_slots
            length = max(length, have_length * 3 // 2) if length > have_length else have_length
            for name in ("keys", "values"):
                old: Tensor = getattr(self, name)
                new = old.new_zeros(slots, heads, length, size)
                new[:have_slots, :, :have_length] = old
                setattr(self, name, new)

    def adopt(self, siblings: Tensor, first: int, length: int) -> None:
        """Copy row siblings[i] of the last prefill into slot first + i."""
        assert self.prefilled is not None
        if not self.is_initialized:
            self.lazy_initialization(*self.prefilled)
        self.reserve(first + len(siblings), length)
        for store, fresh in zip((self.keys, self.values), self.prefilled, strict=True):
            width = min(fresh.shape[2], store.shape[2])
            store[first : first + len(siblings), :, :width] = fresh[siblings.to(fresh.device), :, :width]
        self.prefilled = None

    def move(self, sources: Tensor, targets: Tensor) -> None:
        self.keys[targets], self.values[targets] = self.keys[sources], self.values[sources]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.length, 0

    def get_seq_length(self) -> int:
        return 0 if self.cache.positions is None else self.cache.length

    def get_max_length(self) -> int:
        return -1


class _SlotCache(Cache):
    """What lets one transformers forward pass serve rows of different lengths that come and go."""

    def __init__(self, layers: int) -> None:
        self.slots = [_SlotLayer(self) for _ in range(layers)]
        super().__init__(layers=list(self.slots))
        self.positions: Tensor | None = None
        self.length = 0

    def prefill(self) -> None:
        """The next forward pass computes fresh prefixes."""
        self.positions, self.length = None, 0

    def decode(self, positions: Tensor, length: int) -> None:
        """The next forward pass writes row i's token at positions[i] and looks at the first `length` columns."""
        self.positions, self.length = positions, length

    def adopt(self, siblings: Tensor, first: int, length: int) -> None:
        for layer in self.slots:
            layer.adopt(siblings, first, length)

    def move(self, sources: list[int], targets: list[int]) -> None:
        if sources:
            for layer in self.slots:
                layer.move(torch.tensor(sources), torch.tensor(targets))


def uniform(seeds: Sequence[int], positions: Sequence[int]) -> NDArray[np.float64]:
    """One number in [0, 1) per (seed, position): splitmix64's output function over a counter (Steele et al. 2014)."""

    def mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

    start = mix(np.array(seeds, dtype=np.uint64))
    counter = (np.array(positions, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    return (mix(start + counter) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw(logits: Tensor, temperature: Sequence[float], top_p: Sequence[float], u: NDArray[np.float64]) -> Tensor:
    """One token per row of logits [rows, vocabulary]: the inverse of the tempered, truncated distribution at u."""
    greedy = logits.argmax(-1)
    if not any(temperature):
        return greedy
    scale = torch.tensor([t or 1.0 for t in temperature], device=logits.device)
    probabilities = (logits / scale[:, None]).softmax(-1)
    if min(top_p) < 1:
        ordered, order = probabilities.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        ordered[before >= torch.tensor(top_p, device=logits.device)[:, None]] = 0
        probabilities = torch.zeros_like(probabilities).scatter_(-1, order, ordered)
    cumulative = probabilities.double().cumsum(-1)
    point = torch.from_numpy(u).to(logits.device)[:, None] * cumulative[:, -1:]
    sampled = torch.searchsorted(cumulative, point, right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)
    return torch.where(torch.tensor(temperature, device=logits.device) > 0, sampled, greedy)


def _causal(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An additive mask [1, 1, length, length]."""
    return torch.full((length, length), -torch.inf, dtype=dtype, device=device).triu(1)[None, None]


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
