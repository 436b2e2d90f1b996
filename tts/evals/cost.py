"""Estimated floating-point operations: 2 x parameters x tokens, and attention's, the policy's and the reward model's apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tts.data.store import Record
from tts.errors import InputError
from tts.models import checkpoints
from tts.types import Usage


@dataclass(frozen=True)
class Shape:
    """What a decoder's cost depends on."""

    parameters: int
    """That every token is multiplied with: layers and output head, not the table of input embeddings."""
    layers: int
    width: int
    """Of all query heads together."""

    def flops(self, tokens: float, context: float) -> float:
        """Of a forward pass over tokens that see `context` tokens on average: a multiplication and an addition each."""
        return 2 * self.parameters * tokens + 4 * self.layers * self.width * context * tokens


def shape_of(config: dict[str, Any], *, outputs: int | None = None) -> Shape | None:
    """Of a config.json; None where that does not say. `outputs` replaces the vocabulary at the end (a head of 2, say).

    Experts count as many as a token is sent to.
    """
    text = config.get("text_config") or config
    try:
        hidden, layers, heads = text["hidden_size"], text["num_hidden_layers"], text["num_attention_heads"]
        size = text.get("head_dim") or hidden // heads
        keys = text.get("num_key_value_heads") or heads
        experts = text.get("num_experts_per_tok") or 1
        inner = text.get("moe_intermediate_size") if experts > 1 else None
        attention = hidden * size * (2 * heads + 2 * keys)
        mlp = 3 * hidden * (inner or text["intermediate_size"]) * experts
        head = hidden * (text["vocab_size"] if outputs is None else outputs)
    except (KeyError, TypeError):
        return None
    return Shape(layers * (attention + mlp) + head, layers, heads * size)


@dataclass(frozen=True)
class Flops:
    """Of a run. None where a model's shape is not known here, as a server's may be."""

    generator: float | None = None
    scorer: float | None = None


def flops_of(records: Sequence[Record], usage: Usage, policy: str, scorer: str | None) -> Flops:
    """An estimate from the bill: prefixes that were not cached, tokens generated, tokens that the reward model read.

    A generated token is taken to see the mean prefix of a request and half of what was generated behind it; a scored token half
    a trace. What a reward model found in its own cache is counted all the same: that depends on timing.
    """
    lengths = [sum(attempt.tokens) for record in records for attempt in record.candidates]
    mean = sum(lengths) / len(lengths) if lengths else 0.0
    prefix = usage.prompt / usage.calls if usage.calls else 0.0
    generated, read = _shape(policy), _shape(scorer, outputs=2) if scorer else None
    return Flops(
        None if generated is None else generated.flops(usage.prompt - usage.cached, prefix / 2)
        + generated.flops(usage.generated, prefix + mean / 2),
        None if read is None else read.flops(usage.scored, (prefix + mean) / 2),
    )  # fmt: skip


def _shape(model: str, outputs: int | None = None) -> Shape | None:
    try:
        return shape_of(checkpoints.load_config(model), outputs=outputs)
    except InputError:
        return None
