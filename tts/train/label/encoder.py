"""Phi, the frozen sentence encoder: texts to vectors of length 1."""

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

KEPT = 65_536
"""Embeddings that are kept: steps of a trajectory recur in others to the same problem."""
BATCH = 128


class Encoder:
    """A model's mean-pooled last hidden states, or a sentence-transformers model as it pools itself.

    The policy's own hidden states need nothing to be downloaded. Raises InputError where the model cannot be loaded.
    """

    def __init__(self, name: str, device: str = "auto") -> None:
        self.name = name
        self._encode = _sentence_transformer(name, device) if _is_sentence_transformer(name) else _pooled(name, device)
        self._kept: OrderedDict[str, NDArray[np.float64]] = OrderedDict()

    def encode(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Vectors [n, h]; equal texts are computed once."""
        missing = sorted({text for text in texts if text not in self._kept}, key=lambda text: (len(text), text))
        found = {text: self._kept[text] for text in texts if text in self._kept}
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            vectors = self._encode(batch).astype(np.float64)
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
            found.update(zip(batch, vectors, strict=True))
        for text in missing:
            self._kept[text] = found[text]
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return np.stack([found[text] for text in texts]) if texts else np.zeros((0, 0))


def _pooled(name: str, device: str) -> Callable[[Sequence[str]], NDArray[Any]]:
    tokenizer = checkpoints.load_tokenizer(name)
    model = checkpoints.load_weights(AutoModel, name, device=device)
    context = checkpoints.context_length(checkpoints.load_config(name)) or 512
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> NDArray[Any]:
        rows = [tokenizer.encode(text)[:context] or [pad] for text in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows], device=model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=model.device)
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        pooled = (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
        return np.asarray(pooled.cpu().numpy())

    return encode


def _is_sentence_transformer(name: str) -> bool:
    from transformers.utils.hub import cached_file

    place = checkpoints.locate(name)
    if Path(place).is_dir():
        return Path(place, "modules.json").is_file()
    return cached_file(place, "modules.json", _raise_exceptions_for_missing_entries=False) is not None


def _sentence_transformer(name: str, device: str) -> Callable[[Sequence[str]], NDArray[Any]]:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise InputError(
            f"{name!r} is a sentence-transformers model; install that with: pip install 'tts-toolkit[train]'"
        ) from None
    try:
        model = SentenceTransformer(
            checkpoints.locate(name), device=str(checkpoints.find_device(device)), trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"cannot load the encoder {name!r}: {checkpoints.first_line(error)}") from error
    return lambda texts: np.asarray(model.encode(list(texts), show_progress_bar=False))
