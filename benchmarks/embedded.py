"""Tokens per second of the embedded engine, of `model.generate` on padded batches, and of vLLM, on the same requests.

    | batch | embedded | generate | vllm  | embedded / generate | embedded / vllm |
    | 256   | 15,222   | 7,322    | 8,359 | 2.08                | 1.82            |

`python benchmarks/embedded.py --vllm .venvs/vllm/bin/python`; `--continuous` adds transformers' own continuous batching. A
batch of B means 4 B requests (at least 8) for different problems, at temperature 1, each to the end of its text, B in flight.
`model.generate` takes B at a time; the engines admit the next request as soon as one is finished. Each contender has its own
process, and the others are stopped while it is measured. They take turns `--repeat` times, and medians are reported.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from typing import Annotated

import cyclopts
from contender import Contender

from tts.demo import arith
from tts.types import Problem, Sampling

SIZES = (1, 16, 256)
LONGEST = 200


def requests(engine, size):
    count = max(4 * size, 8)
    return [engine.encode(Problem(str(i), chain.prompt)) for i, chain in enumerate(arith.take("dev", count))]


def through_engine(engine, runner):
    async def work(size, seed):
        slots = asyncio.Semaphore(size)

        async def one(i, prefix):
            async with slots:
                [step] = (await engine.generate(prefix, 1, Sampling(seed=seed + i, max_tokens=LONGEST))).steps
                return len(step.token_ids)

        return sum(await asyncio.gather(*(one(i, prefix) for i, prefix in enumerate(requests(engine, size)))))

    return lambda size, seed: runner.run(work(size, seed))


def through_generate(engine):
    import torch

    def work(size, seed):
        torch.manual_seed(seed)
        engine.tokenizer.padding_side = "left"
        prefixes, tokens = requests(engine, size), 0
        for start in range(0, len(prefixes), size):
            ids = [list(prefix) for prefix in prefixes[start : start + size]]
            batch = engine.tokenizer.pad({"input_ids": ids}, return_tensors="pt")
            with torch.inference_mode():
                out = engine.model.generate(**batch, do_sample=True, max_new_tokens=LONGEST, top_k=0)
            tokens += (out[:, batch["input_ids"].shape[1] :] != engine.tokenizer.pad_token_id).sum().item()
        return tokens

    return work


def through_continuous(engine):
    """transformers' own continuous batching over a paged cache."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    def work(size, seed):
        config = GenerationConfig(
            do_sample=True, max_new_tokens=LONGEST, top_k=0, eos_token_id=engine.tokenizer.eos_token_id,
            pad_token_id=engine.tokenizer.pad_token_id,
        )  # fmt: skip
        batching = ContinuousBatchingConfig(
            page_size=32, num_blocks=4096, max_batch_tokens=2048, max_requests_per_batch=size, use_cuda_graph=False, seed=seed
        )
        prefixes = [list(prefix) for prefix in requests(engine, size)]
        out = engine.model.generate_batch(prefixes, generation_config=config, continuous_batching_config=batching, warmup=False)
        return sum(len(one.generated_tokens) for one in out.values())

    return work


def contender(name):
    """Answer each line `size seed` on stdin with the tokens per second of a batch, until the end of input."""
    with asyncio.Runner() as runner:
        if name == "vllm":
            from tts.engines.vllm import VLLMEngine

            engine = VLLMEngine(
                "arith-policy",
                dtype="float32",
                enforce_eager=True,
                max_model_len=512,
                enable_prefix_caching=False,
                gpu_memory_utilization=0.3,
            )
        else:
            from tts.engines.transformers import TransformersEngine

            engine = TransformersEngine("arith-policy", cache_gib=0)
            if name in ("generate", "continuous"):
                engine.model.set_attn_implementation("sdpa")  # the default of from_pretrained
        if name == "generate":
            work = through_generate(engine)
        elif name == "continuous":
            work = through_continuous(engine)
        else:
            work = through_engine(engine, runner)
        work(16, 9)
        print("READY", flush=True)
        for line in sys.stdin:
            size, seed = map(int, line.split())
            start = time.perf_counter()
            tokens = work(size, seed)
            print(f"RESULT {tokens / (time.perf_counter() - start)}", flush=True)
        runner.run(engine.close())


def main(
    vllm: str | None = None,
    repeat: int = 5,
    continuous: bool = False,
    as_contender: Annotated[str | None, cyclopts.Parameter(name="--contender", show=False)] = None,
) -> None:
    """Print a table of tokens per second.

    Args:
        vllm: Python interpreter of an environment with vLLM, to measure that too.
        repeat: Measurements of each contender.
        continuous: Measure transformers' continuous batching too.
    """
    if as_contender:
        contender(as_contender)
        return
    pythons = {"embedded": sys.executable, "generate": sys.executable} | ({"vllm": vllm} if vllm else {})
    if continuous:
        pythons["continuous"] = sys.executable
    contenders = {name: Contender(python, __file__, "--contender", name) for name, python in pythons.items()}
    names = list(contenders)
    print(f"| batch | {' | '.join(names)} | {' | '.join(f'embedded / {name}' for name in names[1:])} |")
    print("|---" * (2 * len(names)) + "|")
    for size in SIZES:
        rates = {name: [] for name in names}
        for seed in range(repeat):
            for name in names:
                rates[name].append(float(contenders[name].ask(f"{size} {10_000 * seed}")))
        median = {name: statistics.median(values) for name, values in rates.items()}
        ratios = [f"{median['embedded'] / median[name]:.2f}" for name in names[1:]]
        print(f"| {size} | {' | '.join(f'{median[name]:,.0f}' for name in names)} | {' | '.join(ratios)} |", flush=True)
    for one in contenders.values():
        one.close()


if __name__ == "__main__":
    cyclopts.run(main)
