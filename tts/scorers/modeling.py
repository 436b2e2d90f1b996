"""The architecture of ReasonFlux-PRM-7B and Qwen2.5-Math-PRM as native transformers code, so that no remote code is run."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2Model, Qwen2PreTrainedModel


class Qwen2ForProcessRewardModel(Qwen2PreTrainedModel):
    """A Qwen2 decoder with a two-class head at every position; weights are named `model.*`, `score.0.*` and `score.2.*`."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__(config)
        self.model = Qwen2Model(config)
        self.score = nn.Sequential(
            nn.Linear(config.hidden_size, config.hidden_size), nn.ReLU(), nn.Linear(config.hidden_size, 2)
        )
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Tensor:
        """Return logits [batch, length, 2] for `input_ids` [batch, length]; class 1 means that the step is correct."""
        logits: Tensor = self.score(self.model(input_ids=input_ids, **kwargs).last_hidden_state)
        return logits
