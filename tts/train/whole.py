"""Checkpoints that were written to their end: a crash or a full disk leaves others, which must not be resumed from."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME

CHECKPOINTS = "checkpoints"
"""The folder of a training's checkpoints."""


def newest_checkpoint(out: Path) -> Path | None:
    """Return the newest checkpoint of a training that is whole; None if there is none."""
    return max(filter(is_whole, _checkpoints(out)), key=_step, default=None)


def broken_checkpoints(out: Path) -> list[Path]:
    """Return the checkpoints of a training that are not whole."""
    return [folder for folder in _checkpoints(out) if not is_whole(folder)]


def is_whole(folder: Path) -> bool:
    """Return whether a checkpoint has the trainer's state, which is written last, and no file of it is cut off."""
    return (folder / TRAINER_STATE_NAME).is_file() and all(_ends(file) for file in folder.rglob("*") if file.is_file())


def _ends(file: Path) -> bool:
    """Whether a file has its end, for formats that tell."""
    try:
        match file.suffix:
            case ".safetensors":
                return _tensors_end(file)
            case ".pt" | ".pth":
                return zipfile.is_zipfile(file)
            case ".json":
                json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


def _tensors_end(file: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    with file.open("rb") as content:
        size = int.from_bytes(content.read(8), "little")
        if not 0 < size < 2**27:  # safetensors refuses a longer header
            return False
        header = json.loads(content.read(size))
    ends = [about["data_offsets"][1] for name, about in header.items() if name != "__metadata__"]
    return file.stat().st_size == 8 + size + int(max(ends, default=0))


def _checkpoints(out: Path) -> list[Path]:
    return [folder for folder in (out / CHECKPOINTS).glob("checkpoint-*") if folder.is_dir() and folder.name[11:].isdigit()]


def _step(folder: Path) -> int:
    return int(folder.name[11:])
