"""What a server says that it runs."""

from __future__ import annotations

from typing import Any, NamedTuple

from tts.errors import InputError
from tts.models import checkpoints

EXTRAS: dict[str, dict[str, Any]] = {
    "vllm": {"include_stop_str_in_output": True, "return_token_ids": True},
    "sglang": {"no_stop_trim": True},
}
"""Options that make a server return stop strings and token ids, by `owned_by` in its /v1/models."""

FILLS = frozenset((*EXTRAS, "llamacpp", "library", "organization_owner"))
"""Servers, by `owned_by`, that put defaults of their own or the model's in place of what is not sent: also llama.cpp (0.8 for
the temperature), Ollama and LM Studio."""


class Served(NamedTuple):
    """The model at a server."""

    name: str
    """The server's name for the model."""
    extras: dict[str, Any]
    """The options of EXTRAS for this kind of server; empty for a server that does not report why it stopped."""
    fills: bool
    """Whether it is one of FILLS, to which everything is sent."""
    context: int | None
    """The model's context in tokens, if the server gives it."""
    known: tuple[str, ...]
    """The models that the server lists."""
    owner: str
    """Who it says made it: vllm, sglang, ...; empty where it says nothing."""
    about: str
    """All that tells it from another one."""


def read_models(answer: Any, model: str) -> Served:
    """What an answer of /v1/models says of a model: `{"data": [...]}` or a bare list. One that cannot be read says nothing."""
    listed = answer.get("data", answer.get("models")) if isinstance(answer, dict) else answer
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    known = {str(entry.get("id", entry.get("name"))): entry for entry in entries if entry.get("id") or entry.get("name")}
    name = _name_of(model, known)
    # a server of one model usually ignores the name, and says more of the model under its own
    entry = known.get(name) or (next(iter(known.values())) if len(known) == 1 else {})
    context = entry.get("max_model_len")
    owner = str(entry.get("owned_by") or "")
    return Served(
        name,
        EXTRAS.get(owner, {}),
        owner in FILLS,
        context if isinstance(context, int) else None,
        (*known,),
        owner,
        ", ".join([name, *(f"{key} {entry[key]}" for key in ("owned_by", "root") if entry.get(key))]),
    )


def _name_of(model: str, known: dict[str, Any]) -> str:
    """The server's name for a model: the same, the folder's, or one that ends in the same, as models/gemini-2.5-flash."""
    for name in (model, _folder(model)):
        if name in known:
            return name
    alike = [name for name in known if name.rpartition("/")[2].lower() == model.rpartition("/")[2].lower()]
    return alike[0] if len(alike) == 1 else model


def _folder(model: str) -> str:
    try:
        return checkpoints.locate(model)
    except InputError:
        return model
