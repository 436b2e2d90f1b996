"""Reward heads: how each kind is loaded from a checkpoint, and what it makes of hidden states.

Probabilities are computed in float64, because those of good steps are so close to 1 that float32 would round them together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from tts.errors import InputError
from tts.models import checkpoints
from tts.scorers.modeling import Qwen2ForProcessRewardModel
from tts.scorers.readouts import TRACE_HEAD

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Head = Callable[[Tensor], Tensor]
"""Hidden states [n, size] to rewards [n]."""


class Heads(NamedTuple):
    """A checkpoint's decoder and its reward heads."""

    body: Any
    """The transformers model without its head."""
    step: Head
    """Rewards of steps."""
    final: Head | None = None
    """Rewards of whole traces, if the checkpoint has a separate head for them; else `step` is used."""


class LanguageModel(NamedTuple):
    """A checkpoint's decoder and its output layer."""

    body: Any
    """The transformers model without its head."""
    logits: Callable[[Tensor], Tensor]
    """Hidden states [n, size] to logits [n, vocabulary]."""


def two_classes(name: str, **options: Any) -> Heads:
    """Load a two-layer head, `score.0`, ReLU, `score.2`: a reward is the softmax of the two logits, class 1.

    A `reward_head.pt` beside it rates whole traces. `options` are those of `checkpoints.load_weights`, here and below. Raises
    InputError if the checkpoint has no such head.
    """
    shapes = head_shapes(name)
    if shapes is not None and "score.2.weight" not in shapes:
        kind = ", ".join(checkpoints.load_config(name).get("architectures") or ["unknown architecture"])
        if "score.weight" in shapes:
            raise InputError(
                f"the head of {name!r} is a single matrix ({kind}); a step PRM's head has the layers score.0 and score.2"
            )
        raise InputError(
            f"{name!r} has no reward head ({kind}): pass a language model as --model, and a process reward model as --scorer"
        )
    if shapes is not None and shapes["score.2.weight"][0] != 2:
        raise InputError(
            f"the head of {name!r} has {shapes['score.2.weight'][0]} outputs; a step PRM's head has 2, for wrong and right"
        )
    model = checkpoints.load_weights(Qwen2ForProcessRewardModel, name, **options)
    final = _sigmoid(_trace_head(name, model)) if _file(name, TRACE_HEAD, required=False) else None
    return Heads(model.model, _class_1(model.score), final)


def token_classes(name: str, **options: Any) -> Heads:
    """Load transformers' token classification head: a reward is the softmax of the two labels, label 1."""
    model = checkpoints.load_weights(AutoModelForTokenClassification, name, **options)
    if model.config.num_labels != 2:
        raise InputError(f"{name!r} has {model.config.num_labels} labels; a process reward model has 2, for wrong and right")
    return Heads(model.base_model, _class_1(getattr(model, "score", None) or model.classifier))


def two_tokens(name: str, tokenizer: PreTrainedTokenizerBase, good: str, bad: str, **options: Any) -> Heads:
    """Load a language model: a reward is P(good) / (P(good) + P(bad)) of the next token."""
    model = checkpoints.load_weights(AutoModelForCausalLM, name, **options)
    rows = model.lm_head.weight[[token_id(tokenizer, bad), token_id(tokenizer, good)]]
    return Heads(model.base_model, _class_1(lambda hidden: hidden @ rows.T))


def value_head(name: str, **options: Any) -> Heads:
    """Load the linear layer `v_head.summary`: a reward is the sigmoid of its output."""
    model = checkpoints.load_weights(AutoModelForCausalLM, name, **options)
    tensors = read_tensors(name, "v_head.summary.")
    try:
        head = _linear(tensors["v_head.summary.weight"], tensors.get("v_head.summary.bias"), model)
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{name!r} has no v_head.summary.weight [1, {model.config.hidden_size}]") from error
    return Heads(model.base_model, _sigmoid(head))


def trace_head(name: str, **options: Any) -> Heads:
    """Load a language model and the linear layer of `reward_head.pt`: a reward is the sigmoid of its output."""
    model = checkpoints.load_weights(AutoModelForCausalLM, name, **options)
    return Heads(model.base_model, _sigmoid(_trace_head(name, model)))


def language_model(name: str, **options: Any) -> LanguageModel:
    """Load a language model for its log-probabilities."""
    model = checkpoints.load_weights(AutoModelForCausalLM, name, **options)
    return LanguageModel(model.base_model, model.lm_head)


def token_id(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """Return the id of the single token that `text` is. Raises InputError if it is unknown or more than one token."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise InputError(f"the tokenizer of {tokenizer.name_or_path!r} has no token {text!r}, which this format needs")
    return int(ids[0])


def _class_1(head: Callable[[Tensor], Tensor]) -> Head:
    return lambda hidden: head(hidden).double().softmax(-1)[:, 1]


def _sigmoid(head: Callable[[Tensor], Tensor]) -> Head:
    return lambda hidden: head(hidden).double().sigmoid()[:, 0]


def _linear(weight: Tensor, bias: Tensor | None, model: Any) -> nn.Linear:
    head = nn.Linear(model.config.hidden_size, 1, bias=bias is not None)
    head.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    last = list(model.base_model.parameters())[-1]  # on the last device of a model that is spread over several
    return head.to(last.device, last.dtype).requires_grad_(False)


def _trace_head(name: str, model: Any) -> nn.Linear:
    path = _file(name, TRACE_HEAD)
    assert path is not None
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        [weight] = [tensor for key, tensor in tensors.items() if key.endswith("weight")]
        bias = next((tensor for key, tensor in tensors.items() if key.endswith("bias")), None)
        return _linear(weight, bias, model)
    except Exception as error:  # a malicious or truncated file can raise anything in the unpickler
        size = model.config.hidden_size
        raise InputError(
            f"{TRACE_HEAD} of {name!r} does not hold the weights of one Linear({size}, 1): {checkpoints.first_line(error)}"
        ) from error


def _file(name: str, file: str, *, required: bool = True) -> Path | None:
    """Return the path of a file of a local folder or hub repository, or None if it is missing and not `required`."""
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(checkpoints.locate(name), file, _raise_exceptions_for_missing_entries=required)
    except OSError as error:
        if not required:
            return None
        raise InputError(f"{name!r} has no {file}: {checkpoints.first_line(error)}") from error
    return None if path is None else Path(str(path))


@contextmanager
def _opened(file: Path, name: str) -> Iterator[Any]:
    """Open a *.safetensors file. Raises InputError if it is truncated or is something else."""
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise InputError(f"cannot read {file.name} of {name!r}: {checkpoints.first_line(error)}") from error


def head_shapes(name: str) -> dict[str, list[int]] | None:
    """Return the shapes of a local folder's tensors outside the body, by name, without loading them; None for a hub id."""
    folder = Path(checkpoints.locate(name))
    if not folder.is_dir():
        return None
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"the model folder {folder} has no *.safetensors weights")
    shapes: dict[str, list[int]] = {}
    for file in files:
        with _opened(file, name) as tensors:
            names = [key for key in tensors.keys() if not key.startswith("model.")]  # noqa: SIM118
            shapes |= {key: tensors.get_slice(key).get_shape() for key in names}
    return shapes


def read_tensors(name: str, prefix: str) -> dict[str, Tensor]:
    """Load the tensors whose names begin with `prefix` from a folder's or hub repository's *.safetensors files.

    Raises InputError if a file is missing or its index cannot be read.
    """
    index = _file(name, "model.safetensors.index.json", required=False)
    if index is None:
        files = ["model.safetensors"]
    else:
        try:
            where: dict[str, str] = json.loads(index.read_text())["weight_map"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"cannot read {index.name} of {name!r}: {checkpoints.first_line(error)}") from error
        files = sorted({file for key, file in where.items() if key.startswith(prefix)})
    found: dict[str, Tensor] = {}
    for file in files:
        path = _file(name, file)
        assert path is not None
        with _opened(path, name) as tensors:
            found |= {key: tensors.get_tensor(key) for key in tensors.keys() if key.startswith(prefix)}  # noqa: SIM118
    return found
