"""The model that `tts train-prm` trains: a decoder with a step head, a trace head, or both.

The step head has the layout of ReasonFlux-PRM-7B, the trace head that of ReasonFlux-PRM-1.5B, so that both load as these do.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import AddedToken
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import AutoModelForCausalLM, Qwen2ForCausalLM

from tts.errors import InputError
from tts.models import checkpoints, weights
from tts.scorers.modeling import Qwen2ForProcessRewardModel
from tts.scorers.readouts import TRACE_HEAD
from tts.train.trainer import lora_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tts.train.settings import TrainPRMSettings

SEPARATOR = "<extra_0>"
"""The token at which the reward of a step is read."""


def reward_losses(margins: Tensor, targets: Tensor, loss: str) -> Tensor:
    """Return the loss of each reward [n], in float32.

    Args:
        margins: Logits of the rewards [n]. For a head with two classes, the difference of their logits, whose sigmoid is the
            softmax of the second class.
        targets: Targets in [0, 1], [n].
        loss: "mse" for the squared error of sigmoid(margin), "ce" for cross-entropy with a soft target.
    """
    margins = margins.float()
    if loss == "mse":
        return (margins.sigmoid() - targets).square()
    return binary_cross_entropy_with_logits(margins, targets, reduction="none")


class RewardModel(nn.Module):
    """A decoder with its reward heads.

    Args:
        base: The model that is saved. Unless `head` is "trace", its `score` is the step head.
        head: "step", "trace" or "both". The trace head is a new linear layer, saved beside the model.
    """

    def __init__(self, base: Any, head: str) -> None:
        super().__init__()
        self.base, self.by_step = base, head != "trace"
        self.reward_head = None if head == "step" else _initialized(nn.Linear(base.config.hidden_size, 1), base.config)

    def forward(self, input_ids: Tensor, at: Tensor, whole: Tensor, **kwargs: Tensor) -> Tensor:
        """Return margins [n], in float32: logits of the rewards.

        Args:
            input_ids: Token ids [rows, length].
            at: Positions in the flattened ids at which rewards are read [n].
            whole: Whether each reward is of a trace as a whole, which the trace head rates if there is one [n], bool.
            kwargs: Further inputs of the decoder, such as attention_mask or position_ids.
        """
        hidden = self.base.base_model(input_ids=input_ids, use_cache=False, **kwargs).last_hidden_state.flatten(0, 1)[at]
        with torch.autocast(hidden.device.type, enabled=False):  # heads are cheap, and rewards close to 1 need the precision
            hidden = hidden.float()
            trace: Tensor | None = self.reward_head(hidden)[:, 0] if self.reward_head is not None else None
            if not self.by_step:
                assert trace is not None
                return trace
            logits: Tensor = self.base.score(hidden)
            margins = logits[:, 1] - logits[:, 0]
            # both heads at every position: distributed training needs a gradient of every parameter in every batch
            return margins if trace is None else torch.where(whole, trace, margins)

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Pass the call of transformers' Trainer on to the decoder."""
        self.base.activation_checkpointing_enable(**options)

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Do the same for versions of transformers that know it by this name only."""
        self.base.gradient_checkpointing_enable(**options)

    def merge_adapters(self) -> None:
        """Merge LoRA adapters into the weights they adapt, and remove their layers."""
        for name, module in list(self.base.named_modules()):
            if hasattr(module, "get_base_layer"):
                module.merge()
                self.base.set_submodule(name, module.get_base_layer())

    def save(self, out: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write a folder that `--scorer` loads: config.json, weights, tokenizer, and the trace head if there is one."""
        if self.reward_head is not None:
            torch.save({name: tensor.cpu() for name, tensor in self.reward_head.state_dict().items()}, out / TRACE_HEAD)
        tokenizer.save_pretrained(out)
        self.base.save_pretrained(out)


def check_architecture(settings: TrainPRMSettings) -> dict[str, Any]:
    """Return config.json of the model to start from. Raises InputError if its architecture does not fit `--head`."""
    config = checkpoints.load_config(settings.model)
    kind = ", ".join(config.get("architectures") or ["an unnamed architecture"])
    if checkpoints.is_reward_model(config) and (settings.head != "step" or "Qwen2ForProcessRewardModel" not in kind):
        raise InputError(
            f"{settings.model!r} is a reward model ({kind}). Only Qwen2ForProcessRewardModel can be trained further, with"
            " --head step; otherwise give a language model as --model"
        )
    if settings.head != "trace" and config.get("model_type") != "qwen2":
        raise InputError(
            f"{settings.model!r} is {kind}, but a step head needs a Qwen2 model, such as Qwen/Qwen2.5-1.5B-Instruct;"
            " --head trace takes any language model"
        )
    return config


def load_prm_tokenizer(settings: TrainPRMSettings) -> PreTrainedTokenizerBase:
    """Return the model's tokenizer; for a step head, with SEPARATOR added if it has none."""
    tokenizer = checkpoints.load_tokenizer(settings.model)
    if settings.head != "trace" and SEPARATOR not in tokenizer.get_vocab():
        tokenizer.add_tokens([AddedToken(SEPARATOR, normalized=False, special=True)], special_tokens=True)
    return tokenizer


def load_reward_model(settings: TrainPRMSettings, tokenizer: PreTrainedTokenizerBase) -> RewardModel:
    """Return decoder and heads, in float32 on the CPU. New heads are drawn from torch's global generator.

    Raises:
        InputError: The model cannot be loaded, or --lora is given and peft is not installed.
    """
    adapters = lora_config(settings)
    base = _load_base(settings)
    if settings.over != "all" or hasattr(base.config, "score_over"):
        base.config.score_over = settings.over
    if settings.head != "trace":
        _add_separator(base, tokenizer, checkpoints.load_tokenizer(settings.model))
    model = RewardModel(base, settings.head)
    output = base.get_output_embeddings()
    if output is not None and output.weight is not base.get_input_embeddings().weight:
        output.weight.requires_grad_(False)  # the loss does not depend on it; it is saved unchanged
    if adapters is not None:
        from peft import inject_adapter_in_model

        inject_adapter_in_model(adapters, base.base_model)
    return model


def _load_base(settings: TrainPRMSettings) -> Any:
    options: dict[str, Any] = {"device": "cpu", "dtype": "float32"}
    if settings.head == "trace":
        return weights.load_weights(AutoModelForCausalLM, settings.model, **options)
    if checkpoints.is_reward_model(checkpoints.load_config(settings.model)):
        return weights.load_weights(Qwen2ForProcessRewardModel, settings.model, **options)
    policy = weights.load_weights(Qwen2ForCausalLM, settings.model, **options)
    with torch.device("meta"):
        base = Qwen2ForProcessRewardModel(policy.config)
    base.model = policy.model
    base.score.to_empty(device="cpu")
    for layer in base.score:
        _initialized(layer, policy.config)
    return base


def _initialized(layer: Any, config: Any) -> Any:
    """Initialize a layer as the model's own layers are, and return it."""
    if isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, std=getattr(config, "initializer_range", 0.02))
        nn.init.zeros_(layer.bias)
    return layer


def _add_separator(base: Any, tokenizer: PreTrainedTokenizerBase, original: PreTrainedTokenizerBase) -> None:
    """Give a SEPARATOR that the original tokenizer lacks an embedding: the mean of those before it."""
    if base.get_input_embeddings().num_embeddings < len(tokenizer):
        base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if SEPARATOR not in original.get_vocab():
        token = int(tokenizer.convert_tokens_to_ids(SEPARATOR))  # type: ignore[arg-type]
        with torch.no_grad():
            weight = base.get_input_embeddings().weight
            weight[token] = weight[:token].mean(0)
