"""Load the weights of checkpoints, which are given as a bundled name, a local folder or a hub id."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig
from transformers.utils import logging as hub_logging
from transformers.utils.hub import cached_files

from tts.errors import InputError
from tts.models.checkpoints import find_file, load_config, locate
from tts.models.untrusted import OF_CONFIG, PER_BYTE, check_finite, listed, reading, shapes_in, shards_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOG = logging.getLogger(__name__)

DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_weights(
    cls: Any, name: str, *, device: str = "auto", dtype: str = "auto", device_map: Any = None, apart: str = "", **options: Any
) -> Any:
    """Load a model with `cls.from_pretrained`, and set it to evaluation mode.

    Args:
        cls: A transformers class with `from_pretrained`.
        name: A bundled model's name, a folder or a hub id.
        device: auto (CUDA if available, else MPS, else the CPU), cpu, cuda, cuda:1, mps, ….
        dtype: auto (that of the checkpoint), float32, bfloat16 or float16.
        device_map: Spreads the model over devices, as in accelerate (auto, balanced, …). It replaces `device`.
        apart: How the names of tensors begin that the caller reads on its own; others that are not used are warned of.
        **options: Further arguments of `from_pretrained`.

    Raises:
        InputError: The weights cannot be read, lack a tensor that the class needs, have one of another shape or with NaN or
            infinity, or do not fit into memory; or `device` or `dtype` has a wrong value.
    """
    place = find_device(device)
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    hub_logging.disable_progress_bar()  # it would break the live view
    check_size(cls, name)
    if device_map is not None:
        options["device_map"] = device_map
    try:
        with reading(f"cannot load the weights of {name!r}", unsaid="LOAD REPORT"):  # what is in it is said below, in a line
            model, info = cls.from_pretrained(
                locate(name), output_loading_info=True, dtype=dtype, trust_remote_code=False, ignore_mismatched_sizes=True,
                **options,
            )  # fmt: skip
            if device_map is None:
                model = model.to(place)
    except InputError as error:
        cause = error.__cause__
        if isinstance(cause, torch.OutOfMemoryError | MemoryError):
            error = InputError(
                f"{name!r} does not fit into the memory of {place}; try dtype=bfloat16, another device or a smaller model"
            )
        if isinstance(cause, TypeError) and any(f"'{option}'" in str(cause) for option in options):
            raise cause from None  # the caller's mistake, not the checkpoint's
        raise error from cause
    if wrong := sorted(info["mismatched_keys"]):
        shown = listed(f"{key} is {list(found)} and should be {list(wanted)}" for key, found, wanted in wrong)
        raise InputError(f"the weights of {name!r} do not have the shapes that its config.json says: {shown}")
    if missing := sorted(info["missing_keys"]):
        raise InputError(
            f"the weights of {name!r} lack {len(missing)} of the tensors that {type(model).__name__} needs: {listed(missing)}"
        )
    if unused := sorted(key for key in info["unexpected_keys"] if not (apart and key.startswith(apart))):
        LOG.warning("tts: %s does not use %d tensors of %s: %s", type(model).__name__, len(unused), name, listed(unused))
    check_finite(model.named_parameters(), f"the weights of {name!r}")
    return model.eval()


def weight_files(name: str) -> list[Path]:
    """Return the files with a model's weights, as transformers chooses them. Raises InputError if an index lists others."""
    named = load_config(name).get("transformers_weights")
    for whole in (*([named.removesuffix(".index.json")] if named else []), "model.safetensors", "pytorch_model.bin"):
        if (file := find_file(name, whole)) is not None:
            return [file]
        if (index := find_file(name, f"{whole}.index.json")) is not None:
            shards = shards_of(index, f"{index.name} of {name!r}")
            with reading(f"cannot read the weights of {name!r}"):
                found = cached_files(locate(name), shards, _raise_exceptions_for_missing_entries=False) or []
            if lacking := sorted({*shards} - {Path(file).name for file in found}):
                raise InputError(f"{name!r} lacks {len(lacking)} of {len(shards)} files with weights: {listed(lacking)}")
            return [Path(file) for file in found]
    return []


def check_weights(name: str) -> int:
    """Return the size of a model's weights in bytes. Raises InputError if a file is missing, or is not what it should be."""
    size = 0
    for file in weight_files(name):
        with reading(f"cannot read {file.name} of {name!r}"):
            size += file.stat().st_size
            shapes_in(file)
    return size


def check_size(cls: Any, name: str) -> None:
    """Raise InputError if config.json describes a model of which the weights can only be a small part.

    transformers allocates what it does not find. The model is made without memory here, in about 0.1 s for 80 layers.
    """
    load_config(name)
    if find_file(name, "adapter_config.json") is not None:  # transformers would load the model that this names
        raise InputError(f"{name!r} holds a LoRA adapter; give it as --adapter, and the model that it is for as --model")
    stored = check_weights(name)
    if not stored and Path(locate(name)).is_dir():
        raise InputError(f"the model folder {name} has no model.safetensors or pytorch_model.bin")
    with reading(f"cannot load the model {name!r}", unsaid=OF_CONFIG), torch.random.fork_rng([]), torch.device("meta"):
        config = AutoConfig.from_pretrained(locate(name), trust_remote_code=False)
        auto = hasattr(cls, "from_config")
        model = cls.from_config(config, trust_remote_code=False) if auto else cls._from_config(config)
        needed = sum(parameter.numel() for parameter in model.parameters())
    if stored and needed > PER_BYTE * stored:
        raise InputError(
            f"config.json of {name!r} describes a model of {needed:,} parameters, but its weights have {stored:,} bytes"
        )


class Vocabulary:
    """The token ids that a model has embeddings of, which may be fewer than its tokenizer has tokens.

    Args:
        name: The model's name, for error messages.
        size: The number of its embeddings.
    """

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise InputError for a tokenizer whose ordinary tokens have no embedding. Of added tokens, some may be never used."""
        if (tokens := tokenizer.vocab_size) > self.size:
            raise InputError(
                f"the tokenizer of {self.name!r} has {tokens:,} tokens, but the model has embeddings of {self.size:,}; they do"
                " not belong together"
            )

    def check(self, ids: Sequence[int]) -> None:
        """Raise InputError for a token id that has no embedding."""
        if ids and (highest := max(ids)) >= self.size:
            raise InputError(
                f"the tokenizer of {self.name!r} gives the token id {highest}, but the model has only {self.size:,} embeddings"
            )


def is_exact(model: torch.nn.Module) -> bool:
    """Return whether the model's arithmetic can be the same to the last bit whatever it computes together: fp32 on the CPU."""
    return all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in model.parameters())


def find_device(name: str) -> torch.device:
    """Return the device of that name: auto (CUDA if available, else MPS, else the CPU), cpu, cuda, cuda:1, mps, ….

    Raises:
        InputError: This machine has no such device.
    """
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
