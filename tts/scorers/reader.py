"""Where a reward model runs: token ids and positions in, rewards at those positions out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch.nn.functional import pad

from tts.errors import InputError
from tts.models import checkpoints
from tts.models.batching import Batcher
from tts.scorers.forest import GRAIN, Forest

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from tts.scorers.formats import Format


class Query(NamedTuple):
    """What is read of one sequence."""

    ids: Sequence[int]
    positions: Sequence[int]
    """Ascending."""
    whole: bool = False
    """Whether it rates a trace as a whole, which some checkpoints have a head of its own for."""


class Reader(Protocol):
    """A backend that runs a reward model."""

    context: int
    """Tokens that a sequence may have."""

    async def read(self, queries: Sequence[Query]) -> list[list[float]]:
        """The rewards at each query's positions."""
        ...

    async def close(self) -> None: ...


class LocalReader:
    """A transformers model in this process.

    `cache_gib` bounds the memory for prefixes that may be read again, `batch_tokens` what goes through the model at once; other
    options are those of `tts.models.checkpoints.load_weights`. Raises InputError where the model cannot be used.
    """

    def __init__(
        self,
        name: str,
        format: Format,
        tokenizer: PreTrainedTokenizerBase,
        *,
        cache_gib: float = 1.0,
        batch_tokens: int = 8192,
        **options: Any,
    ) -> None:
        body, self._step, final = format.load()(name, tokenizer, **options)
        self._final = final or self._step
        self.forest = forest_of(name, body, cache_gib=cache_gib, batch_tokens=batch_tokens)
        self.context = self.forest.context
        self._batcher: Batcher[Query, list[float]] = Batcher(self._read, max_size=4096)

    async def read(self, queries: Sequence[Query]) -> list[list[float]]:
        return await self._batcher(queries)

    async def close(self) -> None:
        """Nothing to let go of."""

    @torch.inference_mode()
    def _read(self, queries: list[Query]) -> list[list[float]]:
        hidden = self.forest([query.ids for query in queries], [query.positions for query in queries])
        rewards: list[list[float]] = [[] for _ in queries]
        for whole, head in ((False, self._step), (True, self._final)):
            which = [i for i, query in enumerate(queries) if query.whole is whole]
            if which:
                rows = torch.cat([hidden[i] for i in which])
                read = head(pad(rows, (0, 0, 0, -len(rows) % GRAIN)))[: len(rows)]
                for i, values in zip(which, read.split([len(hidden[i]) for i in which]), strict=True):
                    rewards[i] = values.tolist()
        return rewards


class ImplicitReader:
    """How much likelier a trace became by training: `COEFFICIENT` times the log-ratio of two language models, up to a position.

    The first position of a query is where the answer begins (arXiv 2412.01981). Options are LocalReader's.
    """

    COEFFICIENT = 0.001
    ROWS = 1024  # of logits at a time: a vocabulary is wide

    def __init__(
        self,
        name: str,
        format: Format,
        tokenizer: PreTrainedTokenizerBase,
        *,
        reference: str | None = None,
        cache_gib: float = 1.0,
        batch_tokens: int = 8192,
        **options: Any,
    ) -> None:
        reference = reference or format.reference
        assert reference is not None
        try:
            load: Any = format.load()
            loaded = [load(model, tokenizer, **options) for model in (name, reference)]
        except InputError as error:
            raise InputError(
                f"{error} ({name!r} is rated beside its reference model {reference!r}; another: --scorer-arg reference=NAME)"
            ) from error
        self._models = [
            (forest_of(model, body, cache_gib=cache_gib / 2, batch_tokens=batch_tokens), logits)
            for model, (body, logits) in zip((name, reference), loaded, strict=True)
        ]
        self.context = min(forest.context for forest, _ in self._models)
        self._batcher: Batcher[Query, list[float]] = Batcher(self._read, max_size=4096)

    async def read(self, queries: Sequence[Query]) -> list[list[float]]:
        return await self._batcher(queries)

    async def close(self) -> None:
        """Nothing to let go of."""

    @torch.inference_mode()
    def _read(self, queries: list[Query]) -> list[list[float]]:
        ids = [query.ids for query in queries]
        before = [range(query.positions[0], query.positions[-1]) for query in queries]
        after = [query.ids[query.positions[0] + 1 : query.positions[-1] + 1] for query in queries]
        ratios = [
            own - reference
            for own, reference in zip(*(self._logprobs(*model, ids, before, after) for model in self._models), strict=True)
        ]
        return [
            [float(ratio[: at - query.positions[0]].sum()) * self.COEFFICIENT for at in query.positions[1:]]
            for query, ratio in zip(queries, ratios, strict=True)
        ]

    def _logprobs(self, forest: Forest, logits: Any, ids: Any, before: Any, after: Any) -> list[Tensor]:
        """Of every token of the answers."""
        result = []
        for hidden, tokens in zip(forest(ids, before), after, strict=True):
            chosen = torch.tensor(tokens, device=hidden.device)[:, None]
            parts = [
                logits(rows).double().log_softmax(-1).gather(1, column)[:, 0].cpu()
                for rows, column in zip(hidden.split(self.ROWS), chosen.split(self.ROWS), strict=True)
                if len(rows)
            ]
            result.append(torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64))
        return result


def forest_of(name: str, body: Any, *, cache_gib: float, batch_tokens: int) -> Forest:
    """A forest for a model's body that keeps so much of what it read, and takes sequences up to the model's context."""
    checkpoints.check_number("--scorer-arg cache_gib", cache_gib, 0)
    checkpoints.check_number("--scorer-arg batch_tokens", batch_tokens, 1, whole=True)
    return Forest(body, limit=int(cache_gib * 2**30), batch_tokens=batch_tokens, context=context_of(name, body))


def context_of(name: str, body: Any) -> int:
    """Tokens that a model reads at the most."""
    context = checkpoints.context_length(body.config.to_dict())
    if context is None:
        raise InputError(f"{name!r} ({body.config.model_type}) does not say how long a text it can read")
    return context
