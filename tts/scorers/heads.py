"""Reward heads: how each kind is loaded from a checkpoint, and what it makes of hidden states.

Probabilities are computed in float64, because those of good steps are so close to 1 that float32 would round them together.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from tts.errors import InputError
from tts.models import checkpoints, weights
from tts.models.untrusted import check_finite, reading, shapes_in, tensors_in
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

    A `reward_head.pt` beside it rates whole traces. `options` are those of `weights.load_weights`, here and below. Raises
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
    if shapes is not None and (outputs := sum(shapes["score.2.weight"][:1])) != 2:
        raise InputError(f"the head of {name!r} has {outputs} outputs; a step PRM's head has 2, for wrong and right")
    model = weights.load_weights(Qwen2ForProcessRewardModel, name, **options)
    final = _sigmoid(_trace_head(name, model)) if checkpoints.find_file(name, TRACE_HEAD) else None
    return Heads(model.model, _class_1(model.score), final)


def token_classes(name: str, **options: Any) -> Heads:
    """Load transformers' token classification head: a reward is the softmax of the two labels, label 1."""
    model = weights.load_weights(AutoModelForTokenClassification, name, **options)
    if model.config.num_labels != 2:
        raise InputError(f"{name!r} has {model.config.num_labels} labels; a process reward model has 2, for wrong and right")
    head = getattr(model, "score", None) or getattr(model, "classifier", None)
    if head is None:
        raise InputError(
            f"{name!r} ({type(model).__name__}) has no layer `score` or `classifier`, whose labels are the rewards"
        )
    return Heads(model.base_model, _class_1(head))


def two_tokens(name: str, tokenizer: PreTrainedTokenizerBase, good: str, bad: str, **options: Any) -> Heads:
    """Load a language model: a reward is P(good) / (P(good) + P(bad)) of the next token."""
    model = weights.load_weights(AutoModelForCausalLM, name, **options)
    rows = _output_layer(name, model).weight[[token_id(tokenizer, bad), token_id(tokenizer, good)]]
    return Heads(model.base_model, _class_1(lambda hidden: hidden @ rows.T))


def value_head(name: str, **options: Any) -> Heads:
    """Load the linear layer `v_head.summary`: a reward is the sigmoid of its output."""
    model = weights.load_weights(AutoModelForCausalLM, name, apart="v_head.", **options)
    tensors = read_tensors(name, "v_head.summary.")
    try:
        head = _linear(tensors["v_head.summary.weight"], tensors.get("v_head.summary.bias"), model)
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{name!r} has no v_head.summary.weight [1, {model.config.hidden_size}]") from error
    return Heads(model.base_model, _sigmoid(head))


def trace_head(name: str, **options: Any) -> Heads:
    """Load a language model and the linear layer of `reward_head.pt`: a reward is the sigmoid of its output."""
    model = weights.load_weights(AutoModelForCausalLM, name, **options)
    return Heads(model.base_model, _sigmoid(_trace_head(name, model)))


def language_model(name: str, **options: Any) -> LanguageModel:
    """Load a language model for its log-probabilities."""
    model = weights.load_weights(AutoModelForCausalLM, name, **options)
    return LanguageModel(model.base_model, _output_layer(name, model))


def _output_layer(name: str, model: Any) -> Any:
    layer = model.get_output_embeddings()
    if layer is None:
        raise InputError(f"{name!r} ({type(model).__name__}) has no output layer over the vocabulary")
    return layer


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
    check_finite(head.named_parameters(), "the weights of the head")
    last = list(model.base_model.parameters())[-1]  # on the last device of a model that is spread over several
    return head.to(last.device, last.dtype).requires_grad_(False)


def _trace_head(name: str, model: Any) -> nn.Linear:
    path = checkpoints.need_file(name, TRACE_HEAD)
    with reading(f"{TRACE_HEAD} of {name!r} does not hold the weights of one Linear({model.config.hidden_size}, 1)"):
        tensors = tensors_in(path, "")
        [weight] = [tensor for key, tensor in tensors.items() if key.endswith("weight")]
        bias = next((tensor for key, tensor in tensors.items() if key.endswith("bias")), None)
        return _linear(weight, bias, model)


def head_shapes(name: str) -> dict[str, tuple[int, ...]] | None:
    """Return the shapes of a local folder's tensors outside the body, by name, without loading them; None for a hub id."""
    folder = Path(checkpoints.locate(name))
    if not folder.is_dir():
        return None
    files = weights.weight_files(name)
    if not files:
        raise InputError(f"the model folder {folder} has no *.safetensors weights")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with reading(f"cannot read {file.name} of {name!r}"):
            shapes |= {key: shape for key, shape in shapes_in(file).items() if not key.startswith("model.")}
    return shapes


def read_tensors(name: str, prefix: str) -> dict[str, Tensor]:
    """Load the tensors whose names begin with `prefix` from the weights of a folder or hub repository.

    Raises InputError if a file is missing or cannot be read.
    """
    found: dict[str, Tensor] = {}
    for path in weights.weight_files(name):
        with reading(f"cannot read {path.name} of {name!r}"):
            found |= tensors_in(path, prefix)
    return found
