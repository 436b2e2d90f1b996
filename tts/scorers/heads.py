"""Readouts: what turns a decoder's hidden states into rewards, and how each is loaded from a checkpoint.

Probabilities are computed in float64: a good step's is close to 1, where float32 has no room to tell two of them apart.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from tts.errors import InputError
from tts.models import checkpoints
from tts.scorers.modeling import Qwen2ForProcessRewardModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Readout = Callable[[Tensor], Tensor]
"""Hidden states [n, size] to rewards [n]."""


class Loaded(NamedTuple):
    """A checkpoint's decoder and its readouts."""

    body: Any
    step: Readout
    final: Readout | None = None
    """Of the trace as a whole, where the checkpoint has a head for that; else `step` is used."""


class LanguageModel(NamedTuple):
    """A checkpoint's decoder and its logits over the vocabulary."""

    body: Any
    logits: Callable[[Tensor], Tensor]


Load = Callable[..., Loaded]
"""(name, tokenizer, **options of checkpoints.load_weights) to a checkpoint with its readouts."""


def two_classes(name: str, tokenizer: PreTrainedTokenizerBase, **options: Any) -> Loaded:
    """`score.0`, ReLU, `score.2`: the softmax of two logits, class 1. A `reward_head.pt` beside it rates the whole."""
    shapes = head_shapes(name)
    if shapes is not None and "score.2.weight" not in shapes:
        kind = ", ".join(checkpoints.load_config(name).get("architectures") or ["an unnamed architecture"])
        if "score.weight" in shapes:
            raise InputError(
                f"the head of {name!r} is one matrix ({kind}); that of a step PRM has the layers score.0 and score.2"
            )
        raise InputError(f"{name!r} has no reward head ({kind}): give it as --model, and a process reward model as --scorer")
    if shapes is not None and shapes["score.2.weight"][0] != 2:
        raise InputError(f"the head of {name!r} is {shapes['score.2.weight'][0]} wide; a step PRM's is 2 wide (wrong, right)")
    model = checkpoints.load_weights(Qwen2ForProcessRewardModel, name, **options)
    final = _sigmoid(_trace_head(name, model)) if _file(name, TRACE_HEAD, required=False) else None
    return Loaded(model.model, _class_1(model.score), final)


def token_classes(name: str, tokenizer: PreTrainedTokenizerBase, **options: Any) -> Loaded:
    """transformers' token classification head: the softmax of two labels, label 1."""
    model = checkpoints.load_weights(AutoModelForTokenClassification, name, **options)
    if model.config.num_labels != 2:
        raise InputError(
            f"{name!r} tells {model.config.num_labels} labels apart; a process reward model's are 2 (wrong, right)"
        )
    return Loaded(model.base_model, _class_1(getattr(model, "score", None) or model.classifier))


def two_tokens(good: str, bad: str) -> Load:
    """The share of a good token's probability in that of a good and a bad one, as the next token's."""

    def load(name: str, tokenizer: PreTrainedTokenizerBase, **options: Any) -> Loaded:
        model = checkpoints.load_weights(AutoModelForCausalLM, name, **options)
        rows = model.lm_head.weight[[token_id(tokenizer, bad), token_id(tokenizer, good)]]
        return Loaded(model.base_model, _class_1(lambda hidden: hidden @ rows.T))

    return load


def value_head(name: str, tokenizer: PreTrainedTokenizerBase, **options: Any) -> Loaded:
    """`v_head.summary`: the sigmoid of one number."""
    model = checkpoints.load_weights(AutoModelForCausalLM, name, **options)
    tensors = read_tensors(name, "v_head.summary.")
    try:
        head = _linear(tensors["v_head.summary.weight"], tensors.get("v_head.summary.bias"), model)
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{name!r} has no v_head.summary.weight [1, {model.config.hidden_size}]") from error
    return Loaded(model.base_model, _sigmoid(head))


def trace_head(name: str, tokenizer: PreTrainedTokenizerBase, **options: Any) -> Loaded:
    """`reward_head.pt` beside a language model: the sigmoid of one number."""
    model = checkpoints.load_weights(AutoModelForCausalLM, name, **options)
    readout = _sigmoid(_trace_head(name, model))
    return Loaded(model.base_model, readout, readout)


def implicit(name: str, tokenizer: PreTrainedTokenizerBase, **options: Any) -> LanguageModel:
    """The log-probabilities of a language model, to be compared with those of a reference model."""
    model = checkpoints.load_weights(AutoModelForCausalLM, name, **options)
    return LanguageModel(model.base_model, model.lm_head)


TRACE_HEAD = "reward_head.pt"


def token_id(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """The one token that `text` is. Raises InputError where it is none, or several."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise InputError(f"the tokenizer of {tokenizer.name_or_path!r} has no token {text!r}, which this format's rewards need")
    return int(ids[0])


def _class_1(head: Callable[[Tensor], Tensor]) -> Readout:
    return lambda hidden: head(hidden).double().softmax(-1)[:, 1]


def _sigmoid(head: Callable[[Tensor], Tensor]) -> Readout:
    return lambda hidden: head(hidden).double().sigmoid()[:, 0]


def _linear(weight: Tensor, bias: Tensor | None, model: Any) -> nn.Linear:
    head = nn.Linear(model.config.hidden_size, 1, bias=bias is not None)
    head.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    last = list(model.base_model.parameters())[-1]  # where a model that is spread over devices ends
    return head.to(last.device, last.dtype).requires_grad_(False)


def _trace_head(name: str, model: Any) -> nn.Linear:
    path = _file(name, TRACE_HEAD)
    assert path is not None
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        [weight] = [tensor for key, tensor in tensors.items() if key.endswith("weight")]
        bias = next((tensor for key, tensor in tensors.items() if key.endswith("bias")), None)
        return _linear(weight, bias, model)
    except Exception as error:  # whatever a hostile or torn file makes of the unpickler
        size = model.config.hidden_size
        raise InputError(
            f"{TRACE_HEAD} of {name!r} is not the weights of one Linear({size}, 1): {checkpoints.first_line(error)}"
        ) from error


def _file(name: str, file: str, *, required: bool = True) -> Path | None:
    """A file of a local folder or of a hub repository."""
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(checkpoints.locate(name), file, _raise_exceptions_for_missing_entries=required)
    except OSError as error:
        if not required:
            return None
        raise InputError(f"{name!r} has no {file}: {checkpoints.first_line(error)}") from error
    return None if path is None else Path(str(path))


def head_shapes(name: str) -> dict[str, list[int]] | None:
    """Names and shapes of a local folder's tensors outside the body, from the files' headers; None for a hub id."""
    folder = Path(checkpoints.locate(name))
    if not folder.is_dir():
        return None
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"the model folder {folder} has no *.safetensors weights")
    shapes: dict[str, list[int]] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            names = [key for key in tensors.keys() if not key.startswith("model.")]  # noqa: SIM118
            shapes |= {key: tensors.get_slice(key).get_shape() for key in names}
    return shapes


def read_tensors(name: str, prefix: str) -> dict[str, Tensor]:
    """Tensors whose names begin so, from a folder's or a hub repository's *.safetensors. Raises InputError."""
    index = _file(name, "model.safetensors.index.json", required=False)
    if index is None:
        files = ["model.safetensors"]
    else:
        import json

        where: dict[str, str] = json.loads(index.read_text())["weight_map"]
        files = sorted({file for key, file in where.items() if key.startswith(prefix)})
    found: dict[str, Tensor] = {}
    for file in files:
        path = _file(name, file)
        assert path is not None
        with safe_open(path, framework="pt") as tensors:
            found |= {key: tensors.get_tensor(key) for key in tensors.keys() if key.startswith(prefix)}  # noqa: SIM118
    return found
