"""Find and load checkpoints, which are given as a bundled name, a local folder or a hub id.

`name` is such a name in all functions here. If something cannot be found or loaded, they raise InputError, whose message is
meant for the command line.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tts.demo import MODELS
from tts.errors import InputError
from tts.models.hashes import hash_of_files
from tts.models.untrusted import OF_CONFIG, check_config, check_small, read_json, reading
from tts.trajectory import TAGS

if TYPE_CHECKING:
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
    """Return the model's config.json. Raises InputError if it cannot be read, or has a value that no model has."""
    config = read_json(need_file(name, "config.json"), f"config.json of {name!r}")
    check_config(config, f"config.json of {name!r}")
    return config


def find_file(name: str, file: str) -> Path | None:
    """Return the path of a file of a local folder or hub repository; None if it has none, or it cannot be had."""
    from transformers.utils.hub import cached_file

    with suppress(OSError):
        found = cached_file(locate(name), file, _raise_exceptions_for_missing_entries=False)
        return None if found is None else Path(str(found))
    return None


def need_file(name: str, file: str) -> Path:
    """Return the path of a file of a local folder or hub repository. Raises InputError if it cannot be had."""
    from transformers.utils.hub import cached_file

    folder = locate(name)
    with reading(f"cannot read {file} of {name!r}"):
        return Path(str(cached_file(folder, file)))


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
            found = [file for file in folder.iterdir() if file.suffix in WEIGHTS and file.name not in NOTES and file.is_file()]
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
    if Path(folder).is_dir():
        if not any(Path(folder).glob("*tokenizer*")):
            raise InputError(f"the model folder {name} has no tokenizer; copy tokenizer.json and tokenizer_config.json into it")
        load_config(name)  # transformers reads it as well, and makes lists as long as it says
    with reading(f"cannot load the tokenizer of {name!r}", unsaid=OF_CONFIG):
        for file in files(name):
            if "token" in file.name or file.suffix == ".jinja":
                check_small(file)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
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


def check_number(option: str, value: Any, least: float, *, whole: bool = False) -> None:
    """Raise InputError unless the value of a command-line option is a finite number, or a `whole` one, of at least `least`."""
    fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not fits or not least <= value < float("inf"):
        raise InputError(f"{option} is {value!r}; it should be a {'whole ' if whole else ''}number, at least {least:g}")


def room(context: int, prefix: int) -> int:
    """Return how many new tokens fit into the context after a prefix of so many tokens. Raises InputError if none does."""
    if prefix >= context:
        raise InputError(f"a prompt of {prefix} tokens leaves no room in the model's context of {context}")
    return context - prefix
