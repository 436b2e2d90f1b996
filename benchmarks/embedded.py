"""Tokens per second of the embedded engine, of `model.generate` on a padded batch, and of vLLM, at the same load.

    | samples at once | embedded | model.generate | vLLM | embedded / generate | embedded / vLLM |
    | 256             | 6,275    | 4,899          | nan  | 1.28                | nan             |

`python benchmarks/embedded.py --vllm .venvs/vllm/bin/python` measures all three one after the other, `--repeat` times in
turn, and reports medians. The load: one sample each of so many different problems, temperature 1, to the end of the text.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from tts.demo import arith
from tts.types import Problem, Sampling

SIZES = (1, 16, 256)


def problems(count):
    return [Problem(str(i), chain.prompt) for i, chain in enumerate(arith.take("dev", count))]


async def through_engine(engine, count, seed):
    """Tokens per second of one sample each of `count` problems."""
    prefixes = [engine.encode(problem) for problem in problems(count)]
    start = time.perf_counter()
    drawn = await asyncio.gather(
        *(engine.generate(prefix, 1, Sampling(seed=seed + i, max_tokens=200)) for i, prefix in enumerate(prefixes))
    )
    tokens = sum(len(step.token_ids) for generation in drawn for step in generation.steps)
    return tokens / (time.perf_counter() - start)


def through_generate(engine, count, seed):
    import torch

    torch.manual_seed(seed)
    prefixes = [list(engine.encode(problem)) for problem in problems(count)]
    start = time.perf_counter()
    engine.tokenizer.padding_side = "left"
    batch = engine.tokenizer.pad({"input_ids": prefixes}, return_tensors="pt")
    with torch.inference_mode():
        out = engine.model.generate(**batch, do_sample=True, max_new_tokens=200, top_k=0)
    written = out[:, batch["input_ids"].shape[1] :]
    return (written != engine.tokenizer.pad_token_id).sum().item() / (time.perf_counter() - start)


def repeated(measure, repeat):
    return {size: [measure(size, 1000 * r) for r in range(repeat)] for size in SIZES}


def in_vllm(repeat):
    from tts.engines.vllm import VLLMEngine

    engine = VLLMEngine("arith-policy", dtype="float32", enforce_eager=True, max_model_len=512)
    with asyncio.Runner() as runner:
        runner.run(through_engine(engine, 256, 9))  # the first call is slow
        rates = repeated(lambda size, seed: runner.run(through_engine(engine, size, seed)), repeat)
        runner.run(engine.close())
    print("RATES " + json.dumps(rates))


def main(
    vllm: Annotated[str | None, typer.Option(help="The python of an environment with vLLM.")] = None,
    repeat: int = 5,
    only_vllm: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    if only_vllm:
        in_vllm(repeat)
        return
    from tts.engines.transformers import TransformersEngine

    engine = TransformersEngine("arith-policy", cache_gib=0)
    asyncio.run(through_engine(engine, 256, 9))
    through_generate(engine, 16, 9)
    ours, theirs, other = {}, {}, {}
    for size in SIZES:  # side by side, in turn
        pairs = [(asyncio.run(through_engine(engine, size, r)), through_generate(engine, size, r)) for r in range(repeat)]
        ours[size], theirs[size] = ([pair[i] for pair in pairs] for i in (0, 1))
    if vllm:
        done = subprocess.run(
            [vllm, str(Path(__file__)), "--only-vllm", "--repeat", str(repeat)], stdout=subprocess.PIPE, text=True, check=True
        )
        line = next(line for line in done.stdout.splitlines() if line.startswith("RATES "))
        other = {int(size): rates for size, rates in json.loads(line.removeprefix("RATES ")).items()}
    print("| samples at once | embedded | model.generate | vLLM | embedded / generate | embedded / vLLM |")
    print("|---|---|---|---|---|---|")
    for size in SIZES:
        a, b = statistics.median(ours[size]), statistics.median(theirs[size])
        c = statistics.median(other[size]) if other else float("nan")
        print(f"| {size} | {a:,.0f} | {b:,.0f} | {c:,.0f} | {a / b:.2f} | {a / c:.2f} |")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    typer.run(main)
