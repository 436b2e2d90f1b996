"""Files that others wrote: nothing in them is executed, and whatever is wrong with them is told in one line.

What can be known from a checkpoint's small files and from the headers of its large ones is checked here before anything is
built from them, since a number in config.json can ask for any amount of memory.
"""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from tts.errors import InputError

if TYPE_CHECKING:
    import torch

SMALL = 256 * 2**20
"""Largest size of a file that is read whole (config.json, tokenizer.json, …), in bytes."""

OF_CONFIG = r"configuration_utils|rope_utils|: Model config"
"""Messages of transformers on a config, which it repeats whenever it reads it."""

SAID = 300
"""Characters of a library's message that are shown."""

UNFORESEEN = (LookupError, AttributeError, TypeError, ArithmeticError, AssertionError)
"""Errors of a library that did not check what it was given; their messages say little."""

POSITIVE = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
"""Numbers of config.json that are at least 1, where they are given."""

COUNTS = re.compile(r"(^|_)(layers?|blocks|stages|experts|heads?|labels)$")
"""Numbers of config.json for each of which transformers makes an object, at the latest when it builds the model."""
MOST = 4096
"""Largest value of such a number."""

KINDS: Mapping[str, tuple[Any, str]] = {
    "model_type": (str, "a string"),
    "transformers_weights": (str, "the name of a file"),
    "architectures": (list, "a list of strings"),
    "layer_types": (list, "a list of strings"),
    "text_config": (dict, "a JSON object"),
    "sliding_window": (int, "a whole number"),
    **dict.fromkeys(POSITIVE, (int, "a whole number")),
}
"""Values of config.json that are read here, and what they are; null is as if they were not given."""

PER_BYTE = 8
"""Most parameters that a byte of weights can stand for: the most that any quantisation packs into it."""


def reason(error: BaseException) -> str:
    """Return the cause of a library's error in one line of printable text."""
    text = str(error)
    if isinstance(error, UnpicklingError):
        return "it holds Python objects other than tensors, which could run code; convert it to safetensors where you trust it"
    if "trust_remote_code" in text:
        return "it needs Python code of its own, which tts does not run; use a model of an architecture that transformers has"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    said = " ".join("".join(one if one.isprintable() else " " for one in text).split())
    if not said or isinstance(error, UNFORESEEN):
        said = f"{type(error).__name__}: {said}".removesuffix(": ")
    return said if len(said) <= SAID else said[:SAID] + " …"


@contextmanager
def reading(what: str, *, unsaid: str = r"(?!)") -> Iterator[None]:
    """Raise InputError, which says `what` failed and why, for whatever a library raises over a file that is broken.

    A file of that kind can make a library raise anything, and panics of Rust libraries are not even an Exception. What
    libraries log and warn of comes after the block, and not at all if it fails, since the error is to be one line.

    Args:
        what: What failed, if anything does: "cannot load …".
        unsaid: A pattern of "logger: message" for messages of transformers that are left out in any case.
    """
    try:
        with _held(unsaid):
            yield
    except InputError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        hint = " (a file has a value that was not expected)" if isinstance(error, UNFORESEEN) else ""
        raise InputError(f"{what}: {reason(error)}{hint}") from error


@contextmanager
def _held(unsaid: str) -> Iterator[None]:
    """Hold back what transformers logs, and warnings, until the block has succeeded."""
    records: list[logging.LogRecord] = []

    def hold(record: logging.LogRecord) -> bool:
        records.append(record)
        return False

    handlers = list(logging.getLogger("transformers").handlers)
    for handler in handlers:
        handler.addFilter(hold)
    try:
        with warnings.catch_warnings(record=True) as warned:
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(hold)
    for one in warned:
        warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    for record in records:
        if not re.search(unsaid, f"{record.name}: {record.getMessage()}"):
            logging.getLogger(record.name).handle(record)


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Return the JSON object in a file. Raises InputError, which calls the file `what`, if there is none."""
    with reading(f"cannot read {what}"):
        check_small(path)
        found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise InputError(f"{what} is not a JSON object")
    return found


def check_small(path: Path) -> None:
    """Raise InputError for a file that is too large to be what its name says."""
    if (size := path.stat().st_size) > SMALL:
        raise InputError(f"{path.name} has {size:,} bytes; expected less than {SMALL:,}")


def check_config(config: Any, what: str) -> None:
    """Raise InputError for a value in a config, or in one inside it, that no model has."""
    if isinstance(config, list):
        for item in config:
            check_config(item, what)
    if not isinstance(config, dict):
        return
    for key, value in config.items():
        if value is None:
            continue
        kind, expected = KINDS.get(key, (object, ""))
        fits = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
        if not fits or (kind is list and not all(isinstance(item, str) for item in value)):
            raise InputError(f"{what} has {key} {_short(value)}; expected {expected}")
        if key in POSITIVE and value < 1:
            raise InputError(f"{what} has {key} {_short(value)}; expected a whole number, at least 1")
        if COUNTS.search(key) and isinstance(value, int) and value > MOST:
            raise InputError(f"{what} has {key} {_short(value)}; expected at most {MOST}")
        check_config(value, what)


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a file of weights, by name. Of *.safetensors, only the header is read.

    Raises, as `tensors_in`, whatever the libraries raise for a broken file; the caller is `reading`.
    """
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="pt") as tensors:
            return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
    return {key: tuple(tensor.shape) for key, tensor in _unpickled(path, "meta").items()}


def tensors_in(path: Path, prefix: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a file of weights whose names begin with `prefix`, by name."""
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="pt") as tensors:
            return {key: tensors.get_tensor(key) for key in tensors.keys() if key.startswith(prefix)}  # noqa: SIM118
    return {key: tensor for key, tensor in _unpickled(path, "cpu").items() if key.startswith(prefix)}


def _unpickled(path: Path, device: str) -> dict[str, torch.Tensor]:
    """Return the tensors in a file of torch's, by name. Anything else in it is refused, or left out."""
    import torch

    found = torch.load(path, map_location=device, weights_only=True)
    if not isinstance(found, dict):
        raise ValueError("it does not hold tensors by name")
    return {str(key): value for key, value in found.items() if isinstance(value, torch.Tensor)}


def shards_of(index: Path, what: str) -> list[str]:
    """Return the names of the files that the index of a checkpoint lists. Raises InputError if it lists none."""
    where = read_json(index, what).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(file, str) for file in where.values()):
        raise InputError(f"{what} has no weight_map of tensors to files")
    return sorted(set(where.values()))


def check_finite(tensors: Iterable[tuple[str, torch.Tensor]], what: str) -> None:
    """Raise InputError if a tensor has a NaN or an infinity. Each is read once, at the speed of memory."""
    import torch

    ends = {}
    for name, tensor in tensors:
        # float8 has neither of the two operations, and quantised weights are integers
        if tensor.is_floating_point() and tensor.element_size() > 1 and not tensor.is_meta and tensor.numel():
            ends[name] = torch.stack(torch.aminmax(tensor.detach())).isfinite().all()
    if broken := [name for name, whole in ends.items() if not whole]:
        raise InputError(
            f"{what} are broken: {listed(broken)} {'has' if len(broken) == 1 else 'have'} NaN or infinity in place of numbers"
        )


def listed(names: Iterable[str], most: int = 3) -> str:
    """Return names for a message, the first ones of many."""
    found = list(names)
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "…"
