"""Overhead of orchestration: 16 samples for each of 64 problems through `tts.run` and the vllm engine, against `LLM.generate`.

    | LLM.generate, s | tokens  | tts.run, s | tokens  | tts / LLM |
    | 10.44           | 104,293 | 10.47      | 104,293 | 1.039     |

`python benchmarks/orchestration.py`, in an environment with vLLM. Both get the same prompts, seeds, lengths and engine
settings. They take turns, and one is stopped while the other works. The table shows medians; the ratio is the median over
turns. `LLM.generate` only generates. `tts.run` also splits steps, grades answers and writes the run folder; its strategy is
majority voting, which needs no reward model.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import cyclopts
from contender import Contender

PROBLEMS, N, LONGEST = 64, 16, 200
SETTINGS = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 512,
    "enable_chunked_prefill": False,
    "gpu_memory_utilization": 0.3,
}


def through_llm():
    """Answer each line on stdin with the seconds and the tokens of one LLM.generate call."""
    from vllm import LLM, SamplingParams, TokensPrompt

    from tts.evals.benchmarks import load_benchmark
    from tts.models import checkpoints
    from tts.models.prompts import Prompter
    from tts.solving.generator import derive_seed

    prompter, problems = Prompter("arith-policy"), load_benchmark("arith", PROBLEMS).problems
    prompts = [prompter.encode(problem) for problem in problems]
    llm = LLM(checkpoints.locate("arith-policy"), enable_prefix_caching=True, **SETTINGS)
    parameters = [
        SamplingParams(n=N, temperature=1.0, max_tokens=LONGEST, seed=derive_seed(0, problem.id, *prompt), detokenize=False)
        for problem, prompt in zip(problems, prompts, strict=True)
    ]

    def work():
        outputs = llm.generate([TokensPrompt(prompt_token_ids=list(p)) for p in prompts], parameters, use_tqdm=False)
        return sum(len(sample.token_ids) for output in outputs for sample in output.outputs)

    answer(work, warm_up=work)


def through_tts():
    """Answer each line on stdin with the seconds and the tokens of one `tts.run` on a loaded engine."""
    import asyncio

    from tts import run
    from tts.engines.vllm import VLLMEngine

    engine = VLLMEngine("arith-policy", **SETTINGS)
    runner = asyncio.Runner()
    asyncio.run = lambda work, **_: runner.run(work)  # an engine of vLLM works in one event loop only

    def work():
        with tempfile.TemporaryDirectory() as folder:
            summary = run(
                "majority", n=N, limit=PROBLEMS, max_tokens=LONGEST, engine_instance=engine, out=Path(folder, "run"),
                concurrency=PROBLEMS,
            )  # fmt: skip
        return summary.usage.generated

    answer(work, warm_up=work)


def answer(work, warm_up):
    warm_up()
    print("READY", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        tokens = work()
        print("RESULT " + json.dumps([time.perf_counter() - start, tokens]), flush=True)


def main(repeat: int = 5, role: Annotated[str | None, cyclopts.Parameter(show=False)] = None) -> None:
    """Print a table of seconds, and their ratio."""
    if role:
        through_llm() if role == "llm" else through_tts()
        return
    contenders = {name: Contender(sys.executable, __file__, "--role", name) for name in ("llm", "tts")}
    taken = {name: [] for name in contenders}
    tokens = {}
    for _ in range(repeat):
        for name, contender in contenders.items():
            seconds, tokens[name] = json.loads(contender.ask("go"))
            taken[name].append(seconds)
    for contender in contenders.values():
        contender.close()
    median = {name: statistics.median(values) for name, values in taken.items()}
    print("| LLM.generate, s | tokens | tts.run, s | tokens | tts / LLM |\n|---|---|---|---|---|")
    ratio = statistics.median(tts / llm for tts, llm in zip(taken["tts"], taken["llm"], strict=True))
    print(f"| {median['llm']:.2f} | {tokens['llm']:,} | {median['tts']:.2f} | {tokens['tts']:,} | {ratio:.3f} |")


if __name__ == "__main__":
    cyclopts.run(main)
