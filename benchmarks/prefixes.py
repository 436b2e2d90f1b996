"""Tokens prefilled per token in the tree, when candidates grow step by step: 4 continuations per step, of which one is kept.

    | engine | tokens in the tree | prefilled | ratio |
    | transformers | 13,872 | 1,937  | 0.14 |
    | sglang       | 13,904 | 1,737  | 0.12 |
    | vllm         | 13,882 | 24,776 | 1.78 |
    | vllm, --step-tokens 32 | 13,835 | 9,304 | 0.67 |

`python benchmarks/prefixes.py --engine transformers` (or vllm or sglang, in an environment that has it). The prompt and every
step count once in the tree. The tokens that an engine prefills are the prefixes of all requests without the cached part. vLLM
reports the cached part for one sibling only, so its own counters are read.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import cyclopts

from tts.demo import arith
from tts.engines import load_engine
from tts.solving.generator import Generator
from tts.types import Candidate, Problem, Sampling

ARGUMENTS = {
    "transformers": {},
    "vllm": {
        "dtype": "float32", "enforce_eager": True, "max_model_len": 512, "disable_log_stats": False,
        "gpu_memory_utilization": 0.5,
        "block_size": 32,  # the smallest on the CPU; the default of 128 is longer than most of these prefixes
    },
    "sglang": {
        "device": "cpu", "attention_backend": "torch_native", "dtype": "float32", "max_total_tokens": 32768,
        "max_running_requests": 64, "disable_overlap_schedule": True,
    },
}  # fmt: skip


async def grow(engine, problem, width, step_tokens):
    generator = Generator(engine, problem, Sampling(max_tokens=200))
    tree, candidate = len(engine.encode(problem)), Candidate(problem)
    while not candidate.done:
        if step_tokens is None:
            children = await generator.step(candidate, width)
        else:
            children = await generator.step(candidate, width, stop=(), max_tokens=step_tokens)
        tree += sum(len(child.token_ids) for child in children) - width * len(candidate.token_ids)
        candidate = children[0]
        if step_tokens is not None and candidate.finish == "length" and len(candidate.token_ids) < 200:
            last = replace(candidate.steps[-1], finish="step")
            candidate = replace(candidate, steps=(*candidate.steps[:-1], last))
    return tree, generator.usage.prompt - generator.usage.cached


async def measure(engine, count, width, step_tokens):
    problems = [Problem(str(i), chain.prompt) for i, chain in enumerate(arith.take("dev", count))]
    grown = await asyncio.gather(*(grow(engine, problem, width, step_tokens) for problem in problems))
    counted = by_vllm(engine)
    await engine.close()
    tree, prefilled = (sum(column) for column in zip(*grown, strict=True))
    return tree, counted if counted is not None else prefilled


def by_vllm(engine):
    """Return the tokens that vLLM has prefilled, by its own counters, or None for another engine."""
    if not hasattr(engine, "llm"):
        return None
    from prometheus_client import REGISTRY

    counters = {sample.name: sample.value for metric in REGISTRY.collect() for sample in metric.samples}
    return int(counters["vllm:prefix_cache_queries_total"] - counters["vllm:prefix_cache_hits_total"])


def main(engine: str = "transformers", problems: int = 32, width: int = 4, step_tokens: int | None = None) -> None:
    """Print the tokens in the tree, the tokens prefilled, and their ratio.

    Args:
        engine: transformers, vllm or sglang.
        problems: Number of problems, worked on concurrently.
        width: Continuations per step.
        step_tokens: Tokens per step. Default: steps end where the policy ends them.
    """
    loaded = load_engine(engine, "arith-policy", options=ARGUMENTS[engine])
    tree, prefilled = asyncio.run(measure(loaded, problems, width, step_tokens))
    print("| engine | tokens in the tree | prefilled | ratio |\n|---|---|---|---|")
    print(f"| {engine} | {tree:,} | {prefilled:,} | {prefilled / tree:.2f} |")


if __name__ == "__main__":
    cyclopts.run(main)
