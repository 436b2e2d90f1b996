"""Completions for training, drawn by the embedded engine, whose weights follow those that are trained."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from tts.engines.kv import PrefixStore
from tts.engines.transformers import TransformersEngine
from tts.solving.generator import derive_seed
from tts.types import Sampling


class Rollouts:
    """An engine of its own beside the trained model, on the same device. Samples are a function of the seed and the weights."""

    def __init__(self, model: str, sampling: Sampling, *, device: str, dtype: str) -> None:
        self.engine = TransformersEngine(model, device=device, dtype=dtype)
        self.sampling = sampling

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        """Take over the weights of a model of the same architecture, with what its adapters add to them."""
        targets = dict(self.engine.model.named_parameters())
        for name, weight in weights(model):
            targets.pop(name).copy_(weight)
        if targets:
            raise RuntimeError(f"the trained model has no {', '.join(sorted(targets))}")
        store = self.engine.loop.store
        self.engine.loop.store = PrefixStore(store.limit)  # keys and values of the old weights

    def draw(self, prompts: Sequence[Sequence[int]], *seed: object) -> list[list[int]]:
        """A completion of each prompt, in order; equal ones that follow each other are siblings."""

        async def together() -> list[list[int]]:
            groups = [(tuple(prompt), len(list(same))) for prompt, same in groupby(prompts, key=tuple)]
            drawn = await asyncio.gather(
                *(
                    self.engine.generate(prompt, n, _seeded(self.sampling, derive_seed(*seed, i, *prompt)))
                    for i, (prompt, n) in enumerate(groups)
                )
            )
            return [list(step.token_ids) for generation in drawn for step in generation.steps]

        return asyncio.run(together())

    def close(self) -> None:
        """End the engine's thread."""
        self.engine.loop.close()


def _seeded(sampling: Sampling, seed: int) -> Sampling:
    return Sampling(sampling.temperature, sampling.top_p, sampling.max_tokens, seed=seed)


def weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and values of a model's parameters as they are without adapters' wrappers, adapters added."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            continue
        owner, _, kind = name.rpartition(".")
        plain = f"{owner.removeprefix('base_model.model.').removesuffix('.base_layer')}.{kind}"
        if not owner.endswith(".base_layer") or kind != "weight":
            yield plain, parameter
            continue
        adapted: Any = model.get_submodule(owner.removesuffix(".base_layer"))
        yield plain, parameter + sum(adapted.get_delta_weight(adapter) for adapter in adapted.active_adapters)
