"""Phi, the frozen sentence encoder of arXiv 2506.18896: texts to unit vectors."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel

from tts.errors import InputError
from tts.models import checkpoints, weights
from tts.models.prompts import PROBE
from tts.models.untrusted import check_finite, check_small, listed, reading

CACHED_EMBEDDINGS = 65_536
"""Embeddings kept in memory, oldest dropped first: solutions of one problem share many of their steps."""
BATCH = 128
"""Texts per forward pass."""


class Encoder:
    """A text encoder: the mean-pooled last hidden states of a transformers model, or a sentence-transformers model.

    A sentence-transformers model uses its own pooling. With the policy as the encoder, no further model is downloaded.

    Args:
        name: A bundled name, a folder or a hub id.
        device: "auto" (default), "cpu", "cuda" or "mps".

    Raises:
        InputError: The model cannot be loaded, or it needs sentence-transformers and that is not installed.
    """

    def __init__(self, name: str, device: str = "auto") -> None:
        self.name = name
        self._encode = _sentence_transformer(name, device) if _is_sentence_transformer(name) else _pooled(name, device)
        self._cache: OrderedDict[str, NDArray[np.float64]] = OrderedDict()
        with reading(f"cannot use the encoder {name!r}"):
            if not np.isfinite(self.encode([PROBE])).all():
                raise ValueError("its vectors are NaN or infinite")

    def encode(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return unit vectors [n, h] in float64. Each distinct text is encoded once."""
        missing = sorted({text for text in texts if text not in self._cache}, key=lambda text: (len(text), text))
        found = {text: self._cache[text] for text in texts if text in self._cache}
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            vectors = self._encode(batch).astype(np.float64)
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
            found.update(zip(batch, vectors, strict=True))
        for text in missing:
            self._cache[text] = found[text]
        while len(self._cache) > CACHED_EMBEDDINGS:
            self._cache.popitem(last=False)
        return np.stack([found[text] for text in texts]) if texts else np.zeros((0, 0))


def _pooled(name: str, device: str) -> Callable[[Sequence[str]], NDArray[Any]]:
    tokenizer = checkpoints.load_tokenizer(name)
    model = weights.load_weights(AutoModel, name, device=device)
    weights.Vocabulary(name, model.get_input_embeddings().weight.shape[0]).check_tokenizer(tokenizer)
    context = checkpoints.context_length(checkpoints.load_config(name)) or 512
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> NDArray[Any]:
        tokenized = [tokenizer.encode(text)[:context] or [pad] for text in texts]
        longest = max(map(len, tokenized))
        ids = torch.tensor([tokens + [pad] * (longest - len(tokens)) for tokens in tokenized], device=model.device)
        mask = torch.tensor([[1] * len(tokens) + [0] * (longest - len(tokens)) for tokens in tokenized], device=model.device)
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        pooled = (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
        return np.asarray(pooled.cpu().numpy())

    return encode


def _is_sentence_transformer(name: str) -> bool:
    return checkpoints.find_file(name, "modules.json") is not None


def _sentence_transformer(name: str, device: str) -> Callable[[Sequence[str]], NDArray[Any]]:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise InputError(f"{name!r} needs sentence-transformers; install it with: pip install 'tts-toolkit[train]'") from None
    _check_modules(name)
    weights.check_size(AutoModel, name)
    where = str(weights.find_device(device))
    with reading(f"cannot load the encoder {name!r}"):
        model = SentenceTransformer(checkpoints.locate(name), device=where, trust_remote_code=False)
    check_finite(model.named_parameters(), f"the weights of {name!r}")
    return lambda texts: np.asarray(model.encode(list(texts), show_progress_bar=False))


def _check_modules(name: str) -> None:
    """Raise InputError if a part of the encoder is not one of sentence-transformers, which some versions of it would import."""
    with reading(f"cannot read modules.json of {name!r}"):
        path = checkpoints.need_file(name, "modules.json")
        check_small(path)
        types = [str(module["type"]) for module in json.loads(path.read_text(encoding="utf-8"))]
    if foreign := [kind for kind in types if not kind.startswith("sentence_transformers.")]:
        raise InputError(
            f"the encoder {name!r} needs code that is not part of sentence-transformers: {listed(foreign)}; choose another"
        )
