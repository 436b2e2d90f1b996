"""Reward models that run in this process, on transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.nn.functional import pad

from tts.errors import InputError
from tts.models import checkpoints
from tts.models.batching import Batcher, groups
from tts.scorers.forest import GRAIN, Forest
from tts.scorers.heads import Heads, language_model
from tts.scorers.reader import LoadedModel, Query

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from tts.scorers.formats import Format


class LocalReader:
    """A transformers model in this process, with prefixes cached and queries of all problems batched.

    Args:
        name: A bundled model's name, a folder or a hub id.
        format: How the model is shown a trace.
        tokenizer: The model's tokenizer.
        cache_gib: Memory for prefixes that may be read again, in GiB.
        batch_tokens: Tokens that go through the model at once.
        **options: Options of `tts.models.checkpoints.load_weights` (`device`, `dtype`, …), and `reference`, the reference model
            of an implicit reward.

    Raises:
        InputError: The model cannot be loaded, or an option has a wrong value.
    """

    needs_url: ClassVar[bool] = False
    pooling: ClassVar[bool] = False

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
        self.model: LoadedModel = format.readout.load(
            name, tokenizer, cache_gib=cache_gib, batch_tokens=batch_tokens, **options
        )
        self.context, self.exact = self.model.context, self.model.exact
        self._batcher: Batcher[Query, list[float]] = Batcher(self.model.rewards, max_size=4096)

    async def prepare(self) -> None:
        """Do nothing: the model is loaded."""

    async def check(self) -> None:
        return

    async def read(self, queries: Sequence[Query]) -> list[list[float]]:
        return await self._batcher(queries)

    async def close(self) -> None:
        """Do nothing: memory is freed with the reader."""


class HeadModel:
    """A decoder whose hidden states go through a reward head."""

    def __init__(self, name: str, heads: Heads, *, cache_gib: float, batch_tokens: int) -> None:
        self._step, self._final = heads.step, heads.final or heads.step
        self.forest = forest_of(name, heads.body, cache_gib=cache_gib, batch_tokens=batch_tokens)
        self.context, self.exact = self.forest.context, self.forest.exact

    @torch.inference_mode()
    def rewards(self, queries: Sequence[Query]) -> list[list[float]]:
        """Return the rewards at each query's positions."""
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


class LogRatioModel:
    """Two language models: a reward is COEFFICIENT times the log-ratio of their probabilities of the answer up to a position.

    The first position of a query is where the answer begins (arXiv 2412.01981).
    """

    COEFFICIENT = 0.001
    ROWS = 1024
    """Positions whose logits are computed at once, since a vocabulary is large."""
    HELD = 2**17
    """Tokens whose hidden states are held at once."""

    def __init__(self, name: str, reference: str, *, cache_gib: float, batch_tokens: int, **options: Any) -> None:
        try:
            loaded = [language_model(model, **options) for model in (name, reference)]
        except InputError as error:
            raise InputError(
                f"{error} ({name!r} needs its reference model {reference!r}; name another with --scorer-arg reference=NAME)"
            ) from error
        self._models = [
            (forest_of(model, body, cache_gib=cache_gib / 2, batch_tokens=batch_tokens), logits)
            for model, (body, logits) in zip((name, reference), loaded, strict=True)
        ]
        self.context = min(forest.context for forest, _ in self._models)
        self.exact = all(forest.exact for forest, _ in self._models)

    @torch.inference_mode()
    def rewards(self, queries: Sequence[Query]) -> list[list[float]]:
        """Return the rewards at each query's positions but the first."""
        return [
            rewards for group in groups(queries, lambda query: len(query.ids), self.HELD) for rewards in self._rewards(group)
        ]

    def _rewards(self, queries: Sequence[Query]) -> list[list[float]]:
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
        """Return one model's log-probability of every token of each answer."""
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
    """Build the forest in which a model's sequences are read, up to the model's context.

    Args:
        name: The model's name, for error messages.
        body: The model without its head.
        cache_gib: Memory for prefixes that may be read again, in GiB.
        batch_tokens: Tokens that go through the model at once.

    Raises:
        InputError: A number is out of range, or the model's config gives no context.
    """
    checkpoints.check_number("--scorer-arg cache_gib", cache_gib, 0)
    checkpoints.check_number("--scorer-arg batch_tokens", batch_tokens, 1, whole=True)
    return Forest(body, limit=int(cache_gib * 2**30), batch_tokens=batch_tokens, context=context_of(name, body))


def context_of(name: str, body: Any) -> int:
    """Return the number of tokens that a model can read. Raises InputError if its config does not say."""
    context = checkpoints.context_length(body.config.to_dict())
    if context is None:
        raise InputError(f"the config of {name!r} ({body.config.model_type}) does not say how many tokens it can read")
    return context
