"""Resident memory of the embedded engine over 10,000 small requests with different prompts.

    | requests | resident MiB |
    | 10,000   | 679          |

`python benchmarks/memory.py`
"""

from __future__ import annotations

import asyncio
import gc

import cyclopts

from tts.demo import arith
from tts.engines.transformers import TransformersEngine
from tts.types import Problem, Sampling


def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


async def work(engine, chains):
    limit = asyncio.Semaphore(128)

    async def one(i, chain):
        async with limit:
            await engine.generate(engine.encode(Problem(str(i), chain.prompt)), 1, Sampling(seed=i, max_tokens=16))

    await asyncio.gather(*(one(i, chain) for i, chain in enumerate(chains)))


def main(requests: int = 10_000, cache_gib: float = 0.1) -> None:
    """Print the resident memory after each tenth of the requests."""
    engine = TransformersEngine("arith-policy", cache_gib=cache_gib)
    chains = arith.take("train", requests)
    print("| requests | resident MiB |\n|---|---|")
    for done in range(0, requests, requests // 10):
        asyncio.run(work(engine, chains[done : done + requests // 10]))
        gc.collect()
        print(f"| {done + requests // 10:,} | {resident():,.0f} |", flush=True)


if __name__ == "__main__":
    cyclopts.run(main)
