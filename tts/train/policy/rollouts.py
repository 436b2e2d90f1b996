"""Completions for RL, drawn by the embedded engine with the current weights of the trained policy."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from tts.engines.kv import PrefixStore
from tts.engines.transformers import TransformersEngine
from tts.solving.generator import derive_seed
from tts.types import Sampling


class Rollouts:
    """An engine beside the trained model, on the same device. Its samples depend on the seed and the weights alone.

    Args:
        model: The policy to start from.
        sampling: How to draw; its seed is ignored.
        device: As in torch.
        dtype: As in torch, such as "float32".
    """

    def __init__(self, model: str, sampling: Sampling, *, device: str, dtype: str) -> None:
        self.engine = TransformersEngine(model, device=device, dtype=dtype)
        self.sampling = sampling

    @torch.no_grad()
    def load_weights(self, model: nn.Module) -> None:
        """Copy the weights of a model of the same architecture, with its adapters merged in."""
        targets = dict(self.engine.model.named_parameters())
        for name, weight in merged_weights(model):
            targets.pop(name).copy_(weight)
        if targets:
            raise RuntimeError(f"the trained model has no {', '.join(sorted(targets))}")
        store = self.engine.loop.store
        self.engine.loop.store = PrefixStore(store.limit)  # drops keys and values of the old weights

    def draw(self, prompts: Sequence[Sequence[int]], *seed: object) -> list[list[int]]:
        """Return the token ids of one completion per prompt, in order.

        Args:
            prompts: Token ids of each prompt. Consecutive equal prompts are drawn together, as siblings.
            seed: Values that the random seed is derived from, besides the prompt and its position.
        """

        async def together() -> list[list[int]]:
            groups = [(tuple(prompt), len(list(same))) for prompt, same in groupby(prompts, key=tuple)]
            drawn = await asyncio.gather(
                *(
                    self.engine.generate(prompt, n, replace(self.sampling, seed=derive_seed(*seed, i, *prompt)))
                    for i, (prompt, n) in enumerate(groups)
                )
            )
            return [list(step.token_ids) for generation in drawn for step in generation.steps]

        return asyncio.run(together())

    def close(self) -> None:
        """Stop the engine's thread."""
        self.engine.loop.close()


def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield name and value of each parameter, named as in the model without LoRA adapters, with these merged in."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            continue
        owner, _, kind = name.rpartition(".")
        original = f"{owner.removeprefix('base_model.model.').removesuffix('.base_layer')}.{kind}"
        if not owner.endswith(".base_layer") or kind != "weight":
            yield original, parameter
            continue
        adapted: Any = model.get_submodule(owner.removesuffix(".base_layer"))
        yield original, parameter + sum(adapted.get_delta_weight(adapter) for adapter in adapted.active_adapters)
