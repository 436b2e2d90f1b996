"""A PRM in training: a body, a step head in the layout of ReasonFlux-PRM-7B, a trace head in that of the 1.5B, or both."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import AddedToken
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import AutoModelForCausalLM, Qwen2ForCausalLM

from tts.errors import InputError
from tts.models import checkpoints
from tts.scorers.heads import TRACE_HEAD
from tts.scorers.modeling import Qwen2ForProcessRewardModel
from tts.train.trainer import lora_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tts.train.settings import TrainPRMSettings

SEPARATOR = "<extra_0>"


def errors(margins: Tensor, targets: Tensor, loss: str) -> Tensor:
    """The loss of each reward, in float32: squared error of sigmoid(margin), or cross-entropy with a soft target.

    Of two classes the margin is the difference of their logits, so that this is their softmax and their cross-entropy too.
    """
    margins = margins.float()
    if loss == "mse":
        return (margins.sigmoid() - targets).square()
    return binary_cross_entropy_with_logits(margins, targets, reduction="none")


class RewardModel(nn.Module):
    """What is trained. `base` is the model that will be saved, the step head in it; the trace head is saved beside it."""

    def __init__(self, base: Any, head: str) -> None:
        super().__init__()
        self.base, self.by_step = base, head != "trace"
        self.reward_head = None if head == "step" else _fresh(nn.Linear(base.config.hidden_size, 1), base.config)

    def forward(self, input_ids: Tensor, at: Tensor, whole: Tensor, **kwargs: Tensor) -> Tensor:
        """Margins [n], float32, at the positions `at` [n] of the flattened ids; `whole` [n] says which rate a trace."""
        hidden = self.base.base_model(input_ids=input_ids, use_cache=False, **kwargs).last_hidden_state.flatten(0, 1)[at]
        with torch.autocast(hidden.device.type, enabled=False):  # heads are small, and rewards close to 1 want their digits
            hidden = hidden.float()
            trace: Tensor | None = self.reward_head(hidden)[:, 0] if self.reward_head is not None else None
            if not self.by_step:
                assert trace is not None
                return trace
            logits: Tensor = self.base.score(hidden)
            margins = logits[:, 1] - logits[:, 0]
            # both heads at every position: then each has a gradient in every batch, as several processes need it
            return margins if trace is None else torch.where(whole, trace, margins)

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """As transformers' trainer calls it."""
        self.base.gradient_checkpointing_enable(**options)

    def merge_adapters(self) -> None:
        """Add LoRA adapters to the weights that they are on."""
        for name, module in list(self.base.named_modules()):
            if hasattr(module, "get_base_layer"):
                module.merge()
                self.base.set_submodule(name, module.get_base_layer())

    def save(self, out: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """A folder that `--scorer` loads."""
        if self.reward_head is not None:
            torch.save({name: tensor.cpu() for name, tensor in self.reward_head.state_dict().items()}, out / TRACE_HEAD)
        tokenizer.save_pretrained(out)
        self.base.save_pretrained(out)


def check_architecture(settings: TrainPRMSettings) -> dict[str, Any]:
    """config.json of the model to start from. Raises InputError where it has no layout for the head."""
    config = checkpoints.load_config(settings.model)
    kind = ", ".join(config.get("architectures") or ["an unnamed architecture"])
    if checkpoints.is_reward_model(config) and (settings.head != "step" or "Qwen2ForProcessRewardModel" not in kind):
        raise InputError(
            f"{settings.model!r} is a reward model ({kind}): --head step goes on with those of Qwen2ForProcessRewardModel;"
            " give a language model as --model"
        )
    if settings.head != "trace" and config.get("model_type") != "qwen2":
        raise InputError(
            f"{settings.model!r} is {kind}, and the layout of a step head needs a Qwen2 model, such as"
            " Qwen/Qwen2.5-1.5B-Instruct; --head trace takes any language model"
        )
    return config


def load_tokenizer(settings: TrainPRMSettings) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with the token that steps are read at."""
    tokenizer = checkpoints.load_tokenizer(settings.model)
    if settings.head != "trace" and SEPARATOR not in tokenizer.get_vocab():
        tokenizer.add_tokens([AddedToken(SEPARATOR, normalized=False, special=True)], special_tokens=True)
    return tokenizer


def load_model(settings: TrainPRMSettings, tokenizer: PreTrainedTokenizerBase) -> RewardModel:
    """Body and heads, in float32 on the CPU; new heads are drawn from torch's generator. Raises InputError."""
    adapters = lora_config(settings)
    base = _load_base(settings)
    if settings.over != "all" or hasattr(base.config, "score_over"):
        base.config.score_over = settings.over
    if settings.head != "trace":
        _make_room(base, tokenizer, checkpoints.load_tokenizer(settings.model))
    model = RewardModel(base, settings.head)
    output = base.get_output_embeddings()
    if output is not None and output.weight is not base.get_input_embeddings().weight:
        output.weight.requires_grad_(False)  # saved as it was: nothing is learnt there
    if adapters is not None:
        from peft import inject_adapter_in_model

        inject_adapter_in_model(adapters, base.base_model)
    return model


def _load_base(settings: TrainPRMSettings) -> Any:
    options: dict[str, Any] = {"device": "cpu", "dtype": "float32"}
    if settings.head == "trace":
        return checkpoints.load_weights(AutoModelForCausalLM, settings.model, **options)
    if checkpoints.is_reward_model(checkpoints.load_config(settings.model)):
        return checkpoints.load_weights(Qwen2ForProcessRewardModel, settings.model, **options)
    policy = checkpoints.load_weights(Qwen2ForCausalLM, settings.model, **options)
    with torch.device("meta"):
        base = Qwen2ForProcessRewardModel(policy.config)
    base.model = policy.model
    base.score.to_empty(device="cpu")
    for layer in base.score:
        _fresh(layer, policy.config)
    return base


def _fresh(layer: Any, config: Any) -> Any:
    """The layer with new weights, as the model's own layers begin."""
    if isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, std=getattr(config, "initializer_range", 0.02))
        nn.init.zeros_(layer.bias)
    return layer


def _make_room(base: Any, tokenizer: PreTrainedTokenizerBase, before: PreTrainedTokenizerBase) -> None:
    """A row for the separator where the tokenizer had none: it begins as the mean of those before it."""
    if base.get_input_embeddings().num_embeddings < len(tokenizer):
        base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if SEPARATOR not in before.get_vocab():
        token = int(tokenizer.convert_tokens_to_ids(SEPARATOR))  # type: ignore[arg-type]
        with torch.no_grad():
            weight = base.get_input_embeddings().weight
            weight[token] = weight[:token].mean(0)
