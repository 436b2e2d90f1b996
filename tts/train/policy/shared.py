"""A policy that is trained: its weights, its prompts as inference has them, and the folder that it becomes."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, Trainer

from tts.errors import InputError
from tts.models import checkpoints
from tts.models.prompts import Prompter
from tts.show.console import warn
from tts.solving.generator import cut_opener
from tts.train.settings import Training
from tts.train.trainer import is_first, lora_config
from tts.types import Problem

ADAPTER = "adapter"
"""Where in its folder the adapter of a policy lies that was trained by LoRA."""


class Prompts(Prompter):
    """A policy's prompts, and what of a completion its chat template writes itself."""

    def __init__(self, model: str, system: str | None = None) -> None:
        self.config = checkpoints.load_policy_config(model)
        super().__init__(model, system)
        reader: Any = self
        _, opened = cut_opener(reader, self.encode(Problem("", "?")))
        self.opener = opened.text if opened is not None else ""
        """`<think>` and white space, where the template opens the thinking; else nothing."""

    @property
    def context(self) -> int:
        """Tokens of prompt and completion together."""
        return checkpoints.context_length(self.config) or 2**20

    def completion(self, token_ids: list[int]) -> str:
        """The text of drawn tokens, with what the template opened for them: what scorers and graders read at inference."""
        return self.opener + self.decode(token_ids)


def require_trl() -> None:
    """Raise InputError where what trains policies is not installed."""
    try:
        import datasets  # noqa: F401
        import trl  # noqa: F401
    except ImportError as error:
        raise InputError(f"this needs {error.name}; install it with: pip install 'tts-toolkit[train]'") from None


def load(model: str) -> Any:
    """The policy's weights in float32, on the CPU: trainers move them. Raises InputError."""
    policy = checkpoints.load_weights(AutoModelForCausalLM, model, device="cpu", dtype="float32")
    return policy.train()


def adapters(settings: Training) -> Any:
    """PEFT's configuration for a policy, or None for all weights. Raises InputError."""
    if settings.lora is not None and settings.optimizer == "muon":
        raise InputError("--optimizer muon moves whole matrices, of which --lora trains none; leave one of the two away")
    return lora_config(settings, task_type="CAUSAL_LM")


def save(trainer: Trainer, settings: Training, model: str) -> None:
    """Write the folder that `tts run --model` takes: weights in the precision that they came in, tokenizer, chat template.

    Adapters are kept in ADAPTER and merged into a fresh copy of the policy. Every process of a training calls it.
    """
    dtype = checkpoints.load_config(model).get("dtype") or checkpoints.load_config(model).get("torch_dtype") or "float32"
    if settings.lora is not None:
        trainer.save_model(str(settings.out / ADAPTER))
        if is_first():
            merged = checkpoints.load_weights(AutoModelForCausalLM, model, device="cpu", dtype="float32")
            merged = checkpoints.merge_adapter(merged, str(settings.out / ADAPTER))
            merged.to(getattr(torch, dtype)).save_pretrained(settings.out)
    else:
        if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
            trained: Any = trainer.model
            trained.to(getattr(torch, dtype))
        trainer.save_model(str(settings.out))
    if is_first():
        checkpoints.load_tokenizer(model).save_pretrained(settings.out)  # as it was: trainers set a padding token
        for folder in (settings.out, settings.out / ADAPTER):
            (folder / "training_args.bin").unlink(missing_ok=True)


def history(trainer: Trainer, name: str) -> list[float]:
    """What was logged under a name, oldest first."""
    return [row[name] for row in trainer.state.log_history if row.get(name) is not None]


def say(text: str) -> None:
    """A warning from one process of many."""
    if is_first():
        warn(text)
