"""Throughput of a reward model of 7B size with random weights, also as a share of what the device reaches in a matrix product.

    python benchmarks/scoring_peak.py                                       # on a GPU: bf16, 64 traces of 4,096 tokens
    python benchmarks/scoring_peak.py --layers 2 --hidden 256 --traces 4    # a quick check on any machine

The matrix product is a large square one, measured on the same device in the same run.
"""

from __future__ import annotations

import random
import time

import cyclopts
import torch
from transformers import Qwen2Config

from tts.evals.cost import shape_of
from tts.scorers.forest import Forest
from tts.scorers.modeling import Qwen2ForProcessRewardModel


def synchronized():
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak(device, dtype, size):
    """Return the floating-point operations per second of a square matrix product."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        start = synchronized()
        a @ b
        best = min(best, synchronized() - start)
    return 2 * size**3 / best


def main(
    layers: int = 28, hidden: int = 3584, traces: int = 64, length: int = 4096, repeat: int = 3, batch_tokens: int = 16384
) -> None:
    """Print tokens per second, TFLOP/s, and the share of a matrix product's.

    Args:
        layers: Number of layers.
        hidden: Width, a multiple of 128.
        traces: Number of traces.
        length: Tokens per trace.
        repeat: Measurements, of which the fastest counts.
        batch_tokens: Tokens per forward pass.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = Qwen2Config(
        vocab_size=152064, hidden_size=hidden, intermediate_size=hidden * 37 // 7, num_hidden_layers=layers,
        num_attention_heads=hidden // 128, num_key_value_heads=max(1, hidden // 896), max_position_embeddings=length,
    )  # fmt: skip
    torch.set_default_dtype(dtype)
    with device:
        model = Qwen2ForProcessRewardModel(config).eval()
    torch.set_default_dtype(torch.float32)
    forest = Forest(model.model, limit=0, batch_tokens=batch_tokens, context=length)
    rng = random.Random(0)
    ids = [[rng.randrange(config.vocab_size) for _ in range(length)] for _ in range(traces)]
    positions = [list(range(49, length, 50)) for _ in ids]
    seconds = []
    for _ in range(repeat + 1):
        forest.clear()
        start = synchronized()
        with torch.inference_mode():
            model.score(torch.cat(forest(ids, positions))).softmax(-1)
        seconds.append(synchronized() - start)
    best = min(seconds[1:])  # the first one is a warm-up
    shape = shape_of(config.to_dict(), outputs=2)
    flops = shape.flops(traces * length, length / 2)
    top = peak(device, dtype, 8192 if device.type == "cuda" else 1024)
    print("| device | tokens/s | TFLOP/s | share of a matrix product's |\n|---|---|---|---|")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    print(f"| {name} | {traces * length / best:,.0f} | {flops / best / 1e12:.2f} | {flops / best / top:.0%} |")


if __name__ == "__main__":
    cyclopts.run(main)
