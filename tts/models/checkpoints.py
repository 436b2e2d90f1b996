"""Bundled names, local folders and hub ids, made into something transformers can load, or a clear error."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tts.demo import MODELS
from tts.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

MIB = 2**20


def locate(name: str) -> str:
    """A bundled model's folder, a local folder, or the name itself where it can be a hub id."""
    if name in MODELS:
        return str(MODELS[name])
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"the model folder {name} has no config.json; give a folder that save_pretrained wrote")
        return str(path)
    if path.exists() or path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        bundled = ", ".join(MODELS)
        raise InputError(f"no model at {name!r}: expected a bundled name ({bundled}), a folder, or a hub id such as org/model")
    return name


def load_config(name: str) -> dict[str, Any]:
    """The model's config.json."""
    from transformers.utils.hub import cached_file

    folder = locate(name)
    try:
        path = cached_file(folder, "config.json")
        config = json.loads(Path(str(path)).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read config.json of {name!r}: {first_line(error)}") from error
    if not isinstance(config, dict):
        raise InputError(f"config.json of {name!r} is not a JSON object")
    return config


def files(name: str) -> list[Path]:
    """What lies in a local or bundled model's folder; nothing for a hub id."""
    folder = Path(locate(name))
    return sorted(folder.iterdir()) if folder.is_dir() else []


def fingerprint(name: str) -> str | None:
    """What tells one version of a model from another: a hub revision, or a hash of a folder's config and weights.

    Of weights the names, sizes, and first and last megabytes are hashed, which reads large ones quickly. None where neither is
    at hand, as for a name that only a server knows.
    """
    try:
        place = locate(name)
        if not Path(place).is_dir():
            from transformers.utils.hub import cached_file

            config = Path(str(cached_file(place, "config.json", local_files_only=True)))
            return f"revision {config.parent.name}"
        digest = hashlib.sha256()
        for file in files(name):
            if file.suffix in (".json", ".safetensors", ".bin", ".pt"):
                digest.update(f"{file.name} {file.stat().st_size}\n".encode())
                with file.open("rb") as content:
                    digest.update(content.read(MIB))
                    if file.stat().st_size > MIB:
                        content.seek(-MIB, os.SEEK_END)
                        digest.update(content.read(MIB))
        return f"sha256 {digest.hexdigest()}"
    except (OSError, InputError):
        return None


def is_reward_model(config: dict[str, Any]) -> bool:
    """Whether the weights end in a reward head instead of a vocabulary."""
    architecture = "".join(config.get("architectures") or [])
    return "RewardModel" in architecture or "ForTokenClassification" in architecture


def load_policy_config(name: str) -> dict[str, Any]:
    """config.json of a model that is to generate. Raises InputError for a reward model."""
    config = load_config(name)
    if is_reward_model(config):
        raise InputError(f"{name!r} is a reward model, not a policy: give it as --scorer, and a language model as --model")
    return config


def context_length(config: dict[str, Any]) -> int | None:
    """Positions that the model attends over all of: its context, or its sliding window where it has one."""
    text = config.get("text_config") or config
    kinds = set(text.get("layer_types") or (["sliding_attention"] if text.get("use_sliding_window", True) else []))
    window = text.get("sliding_window") if "sliding_attention" in kinds else None
    limits = [limit for limit in (text.get("max_position_embeddings"), window) if limit]
    return min(limits) if limits else None


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The model's tokenizer; no remote code."""
    from transformers import AutoTokenizer

    folder = locate(name)
    if Path(folder).is_dir() and not any(Path(folder).glob("*tokenizer*")):
        raise InputError(f"the model folder {name} has no tokenizer; copy tokenizer.json and tokenizer_config.json into it")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"cannot load the tokenizer of {name!r}: {first_line(error)}") from error
    return tokenizer


def decoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[int]], str]:
    """A function from token ids to their text, special tokens left out and white space as it is.

    Goes straight to the Rust tokenizer where the model's own has nothing to add: several times as fast for short texts, and
    every step of every sample is one.
    """
    from transformers import PreTrainedTokenizerFast as Fast

    kind = type(tokenizer)
    if isinstance(tokenizer, Fast) and (kind.decode, kind._decode) == (Fast.decode, Fast._decode):
        return partial(tokenizer.backend_tokenizer.decode, skip_special_tokens=True)
    decode: Any = tokenizer.decode
    return partial(decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def load_weights(
    cls: Any, name: str, *, device: str = "auto", dtype: str = "auto", device_map: Any = None, **options: Any
) -> Any:
    """`cls.from_pretrained`, failing where a weight that the class needs is not in the files.

    `device` is auto (CUDA, else Apple's MPS, else the CPU), cpu, cuda, cuda:1, mps …; `dtype` is auto (the checkpoint's),
    float32, bfloat16 or float16; `device_map` spreads a model over devices, as accelerate reads it (auto, balanced, …).
    """
    import torch
    from transformers.utils import logging

    place = find_device(device)
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    logging.disable_progress_bar()  # it would tear the live view
    try:
        if device_map is not None:
            options["device_map"] = device_map
        model, info = cls.from_pretrained(locate(name), output_loading_info=True, dtype=dtype, **options)
        if device_map is None:
            model = model.to(place)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise InputError(
            f"{name!r} does not fit into the memory of {place}: try dtype=bfloat16, another device or a smaller model"
        ) from error
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise InputError(f"cannot load the weights of {name!r}: {first_line(error)}") from error
    if missing := sorted(info["missing_keys"]):
        shown = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
        raise InputError(f"the weights of {name!r} lack {len(missing)} of the tensors that {cls.__name__} needs: {shown}")
    return model.eval()


def locate_adapter(name: str) -> str:
    """A LoRA folder, or the name itself where it can be a hub id."""
    path = Path(name).expanduser()
    if (path / "adapter_config.json").is_file():
        return str(path)
    if path.exists() or path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise InputError(f"no adapter at {name!r}: expected a folder that peft's save_pretrained wrote, or a hub id")
    return name


def adapter_rank(name: str) -> int:
    """The rank of a LoRA adapter, rounded up to one that vLLM knows."""
    from transformers.utils.hub import cached_file

    try:
        rank = int(json.loads(Path(str(cached_file(locate_adapter(name), "adapter_config.json"))).read_text())["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot read adapter_config.json of {name!r}: {first_line(error)}") from error
    return next((known for known in (8, 16, 32, 64, 128, 256, 320, 512) if known >= rank), rank)


def merge_adapter(model: Any, name: str) -> Any:
    """The model with a LoRA adapter added to its weights."""
    folder = locate_adapter(name)
    try:
        from peft import PeftModel
    except ImportError:
        raise InputError("--adapter needs peft; install it with: pip install 'tts-toolkit[lora]'") from None
    try:
        return PeftModel.from_pretrained(model, folder).merge_and_unload().eval()
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise InputError(f"cannot put the adapter {name!r} on this model: {first_line(error)}") from error


def check_number(option: str, value: Any, least: float, *, whole: bool = False) -> None:
    """Raise InputError for an argument from the command line that is no number, or too small."""
    fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not fits or not least <= value < float("inf"):
        raise InputError(f"{option} is {value!r}; it should be a {'whole ' if whole else ''}number, at least {least:g}")


DTYPES = ("auto", "float32", "bfloat16", "float16")


def find_device(name: str) -> torch.device:
    """auto, cpu, cuda, cuda:1, mps … as a device that is here. Raises InputError."""
    import torch

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or not available.get(device.type):
        here = ", ".join(kind for kind, there in available.items() if there)
        raise InputError(f"device is {name!r}; expected auto or one that is here: {here}")
    return device


def room(context: int, prefix: int) -> int:
    """New tokens that fit behind a prefix. Raises InputError where none does."""
    if prefix >= context:
        raise InputError(f"a prompt of {prefix} tokens leaves no room in the model's context of {context}")
    return context - prefix


def first_line(error: Exception) -> str:
    """What an error says first; libraries say a lot."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
