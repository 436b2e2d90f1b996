"""What `tts sft` and `tts rl` share: loading a policy, encoding its prompts as inference does, and saving it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Trainer

from tts.errors import InputError
from tts.models import adapters, checkpoints, weights
from tts.models.prompts import Prompter
from tts.show.console import warn
from tts.solving.generator import cut_opener
from tts.train.settings import TrainingSettings
from tts.train.trainer import is_first, lora_config
from tts.types import Problem

ADAPTER = "adapter"
"""The subfolder for the adapter of a policy that was trained with LoRA."""


class PolicyPrompts(Prompter):
    """Encodes problems as prompts of a policy, and decodes its completions.

    Args:
        model: The policy: a bundled name, a folder or a hub id.
        **prompting: Further arguments of `Prompter`, such as the system prompt.
    """

    def __init__(self, model: str, **prompting: Any) -> None:
        self.config = checkpoints.load_policy_config(model)
        super().__init__(model, **prompting)
        reader: Any = self
        _, opened = cut_opener(reader, self.encode(Problem("", "?")))
        self.opener = opened.text if opened is not None else ""
        """`<think>` and the white space after it, if the chat template writes them at the end of a prompt; else empty."""

    @property
    def context(self) -> int:
        """The policy's context length, in tokens of prompt and completion together."""
        return checkpoints.context_length(self.config) or 2**20

    def completion(self, token_ids: list[int]) -> str:
        """Return the text of a completion as scorers and graders read it at inference: with the `opener` before it."""
        return self.opener + self.decode(token_ids)


def require_trl() -> None:
    """Raise InputError if TRL or datasets is not installed."""
    try:
        import datasets  # noqa: F401
        import trl  # noqa: F401
    except ImportError as error:
        raise InputError(f"this needs {error.name}; install it with: pip install 'tts-toolkit[train]'") from None


def load_policy(model: str) -> Any:
    """Return the policy in training mode, in float32 and on the CPU, from where trainers move it.

    Raises InputError if it cannot be loaded.
    """
    policy = weights.load_weights(AutoModelForCausalLM, model, device="cpu", dtype="float32")
    vocabulary = weights.Vocabulary(model, policy.get_input_embeddings().weight.shape[0])
    vocabulary.check_tokenizer(checkpoints.load_tokenizer(model))
    return policy.train()


def policy_adapters(settings: TrainingSettings) -> Any:
    """Return PEFT's configuration for a policy, or None to train all weights.

    Raises InputError if --lora is given together with --optimizer muon, or peft is not installed.
    """
    if settings.lora is not None and settings.optimizer == "muon":
        raise InputError("--optimizer muon updates whole weight matrices, but --lora freezes them; omit one of the two")
    return lora_config(settings, task_type="CAUSAL_LM")


def save_policy(trainer: Trainer, settings: TrainingSettings, model: str) -> None:
    """Write a folder that `tts run --model` loads: weights in the dtype of the original, tokenizer and chat template.

    A LoRA adapter is saved in the subfolder ADAPTER, and merged into a fresh copy of the policy. In distributed training every
    process must call this.

    Args:
        trainer: The trainer, after training.
        settings: The options of the command.
        model: The policy that the training started from.
    """
    dtype = checkpoints.load_config(model).get("dtype") or checkpoints.load_config(model).get("torch_dtype") or "float32"
    if settings.lora is not None:
        trainer.save_model(str(settings.out / ADAPTER))
        if is_first():
            merged = weights.load_weights(AutoModelForCausalLM, model, device="cpu", dtype="float32")
            merged = adapters.merge_adapter(merged, str(settings.out / ADAPTER))
            merged.to(getattr(torch, dtype)).save_pretrained(settings.out)
    else:
        if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
            trained: Any = trainer.model
            trained.to(getattr(torch, dtype))
        trainer.save_model(str(settings.out))
    if is_first():
        checkpoints.load_tokenizer(model).save_pretrained(settings.out)  # the original one: trainers set a padding token
        for folder in (settings.out, settings.out / ADAPTER):
            (folder / "training_args.bin").unlink(missing_ok=True)


def history(trainer: Trainer, name: str) -> list[float]:
    """Return the values that were logged under a name, oldest first."""
    return [row[name] for row in trainer.state.log_history if row.get(name) is not None]


def say(text: str) -> None:
    """Warn on stderr, from the first process of a distributed training alone."""
    if is_first():
        warn(text)


def summary(out: Path, trainer: Any, **more: Any) -> dict[str, Any]:
    """Return what a training reports as JSON: its folder, its steps, `more`, and the last value of everything it logged."""
    last = {name: value for row in trainer.state.log_history for name, value in row.items() if name not in ("step", "epoch")}
    return {"out": str(out), "steps": trainer.state.global_step, **more, "last": last}
