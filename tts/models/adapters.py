"""LoRA adapters, which are given as a local folder or a hub id."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

from tts.errors import InputError
from tts.models.bounded import bounded
from tts.models.untrusted import MOST, check_finite, read_json, reading, shapes_in

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
"""Files with the weights of an adapter, in the order in which peft looks for them."""


def locate_adapter(name: str) -> str:
    """Return the path of a LoRA adapter's folder, or `name` itself if it can be a hub id. Raises InputError otherwise."""
    path = Path(name).expanduser()
    if (path / "adapter_config.json").is_file():
        return str(path)
    if path.exists() or path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise InputError(f"no adapter at {name!r}: expected a folder that peft's save_pretrained wrote, or a hub id")
    return name


def adapter_config(name: str) -> dict[str, Any]:
    """Return adapter_config.json of a LoRA adapter. Raises InputError if it is none, or names code to import."""
    from transformers.utils.hub import cached_file

    what = f"adapter_config.json of {name!r}"
    with reading(f"cannot read {what}"):
        path = Path(str(cached_file(locate_adapter(name), "adapter_config.json")))
    config = read_json(path, what)
    if config.get("peft_type") != "LORA" or config.get("megatron_config") is not None:
        kind = config.get("peft_type") if config.get("megatron_config") is None else "LORA with megatron"
        raise InputError(f"the adapter {name!r} is of the kind {kind!r}; expected LORA")
    for rank in _ranks(config):
        if not isinstance(rank, int) or not 1 <= rank <= MOST:
            raise InputError(f"{what} has the rank {rank!r}; expected a whole number from 1 to {MOST}")
    return config


def _ranks(config: dict[str, Any]) -> list[Any]:
    """Return the rank of an adapter, and those that some of its layers have."""
    pattern = config.get("rank_pattern") or {}
    return [config.get("r", 8), *(pattern.values() if isinstance(pattern, dict) else [pattern])]


def adapter_rank(name: str) -> int:
    """Return the rank of a LoRA adapter, rounded up to one that vLLM supports."""
    rank = max(_ranks(adapter_config(name)))
    return next((known for known in (8, 16, 32, 64, 128, 256, 320, 512) if known >= rank), rank)


def merge_adapter(model: Any, name: str) -> Any:
    """Return the model with a LoRA adapter merged into its weights. Raises InputError if the adapter does not fit it."""
    folder, config = locate_adapter(name), adapter_config(name)
    try:
        from peft import PeftModel
    except ImportError:
        raise InputError("--adapter needs peft; install it with: pip install 'tts-toolkit[lora]'") from None
    if isinstance(pattern := config.get("target_modules"), str):
        modules = [module for module, _ in model.named_modules()]
        with reading(f"target_modules of the adapter {name!r}"):  # a pattern can take longer than the age of the universe
            bounded(lambda: str(sum(re.fullmatch(pattern, module) is not None for module in modules)))
    with reading(f"cannot merge the adapter {name!r} into this model"), warnings.catch_warnings():
        if Path(folder).is_dir():
            _check_rank(Path(folder), config)
        warnings.filterwarnings("error", message="Found missing adapter keys")
        adapted = PeftModel.from_pretrained(model, folder)
        own = ((key, value) for key, value in adapted.named_parameters() if "lora_" in key)
        check_finite(own, f"the weights of the adapter {name!r}")
        return adapted.merge_and_unload().eval()


def _check_rank(folder: Path, config: dict[str, Any]) -> None:
    """Raise InputError for a rank that the weights do not have: peft makes room for all of it first."""
    file = next((file for weights in WEIGHTS if (file := folder / weights).is_file()), None)
    if file is None:
        raise InputError(f"the adapter folder {folder} has no {WEIGHTS[0]}")
    stored = max((min(shape) for shape in shapes_in(file).values() if shape), default=0)
    if (rank := max(_ranks(config))) > stored:
        raise ValueError(f"its config says rank {rank}, and its weights have {stored}")
