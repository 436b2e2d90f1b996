"""Bundled names, local folders and hub ids, made into something transformers can load, or a clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tts.demo import MODELS
from tts.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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


def load_weights(cls: Any, name: str, **options: Any) -> Any:
    """`cls.from_pretrained`, failing where a weight that the class needs is not in the files."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would tear the live view
    try:
        model, info = cls.from_pretrained(locate(name), output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"cannot load the weights of {name!r}: {first_line(error)}") from error
    if missing := sorted(info["missing_keys"]):
        shown = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
        raise InputError(f"the weights of {name!r} lack {len(missing)} of the tensors that {cls.__name__} needs: {shown}")
    return model.eval()


def room(context: int, prefix: int) -> int:
    """New tokens that fit behind a prefix. Raises InputError where none does."""
    if prefix >= context:
        raise InputError(f"a prompt of {prefix} tokens leaves no room in the model's context of {context}")
    return context - prefix


def first_line(error: Exception) -> str:
    """What an error says first; libraries say a lot."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
