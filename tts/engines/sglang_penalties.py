"""A logit processor that SGLang's scheduler calls, for penalties that count what `tts.types.Sampling` says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor

from tts.engines.drawing import penalize
from tts.types import Sampling

if TYPE_CHECKING:
    from torch import Tensor


class Penalties(CustomLogitProcessor):  # type: ignore[misc]  # sglang is not installed where types are checked
    """Penalizes each row by the tokens of its request; a row's parameters are fields of Sampling."""

    def __call__(self, logits: Tensor, custom_param_list: list[dict[str, Any]] | None = None) -> Tensor:
        for row, parameters in zip(logits, custom_param_list or (), strict=True):
            request = parameters["__req__"]
            sampling = Sampling(**{name: value for name, value in parameters.items() if name != "__req__"})
            penalize(row, sampling, request.origin_input_ids, request.output_ids, ())
        return logits
