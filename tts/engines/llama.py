"""A forward pass for Llama-like models that does without the overhead of a general implementation.

A token of a small model takes more time in Python than in matrix products. Here each layer is a few operations on plain
tensors, and attention reads keys and values in place, for each span of rows only as far as its longest row.
`benchmarks/embedded.py` measures the difference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from tts.engines.kv import SlotCache

if TYPE_CHECKING:
    from torch import Tensor

FAMILY = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Architectures with rotary positions, RMS norms, gated MLPs and grouped heads, and optional norms of queries and keys."""


class _Linear(NamedTuple):
    weight: Tensor
    """[inputs, outputs]"""
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return torch.mm(x, self.weight) if self.bias is None else torch.addmm(self.bias, x, self.weight)

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        out = torch.addmm(residual, x, self.weight)
        return out if self.bias is None else out.add_(self.bias)


class _LayerWeights(NamedTuple):
    """A layer's weights, looked up once, since attribute access in modules takes longer than some of the arithmetic."""

    before_attention: Tensor
    qkv: _Linear
    norms: tuple[Tensor, Tensor] | None
    """Norms of queries and keys, if the model has them."""
    out: _Linear
    before_mlp: Tensor
    gate_up: _Linear
    activation: Callable[[Tensor], Tensor]
    down: _Linear


class LlamaForward:
    """The model's forward pass on the same weights.

    The query, key and value weights are fused into one matrix, as are those of the MLP's gate and up projections. The model's
    own modules then use views of these, so that no memory is added.
    """

    @staticmethod
    def fits(model: Any) -> bool:
        """Return whether the model is one of FAMILY with unquantised weights."""
        if type(model).__name__ not in FAMILY:
            return False
        return all(type(module) is nn.Linear for module in model.base_model.modules() if "Linear" in type(module).__name__)

    def __init__(self, model: Any) -> None:
        config, base = model.config, model.base_model
        self.rotary, self.eps = base.rotary_emb, torch.tensor(config.rms_norm_eps, device=model.device)
        self.embedding, self.norm, self.head = base.embed_tokens.weight, base.norm.weight, _linear(model.lm_head)
        self.size: int = base.layers[0].self_attn.head_dim
        self.queries, self.keys = config.num_attention_heads, config.num_key_value_heads
        self.layers = [_layer(layer) for layer in base.layers]

    def __call__(self, ids: Tensor, positions: Tensor, mask: Tensor, cache: SlotCache) -> Tensor:
        """Compute the logits of the next token of each row.

        Args:
            ids: Token ids [rows, tokens].
            positions: Their positions [rows, tokens].
            mask: [live rows, tokens, columns], added to the attention scores. Rows after the live ones are padding, for which
                no attention is computed.
            cache: The cache, prepared for this pass.

        Returns:
            Logits [rows, vocabulary] after the last of each row's tokens.
        """
        (rows, tokens), (live, _, columns) = ids.shape, mask.shape
        queries, keys, size = self.queries, self.keys, self.size

        def batch(span: slice) -> slice:
            """Convert a range of rows to a range of (row, key head) pairs."""
            return slice(span.start * keys, span.stop * keys)

        groups, scale = queries // keys, size**-0.5
        hidden = functional.embedding(ids.flatten(), self.embedding)
        cos, sin = (x[:live].reshape(live * tokens, 1, size) for x in self.rotary(hidden, positions))
        sin = torch.cat((-sin[..., : size // 2], sin[..., size // 2 :]), -1)  # the sign that rotating the halves needs
        mask = mask[:, None, None].expand(live, keys, groups, tokens, columns).reshape(live * keys, groups * tokens, columns)
        masks = [mask[batch(span.rows), :, : span.columns] for span in cache.spans]
        seen = hidden.new_zeros(rows, tokens, keys, groups, size)
        for i, layer in enumerate(self.layers):
            heads = layer.qkv(self._rms(hidden, layer.before_attention))[: live * tokens].view(live * tokens, -1, size)
            turned, v = heads.split((queries + keys, keys), 1)
            if layer.norms is not None:
                q, k = turned.split((queries, keys), 1)
                turned = torch.cat((self._rms(q, layer.norms[0]), self._rms(k, layer.norms[1])), 1)
            turned = torch.addcmul(turned * cos, turned.roll(size // 2, -1), sin)
            q, k = turned.view(live, tokens, -1, size).transpose(1, 2).split((queries, keys), 1)
            past = cache.attend(i, k, v.view(live, tokens, -1, size).transpose(1, 2))
            q = q.reshape(live * keys, groups * tokens, size)
            for span, unseen, (k, v) in zip(cache.spans, masks, past, strict=True):
                weights = torch.baddbmm(unseen, q[batch(span.rows)], k.flatten(0, 1).transpose(1, 2), alpha=scale)
                mixed = torch.bmm(weights.softmax(-1, dtype=torch.float32).to(v.dtype), v.flatten(0, 1))
                seen[span.rows] = mixed.view(-1, keys, groups, tokens, size).permute(0, 3, 1, 2, 4)
            hidden = layer.out.onto(hidden, seen.view(rows * tokens, -1))
            gate, up = layer.gate_up(self._rms(hidden, layer.before_mlp)).chunk(2, -1)
            hidden = layer.down.onto(hidden, layer.activation(gate).mul_(up))
        return self.head(self._rms(hidden.view(rows, tokens, -1)[:, -1], self.norm))

    def _rms(self, x: Tensor, weight: Tensor) -> Tensor:
        """Compute RMS norm; torch's rms_norm takes twice as long on a CPU."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = torch.addcmul(self.eps, length, length, value=1 / x.shape[-1]).rsqrt_()
        return (x * scale).to(x.dtype).mul_(weight)


def _layer(layer: Any) -> _LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    return _LayerWeights(
        layer.input_layernorm.weight,
        _fuse(attention.q_proj, attention.k_proj, attention.v_proj),
        (attention.q_norm.weight, attention.k_norm.weight) if hasattr(attention, "q_norm") else None,
        _linear(attention.o_proj),
        layer.post_attention_layernorm.weight,
        _fuse(mlp.gate_proj, mlp.up_proj),
        mlp.act_fn.forward,
        _linear(mlp.down_proj),
    )


def _linear(module: nn.Linear) -> _Linear:
    return _Linear(module.weight.data.t(), None if module.bias is None else module.bias.data)


def _fuse(*linears: Any) -> _Linear:
    """Fuse linear layers into one; their own weights become views of its weights."""
    joined = {}
    for name in ("weight", "bias") if linears[0].bias is not None else ("weight",):
        parts = [getattr(linear, name) for linear in linears]
        joined[name] = torch.cat([part.data for part in parts])
        for part, view in zip(parts, joined[name].split([len(part) for part in parts]), strict=True):
            part.data = view
    return _Linear(joined["weight"].t(), joined.get("bias"))
