"""Phi, the frozen sentence encoder of arXiv 2506.18896: texts to unit vectors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel

from tts.errors import InputError
from tts.models import checkpoints

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
    model = checkpoints.load_weights(AutoModel, name, device=device)
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
    from transformers.utils.hub import cached_file

    source = checkpoints.locate(name)
    if Path(source).is_dir():
        return Path(source, "modules.json").is_file()
    return cached_file(source, "modules.json", _raise_exceptions_for_missing_entries=False) is not None


def _sentence_transformer(name: str, device: str) -> Callable[[Sequence[str]], NDArray[Any]]:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise InputError(f"{name!r} needs sentence-transformers; install it with: pip install 'tts-toolkit[train]'") from None
    try:
        model = SentenceTransformer(
            checkpoints.locate(name), device=str(checkpoints.find_device(device)), trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"cannot load the encoder {name!r}: {checkpoints.first_line(error)}") from error
    return lambda texts: np.asarray(model.encode(list(texts), show_progress_bar=False))
