"""Continuous batching: a thread that decodes all running samples one token at a time and admits requests between tokens."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from tts.engines.drawing import draw, penalize, uniform
from tts.engines.kv import ROWS, PrefixStore, SlotCache, Tokens, round_up
from tts.engines.llama import LlamaForward
from tts.solving.segment import Segmenter
from tts.types import Finish, Sampling

if TYPE_CHECKING:
    from torch import Tensor

SPAN = 64
"""Rows that share one length of attention, which is about that of the longest of them."""

CHUNK, PREFILL = 512, 8192
"""Maximum number of tokens of one prefix, and of all prefixes, in a prefill pass: its memory grows with their product."""


@dataclass(eq=False, slots=True)
class Sample:
    """One sample that is being generated: a row of the batch."""

    prefix: Tokens
    sampling: Sampling
    seed: int
    segmenter: Segmenter
    room: int
    """Maximum number of tokens to generate."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)
    top: list[list[tuple[int, float]]] = field(default_factory=list)
    """For each token, the likeliest tokens in its place and their log-probabilities."""
    finish: Finish = "length"

    def push(self, token: int, ends: set[int]) -> bool:
        """Append a token; return whether the sample continues."""
        self.tokens.append(token)
        if token in ends:
            self.finish = "stop"
        elif self.segmenter.stops and self.segmenter.ends(self.tokens):
            self.finish = "step"
        else:
            return len(self.tokens) < self.room
        return False

    @property
    def last(self) -> int:
        return self.tokens[-1] if self.tokens else self.prefix[-1]

    @property
    def position(self) -> int:
        """The position of `last` in the sequence, from 0."""
        return len(self.prefix) + len(self.tokens) - 1


@dataclass(eq=False, slots=True)
class _Request:
    """Samples that share a prefix, and the future that their caller awaits."""

    rows: list[Sample]
    future: asyncio.Future[None]
    loop: asyncio.AbstractEventLoop
    left: int
    cached: int = 0
    asked: float = field(default_factory=perf_counter)
    waited: float = 0.0

    @property
    def known(self) -> Tokens:
        """The prefix without its last token, which is decoded in each sample's slot like a generated one."""
        return self.rows[0].prefix[:-1]

    def settle(self, error: Exception | None = None) -> None:
        def set_result() -> None:
            if self.future.done():
                return
            if error:
                self.future.set_exception(error)
            else:
                self.future.set_result(None)

        with suppress(RuntimeError):  # the event loop is closed, so that nothing awaits the future
            self.loop.call_soon_threadsafe(set_result)


_Known = tuple[_Request, "Tensor | None"]
"""A request, and the keys and values of the part of its prefix that has been computed."""


class DecodeLoop:
    """Decodes the samples of all requests in one batch.

    Args:
        model: A transformers causal language model.
        ends: Ids of the tokens that end a text.
        max_rows: Maximum number of samples in the batch, rounded up to a multiple of `tts.engines.kv.ROWS`. Further requests
            wait in order of arrival.
        cache_bytes: Memory for keys and values of prefixes that may be continued, in bytes.
    """

    def __init__(self, model: Any, *, ends: set[int], max_rows: int, cache_bytes: int) -> None:
        self.model, self.ends, self.max_rows = model, ends, round_up(max_rows, ROWS)
        self.device = model.device
        self.lean = LlamaForward.fits(model)
        self.forward = LlamaForward(model) if self.lean else _ModelForward(model)
        self.span = SPAN if self.lean else self.max_rows
        self.cache = SlotCache(model.config.get_text_config().num_hidden_layers, self.span)
        self.store = PrefixStore(cache_bytes)
        self.rows: list[tuple[Sample, _Request]] = []  # row i has slot i of the cache
        self._waiting: deque[_Request] = deque()
        self._lock = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False

    def close(self) -> None:
        """Stop the thread after the current token and drop all requests. A later request starts a new thread."""
        with self._lock:
            thread, self._closing = self._thread, True
            self._lock.notify()
        if thread is not None:
            thread.join()  # a thread inside torch at interpreter exit would abort the process
        self._closing = False

    async def run(self, rows: list[Sample]) -> tuple[int, float]:
        """Decode samples that share a prefix to their ends.

        Returns the number of prefix tokens that were not computed again, and the seconds until the last sample was admitted.
        Raises MemoryError if memory runs out, and whatever the model raises.
        """
        loop = asyncio.get_running_loop()
        parts = [rows[i : i + self.max_rows] for i in range(0, len(rows), self.max_rows)]
        requests = [_Request(part, loop.create_future(), loop, len(part)) for part in parts]
        with self._lock:
            self._waiting.extend(requests)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="tts-decode", daemon=True)
                self._thread.start()
            self._lock.notify()
        await asyncio.gather(*(request.future for request in requests))
        return requests[0].cached, max(request.waited for request in requests)

    @torch.inference_mode()
    def _work(self) -> None:
        while True:
            with self._lock:
                while not self._waiting and not self.rows and not self._closing:
                    self._lock.wait()
                if self._closing:
                    self._waiting.clear()
                    self.rows.clear()
                    self._thread = None  # the next request starts another
                    return
                admitted = self._admit()
            try:
                self._begin(admitted)
                if self.rows:
                    self._decode()
            except Exception as error:  # raised to those who await these requests; the loop continues
                error = _explained(error, len(self.rows))
                for request in {id(r): r for r in [*(request for _, request in self.rows), *admitted]}.values():
                    request.settle(error)
                self.rows.clear()

    def _admit(self) -> list[_Request]:
        """Take waiting requests in order of arrival as long as all their rows fit, and drop cancelled ones."""
        admitted, free = [], self.max_rows - len(self.rows)
        while self._waiting and len(self._waiting[0].rows) <= free:
            request = self._waiting.popleft()
            if not request.future.cancelled():
                request.waited = perf_counter() - request.asked
                admitted.append(request)
                free -= len(request.rows)
        return admitted

    def _begin(self, requests: list[_Request]) -> None:
        """Give each request its slots, filled with its prefix; compute what is not in the store."""
        known: list[_Known] = []
        for request in requests:
            kv = self.store.longest(request.known)
            request.cached = 0 if kv is None else kv.shape[3]
            known.append((request, kv))
        while known:
            groups: dict[tuple[int, int], list[_Known]] = {}
            for request, kv in known:
                past = 0 if kv is None else kv.shape[3]
                if rest := len(request.known) - past:
                    # results after a past depend on the width; without one, prompts of similar length are computed together
                    width = round_up(rest, ROWS) if past else max(ROWS, 1 << (rest - 1).bit_length())
                    groups.setdefault((past, min(width, CHUNK)), []).append((request, kv))
                else:
                    self._place(request, kv)
            known = []
            for (past, width), group in sorted(groups.items()):
                size = max(1, PREFILL // width)
                for start in range(0, len(group), size):
                    known += self._prefill(past, width, group[start : start + size])

    def _prefill(self, past: int, width: int, group: list[_Known]) -> list[_Known]:
        """Compute the next `width` tokens of prefixes of which `past` tokens are known. Prefixes may end sooner or later."""
        ids = torch.zeros(len(group), width, dtype=torch.long)
        for i, (request, _) in enumerate(group):
            chunk = request.known[past : past + width]
            ids[i, : len(chunk)] = torch.tensor(chunk)
        self.cache.prefill(len(group), width, torch.stack([kv for _, kv in group if kv is not None], 2) if past else None)
        # the mask is causal, so that no token sees the padding to its right
        mask = torch.full((width, past + width), -torch.inf, dtype=self.model.dtype, device=self.device).triu(past + 1)
        positions = torch.arange(past, past + width, device=self.device).expand(len(group), -1)
        self.forward(ids.to(self.device), positions, mask.expand(len(group), -1, -1), self.cache)
        computed = self.cache.prefilled()
        longer: list[_Known] = []
        for i, (request, _) in enumerate(group):
            kv = computed[:, :, i, :, : len(request.known)].clone()
            if kv.shape[3] == len(request.known):
                self.store.put(request.known, kv)
            longer.append((request, kv))
        return longer

    def _place(self, request: _Request, kv: Tensor | None) -> None:
        if kv is not None:
            self.cache.write(len(self.rows), len(request.rows), kv)
        self.rows += [(row, request) for row in request.rows]

    def _decode(self) -> None:
        """Decode one token for every row."""
        count = len(self.rows)
        padded = round_up(count, ROWS)
        positions = [row.position for row, _ in self.rows] + [0] * (padded - count)
        ids = [row.last for row, _ in self.rows] + [0] * (padded - count)
        self.cache.decode(positions[:count] if self.lean else positions)  # other models compute padding rows too
        where = torch.tensor(positions, device=self.device)[:, None]
        length = self.cache.columns
        unseen = torch.arange(length, device=self.device) > where[:count]
        mask = torch.zeros(count, length, dtype=self.model.dtype, device=self.device).masked_fill_(unseen, -torch.inf)
        logits = self.forward(torch.tensor(ids, device=self.device)[:, None], where, mask[:, None], self.cache)[:count].float()
        rows = [row for row, _ in self.rows]
        noted = any(row.sampling.logprobs or row.sampling.likeliest for row in rows)
        raw = logits.log_softmax(-1) if noted else None  # of the model itself, before penalties
        for i, row in enumerate(rows):
            if row.sampling.penalized or len(row.tokens) < row.sampling.min_tokens:
                penalize(logits[i], row.sampling, row.prefix, row.tokens, self.ends)
        u = uniform([row.seed for row in rows], [len(row.tokens) for row in rows])
        tokens = draw(logits, [row.sampling for row in rows], u)
        if raw is not None:
            note_logprobs(rows, raw, tokens)
        self._push(tokens.tolist())

    def _push(self, tokens: list[int]) -> None:
        """Append the rows' tokens, remove finished rows, and move other rows into their slots."""
        gone = set()
        for slot, ((row, request), token) in enumerate(zip(self.rows, tokens, strict=True)):
            if row.push(token, self.ends):
                if request.future.cancelled():
                    gone.add(slot)
                continue
            gone.add(slot)
            if row.finish == "step":  # its children will find all but its last token
                self.store.put((*row.prefix, *row.tokens[:-1]), self.cache.read(slot, row.position))
            request.left -= 1
            if not request.left:
                request.settle()
        if gone:
            self._close_ranks([slot for slot in range(len(self.rows)) if slot not in gone])

    def _close_ranks(self, stay: list[int]) -> None:
        """Move the rows that stay into the first slots, ordered by span: the longest rows in the first span, and so on."""
        length = {slot: self.rows[slot][0].position for slot in stay}
        ranked = sorted(stay, key=lambda slot: -length[slot])
        moves: dict[int, int] = {}
        for first in range(0, len(ranked), self.span):
            belong = ranked[first : first + self.span]
            slots = range(first, first + len(belong))
            free = sorted({*slots}.difference(belong))
            moves |= zip((slot for slot in belong if slot not in slots), free, strict=True)
        rows = list(self.rows)
        for source, target in moves.items():
            self.rows[target] = rows[source]
        del self.rows[len(stay) :]
        self.cache.move(moves, length)


def note_logprobs(rows: Sequence[Sample], logprobs: Tensor, tokens: Tensor) -> None:
    """Append to each row, as it asked, the log-probability of its token, the highest ones, and minus the mean of these.

    `logprobs` is [rows, vocabulary], `tokens` [rows].
    """
    chosen = logprobs.gather(1, tokens[:, None])[:, 0].tolist()
    counts = {count for row in rows if (count := row.sampling.confidence)}
    means = {k: logprobs.topk(min(k, logprobs.shape[1]), -1).values.mean(-1).neg().tolist() for k in counts}
    for i, row in enumerate(rows):
        if row.sampling.logprobs:
            row.logprobs.append(chosen[i])
        if row.sampling.confidence:
            row.confidence.append(means[row.sampling.confidence][i])
        if row.sampling.top:
            likeliest = logprobs[i].topk(min(row.sampling.top, logprobs.shape[1]))
            row.top.append(list(zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)))


def _explained(error: Exception, rows: int) -> Exception:
    """Return an out-of-memory error that says what to do, or any other error unchanged."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error):
        return MemoryError(
            f"out of memory with {rows} samples in the batch: lower --engine-arg max_rows or cache_gib, --n or --max-tokens;"
            " set --engine-arg dtype=bfloat16; or use --engine vllm, which manages memory"
        )
    return error


class _ModelForward:
    """The interface of LlamaForward for the forward pass of any other model."""

    def __init__(self, model: Any) -> None:
        self.model = model
        # transformers 5.19 renames the argument, model by model
        self.argument = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"

    def __call__(self, ids: Tensor, positions: Tensor, mask: Tensor, cache: SlotCache) -> Tensor:
        mask = functional.pad(mask, (0, 0, 0, 0, 0, len(ids) - len(mask)))
        logits: Tensor = self.model(
            input_ids=ids, position_ids=positions, attention_mask=mask[:, None], logits_to_keep=1, **{self.argument: cache}
        ).logits
        return logits[:, -1]
