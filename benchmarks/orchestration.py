"""What `tts` adds to vLLM: best-of-16 over 64 problems through `--engine vllm`, against one `LLM.generate` call.

    | LLM.generate | tts | ratio |
    | 12.1 s       | 12.4 s | 1.02 |

Run by the python of an environment with vLLM: `.venvs/vllm/bin/python benchmarks/orchestration.py`. Both engines have the
same settings and draw the same samples (same seeds); they run one after the other, in turn, `--repeat` times. The reward is a
constant, so that the time is generation, answers and the run folder, and no PRM's.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import typer

SETTINGS = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "enable_prefix_caching": True}
N, PROBLEMS = 16, 64


class Constant:
    async def score(self, candidates):
        from tts.types import Reward

        return [Reward((1.0,), 1.0) for _ in candidates]


def main(repeat: int = 5) -> None:
    from vllm import LLM, SamplingParams, TokensPrompt

    from tts.clock import Clock
    from tts.engines.vllm import VLLMEngine
    from tts.evals.benchmarks import load_benchmark
    from tts.generator import derive_seed
    from tts.models import locate
    from tts.runner import Progress, Settings, _Run
    from tts.store import RunStore
    from tts.strategies.bon import BestOfN

    benchmark = load_benchmark("arith:dev", PROBLEMS)
    engine = VLLMEngine("arith-policy", **SETTINGS)
    plain = LLM(locate("arith-policy"), disable_log_stats=True, **SETTINGS)
    prefixes = [engine.encode(problem) for problem in benchmark.problems]
    ours, theirs = [], []
    with asyncio.Runner() as runner, tempfile.TemporaryDirectory() as folder:
        for r in range(repeat + 1):
            seeds = [derive_seed(r, p.id, *prefix) for p, prefix in zip(benchmark.problems, prefixes, strict=True)]
            parameters = [SamplingParams(n=N, temperature=1.0, max_tokens=400, seed=s, detokenize=False) for s in seeds]
            start = time.perf_counter()
            outputs = plain.generate([TokensPrompt(prompt_token_ids=list(p)) for p in prefixes], parameters, use_tqdm=False)
            theirs.append(time.perf_counter() - start)
            tokens = sum(len(c.token_ids) for output in outputs for c in output.outputs)

            settings = Settings(engine="vllm", seed=r, max_tokens=400, benchmark="arith:dev")
            store = RunStore.create(Path(folder, str(r)), {}, {})
            progress = replace(Progress(), clock=Clock())
            job = _Run(settings, BestOfN(N), benchmark, engine, Constant(), store, 64, progress)
            start = time.perf_counter()
            summary = runner.run(job.solve())
            ours.append(time.perf_counter() - start)
            print(f"LLM.generate {theirs[-1]:.2f} s, {tokens} tokens; tts {ours[-1]:.2f} s, {summary.usage.generated} tokens")
        runner.run(engine.close())
    ratios = [a / b for a, b in zip(ours[1:], theirs[1:], strict=True)]  # the first of each is a warm-up
    print("| LLM.generate | tts | ratio, median of pairs | range |\n|---|---|---|---|")
    print(
        f"| {statistics.median(theirs[1:]):.2f} s | {statistics.median(ours[1:]):.2f} s | {statistics.median(ratios):.3f} |"
        f" {min(ratios):.3f} – {max(ratios):.3f} |"
    )


if __name__ == "__main__":
    typer.run(main)
