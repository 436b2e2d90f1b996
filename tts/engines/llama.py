"""The forward pass of Llama-shaped models, without what a general one spends around its arithmetic.

A small model's token costs more in Python than in matrix products, and keys and values are read where they lie instead of
being repeated for every query head first. `benchmarks/embedded.py` has the figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from tts.engines.kv import SlotCache

if TYPE_CHECKING:
    from torch import Tensor

FAMILY = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Architectures of this shape: rotary positions, RMS norms, gated MLPs, grouped heads; norms of queries and keys if any."""


class LlamaForward:
    """What the model computes, on the same weights.

    Query, key and value weights become one matrix, as do those of the MLP's gate and up projections; the model's own
    modules keep working on views of them.
    """

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether the model has this shape, with plain weights (quantised ones go through the model's own forward pass)."""
        if type(model).__name__ not in FAMILY:
            return False
        return all(type(module) is nn.Linear for module in model.base_model.modules() if "Linear" in type(module).__name__)

    def __init__(self, model: Any) -> None:
        config, base = model.config, model.base_model
        self.base, self.head, self.eps = base, model.lm_head, config.rms_norm_eps
        self.size: int = base.layers[0].self_attn.head_dim
        self.heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        self.layers = [
            (
                layer,
                _fuse(layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
                _fuse(layer.mlp.gate_proj, layer.mlp.up_proj),
            )
            for layer in base.layers
        ]

    def __call__(self, ids: Tensor, positions: Tensor, mask: Tensor, cache: SlotCache) -> Tensor:
        """Logits [rows, vocabulary] behind the last of `ids` at `positions`, both [rows, tokens].

        `mask` [live rows, tokens, columns] is added to the attention scores; rows behind the live ones are padding, which no
        attention is spent on.
        """
        live, tokens, columns = mask.shape
        queries, keys, _ = self.heads
        groups = queries // keys
        hidden = self.base.embed_tokens(ids)
        cos, sin = (x[:, :, None] for x in self.base.rotary_emb(hidden, positions))
        mask = mask[:, None, None].expand(live, keys, groups, tokens, columns).reshape(live * keys, groups * tokens, columns)
        for slots, (layer, attention, mlp) in zip(cache.slots, self.layers, strict=True):
            heads = attention(self._norm(layer.input_layernorm, hidden)).unflatten(-1, (-1, self.size))
            turned = self._rotate(layer.self_attn, heads[:, :, : queries + keys], cos, sin)[:live].transpose(1, 2)
            k, v = slots.update(turned[:, queries:], heads[:live, :, queries + keys :].transpose(1, 2))
            q = turned[:, :queries].reshape(live * keys, groups * tokens, self.size)
            weights = torch.baddbmm(mask, q, k.flatten(0, 1).transpose(1, 2), alpha=self.size**-0.5)
            seen = torch.bmm(weights.softmax(-1, dtype=torch.float32).to(v.dtype), v.flatten(0, 1))
            seen = seen.view(live, queries, tokens, self.size).transpose(1, 2).flatten(2)
            hidden = hidden + layer.self_attn.o_proj(functional.pad(seen, (0, 0, 0, 0, 0, len(ids) - live)))
            gate, up = mlp(self._norm(layer.post_attention_layernorm, hidden)).chunk(2, -1)
            hidden = hidden + layer.mlp.down_proj(layer.mlp.act_fn(gate) * up)
        return self.head(self._norm(self.base.norm, hidden[:, -1]))  # type: ignore[no-any-return]

    def _norm(self, module: Any, x: Tensor) -> Tensor:
        return functional.rms_norm(x, x.shape[-1:], module.weight, self.eps)

    def _rotate(self, attention: Any, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Queries and keys [rows, tokens, heads, size], turned by their positions."""
        if hasattr(attention, "q_norm"):
            queries, keys = heads.split(self.heads[:2], 2)
            heads = torch.cat((self._norm(attention.q_norm, queries), self._norm(attention.k_norm, keys)), 2)
        first, second = heads.chunk(2, -1)
        return torch.addcmul(heads * cos, torch.cat((-second, first), -1), sin)


def _fuse(*linears: Any) -> nn.Linear:
    """One linear layer that computes them all; theirs become views of its weights."""
    with torch.no_grad():
        fused = nn.Linear(1, 1, bias=linears[0].bias is not None)
        for name in ("weight", "bias") if linears[0].bias is not None else ("weight",):
            parts = [getattr(linear, name) for linear in linears]
            joined = torch.cat([part.data for part in parts])
            setattr(fused, name, nn.Parameter(joined, requires_grad=False))
            for part, view in zip(parts, joined.split([len(part) for part in parts]), strict=True):
                part.data = view
    return fused
