"""Estimated floating-point operations of a run, for the policy and the reward model: 2 x parameters x tokens plus attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tts.errors import InputError
from tts.models import checkpoints
from tts.types import Usage


@dataclass(frozen=True)
class Shape:
    """The dimensions of a decoder on which its cost depends."""

    parameters: int
    """Parameters that each token is multiplied with: those of the layers and the output head, not the input embeddings."""
    layers: int
    """Number of layers."""
    width: int
    """Dimensions of all query heads together."""

    def flops(self, tokens: float, context: float) -> float:
        """Operations of a forward pass over `tokens` tokens that attend to `context` tokens each, on average."""
        return 2 * self.parameters * tokens + 4 * self.layers * self.width * context * tokens


def shape_of(config: dict[str, Any], *, outputs: int | None = None) -> Shape | None:
    """The shape of a model from its config.json; None if a dimension is missing there.

    `outputs` is the size of the output head, by default that of the vocabulary; a reward head may have 2. Of a mixture of
    experts, the experts that a token is sent to are counted.
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
    """Operations of a run; None if the shape of a model is unknown, as that of a server's model may be."""

    generator: float | None = None
    """Operations of the policy."""
    scorer: float | None = None
    """Operations of the reward model; also None without one."""


def flops_of(usage: Usage, length: float, policy: str, scorer: str | None) -> Flops:
    """Estimate the operations of a run from its usage: prefixes that were not cached, generated tokens, and scored tokens.

    A generated token is assumed to attend to a prefix of mean length and to half of a candidate, a scored token to half of a
    prefix and a candidate. Tokens that a reward model found in its own cache are counted, as what it finds depends on timing.

    Args:
        usage: Tokens and calls of the whole run.
        length: Mean number of tokens of a candidate.
        policy: Name or folder of the policy.
        scorer: Name or folder of the reward model; None without one.
    """
    prefix = usage.prompt / usage.calls if usage.calls else 0.0
    generated, read = _shape(policy), _shape(scorer, outputs=2) if scorer else None
    return Flops(
        None if generated is None else generated.flops(usage.prompt - usage.cached, prefix / 2)
        + generated.flops(usage.generated, prefix + length / 2),
        None if read is None else read.flops(usage.scored, (prefix + length) / 2),
    )  # fmt: skip


def _shape(model: str, outputs: int | None = None) -> Shape | None:
    try:
        return shape_of(checkpoints.load_config(model), outputs=outputs)
    except InputError:
        return None
