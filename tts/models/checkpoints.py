"""Find and load checkpoints, which are given as a bundled name, a local folder or a hub id.

`name` is such a name in all functions here. If something cannot be found or loaded, they raise InputError, whose message is
meant for the command line.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tts.demo import MODELS
from tts.errors import InputError
from tts.models.hashes import hash_of_files
from tts.trajectory import TAGS

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


def locate(name: str) -> str:
    """Return the path of a bundled model or a local folder, or `name` itself if it can be a hub id.

    Raises:
        InputError: The folder has no config.json, or the name is neither of the three.
    """
    if name in MODELS:
        return str(MODELS[name])
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"the model folder {name} has no config.json; expected a folder that save_pretrained wrote")
        return str(path)
    if path.exists() or path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        bundled = ", ".join(MODELS)
        raise InputError(f"no model at {name!r}: expected a bundled name ({bundled}), a folder, or a hub id such as org/model")
    return name


def load_config(name: str) -> dict[str, Any]:
    """Return the model's config.json. Raises InputError if it cannot be read."""
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
    """List the files of a local or bundled model's folder; the list is empty for a hub id."""
    folder = Path(locate(name))
    return sorted(folder.iterdir()) if folder.is_dir() else []


WEIGHTS = (".json", ".safetensors", ".bin", ".pt", ".pth", ".jinja", ".model", ".txt")
"""Files of a model's folder that change what it computes, by their endings."""
NOTES = ("training.json", "trainer_state.json")
"""Files of such an ending that do not: they tell how the model was trained."""


def fingerprint(name: str) -> str | None:
    """Return a string that identifies this version of a model or a LoRA adapter: its hub revision, or a hash of its folder.

    The hash covers the files of config, tokenizer and weights (`tts.models.hashes`). The result is None if the model is not on
    this machine, as for a name that only a server knows.
    """
    try:
        folder = Path(MODELS.get(name, name)).expanduser()
        if folder.is_dir():
            found = [file for file in folder.iterdir() if file.suffix in WEIGHTS and file.name not in NOTES]
            return f"sha256 {hash_of_files(found, folder)}"
        from transformers.utils.hub import cached_file

        for file in ("config.json", "adapter_config.json"):
            with suppress(OSError):
                if (cached := cached_file(locate(name), file, local_files_only=True)) is not None:
                    return f"revision {Path(str(cached)).parent.name}"
    except (OSError, ValueError):
        pass
    return None


def is_reward_model(config: dict[str, Any]) -> bool:
    """Return whether a model with this config.json has a reward head instead of an output layer over the vocabulary."""
    architecture = "".join(config.get("architectures") or [])
    return "RewardModel" in architecture or "ForTokenClassification" in architecture


def load_policy_config(name: str) -> dict[str, Any]:
    """Return config.json of a model that will generate text. Raises InputError for a reward model."""
    config = load_config(name)
    if is_reward_model(config):
        raise InputError(f"{name!r} is a reward model, not a policy: pass it as --scorer, and a language model as --model")
    return config


def context_length(config: dict[str, Any]) -> int | None:
    """Return the number of tokens over which the model has full attention, or None if its config.json does not say.

    This is its context, or its sliding window if it has one that is smaller.
    """
    text = config.get("text_config") or config
    kinds = set(text.get("layer_types") or (["sliding_attention"] if text.get("use_sliding_window", True) else []))
    window = text.get("sliding_window") if "sliding_attention" in kinds else None
    limits = [limit for limit in (text.get("max_position_embeddings"), window) if limit]
    return min(limits) if limits else None


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer, without running remote code. Raises InputError if it has none or it cannot be read."""
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
    """Return a function from token ids to text, with white space unchanged and without special tokens other than `kept_tags`.

    It calls the Rust tokenizer directly unless the model's tokenizer class overrides decoding. That is several times as fast
    for short texts, and every step of every sample is decoded.
    """
    from transformers import PreTrainedTokenizerFast as Fast

    kind = type(tokenizer)
    decode: Any = partial(tokenizer.decode, clean_up_tokenization_spaces=False)
    if isinstance(tokenizer, Fast) and (kind.decode, kind._decode) == (Fast.decode, Fast._decode):
        decode = tokenizer.backend_tokenizer.decode
    without_special = partial(decode, skip_special_tokens=True)
    kept = kept_tags(tokenizer)
    if not kept:
        return without_special

    def with_tags(token_ids: list[int]) -> str:
        parts, start = [], 0
        for end, token in enumerate(token_ids):
            if token in kept:
                parts += [without_special(token_ids[start:end]), kept[token]]
                start = end + 1
        return "".join([*parts, without_special(token_ids[start:])])

    return with_tags


def kept_tags(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Return the special tokens that stay in decoded text, by id: thinking tags, which tell thinking from a response."""
    added = {token: entry.content for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    tags = {tag for pair in TAGS for tag in pair}
    return {token: content for token, content in added.items() if content.strip() in tags}


def load_weights(
    cls: Any, name: str, *, device: str = "auto", dtype: str = "auto", device_map: Any = None, **options: Any
) -> Any:
    """Load a model with `cls.from_pretrained`, and set it to evaluation mode.

    Args:
        cls: A transformers class with `from_pretrained`.
        name: A bundled model's name, a folder or a hub id.
        device: auto (CUDA if available, else MPS, else the CPU), cpu, cuda, cuda:1, mps, ….
        dtype: auto (that of the checkpoint), float32, bfloat16 or float16.
        device_map: Spreads the model over devices, as in accelerate (auto, balanced, …). It replaces `device`.
        **options: Further arguments of `from_pretrained`.

    Raises:
        InputError: The weights cannot be read, lack a tensor that the class needs, or do not fit into memory; or `device` or
            `dtype` has a wrong value.
    """
    import torch
    from safetensors import SafetensorError
    from transformers.utils import logging

    place = find_device(device)
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    logging.disable_progress_bar()  # it would break the live view
    try:
        if device_map is not None:
            options["device_map"] = device_map
        model, info = cls.from_pretrained(locate(name), output_loading_info=True, dtype=dtype, **options)
        if device_map is None:
            model = model.to(place)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise InputError(
            f"{name!r} does not fit into the memory of {place}; try dtype=bfloat16, another device or a smaller model"
        ) from error
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise InputError(f"cannot load the weights of {name!r}: {first_line(error)}") from error
    if missing := sorted(info["missing_keys"]):
        shown = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
        raise InputError(f"the weights of {name!r} lack {len(missing)} of the tensors that {cls.__name__} needs: {shown}")
    return model.eval()


def is_exact(model: torch.nn.Module) -> bool:
    """Return whether the model's arithmetic can be the same to the last bit whatever it computes together: fp32 on the CPU."""
    import torch

    return all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in model.parameters())


def locate_adapter(name: str) -> str:
    """Return the path of a LoRA adapter's folder, or `name` itself if it can be a hub id. Raises InputError otherwise."""
    path = Path(name).expanduser()
    if (path / "adapter_config.json").is_file():
        return str(path)
    if path.exists() or path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise InputError(f"no adapter at {name!r}: expected a folder that peft's save_pretrained wrote, or a hub id")
    return name


def adapter_rank(name: str) -> int:
    """Return the rank of a LoRA adapter, rounded up to one that vLLM supports."""
    from transformers.utils.hub import cached_file

    try:
        rank = int(json.loads(Path(str(cached_file(locate_adapter(name), "adapter_config.json"))).read_text())["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot read adapter_config.json of {name!r}: {first_line(error)}") from error
    return next((known for known in (8, 16, 32, 64, 128, 256, 320, 512) if known >= rank), rank)


def merge_adapter(model: Any, name: str) -> Any:
    """Return the model with a LoRA adapter merged into its weights. Raises InputError if the adapter does not fit it."""
    folder = locate_adapter(name)
    try:
        from peft import PeftModel
    except ImportError:
        raise InputError("--adapter needs peft; install it with: pip install 'tts-toolkit[lora]'") from None
    try:
        return PeftModel.from_pretrained(model, folder).merge_and_unload().eval()
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise InputError(f"cannot merge the adapter {name!r} into this model: {first_line(error)}") from error


def check_number(option: str, value: Any, least: float, *, whole: bool = False) -> None:
    """Raise InputError unless the value of a command-line option is a finite number, or a `whole` one, of at least `least`."""
    fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not fits or not least <= value < float("inf"):
        raise InputError(f"{option} is {value!r}; it should be a {'whole ' if whole else ''}number, at least {least:g}")


DTYPES = ("auto", "float32", "bfloat16", "float16")


def find_device(name: str) -> torch.device:
    """Return the device of that name: auto (CUDA if available, else MPS, else the CPU), cpu, cuda, cuda:1, mps, ….

    Raises:
        InputError: This machine has no such device.
    """
    import torch

    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    counts = {"cuda": cuda, "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if name == "auto":
        name = next(kind for kind, count in counts.items() if count)
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or (device.index or 0) >= counts.get(device.type, 0):
        here = ", ".join(f"{kind}:0 to {kind}:{count - 1}" if count > 1 else kind for kind, count in counts.items() if count)
        raise InputError(f"device is {name!r}; expected auto or a device of this machine: {here}")
    return device


def room(context: int, prefix: int) -> int:
    """Return how many new tokens fit into the context after a prefix of so many tokens. Raises InputError if none does."""
    if prefix >= context:
        raise InputError(f"a prompt of {prefix} tokens leaves no room in the model's context of {context}")
    return context - prefix


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, since those of libraries can be long."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
