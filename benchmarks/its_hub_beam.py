"""Beam search in tts and in its-hub 1.2: n = 16, 4 beams, 64 bundled problems, the same vLLM server and reward model.

    pip install 'its_hub[lm]==1.2.0'      # into an environment with vLLM and tts
    python benchmarks/its_hub_beam.py

Both work on all problems concurrently, with the same reward model in this process. its-hub recognises the end of a solution by
its `\\boxed`, since it ignores why the server stopped. They take turns, and medians are reported. `generations` is the number
of continuations requested from the server, `accuracy` the share of problems solved.
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import cyclopts

import tts
from tts.evals.benchmarks import load_benchmark
from tts.grading.pool import Grader
from tts.models import checkpoints
from tts.scorers.prm import PRM
from tts.types import Candidate, Step

N, BEAMS, LONGEST = 16, 4, 200


def serve():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", checkpoints.locate("arith-policy"),
         "--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--no-enable-chunked-prefill",
         "--gpu-memory-utilization", "0.5", "--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5)
            return process, f"http://127.0.0.1:{port}"
        except OSError:
            assert process.poll() is None, "vLLM did not start"
            time.sleep(1)


def by_tts(url, prm, seed, problems):
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        summary = tts.run(
            "beam", n=N, width=N // BEAMS, limit=problems, seed=seed, engine="server", url=url, scorer_instance=prm,
            max_tokens=LONGEST, out=Path(folder, "run"), concurrency=problems,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        trees = tts.data.store.RunStore.open(Path(folder, "run")).records()
    assert not summary.failed
    return seconds, sum(len(record.tree) for record in trees), summary.accuracy.value


def by_its_hub(url, prm, seed, problems):
    from its_hub.api import AbstractProcessRewardModel
    from its_hub.core.algorithms.beam_search import BeamSearch
    from its_hub.core.lms.openai_lm import OpenAICompatibleLanguageModel
    from its_hub.core.lms.step_generation import StepGeneration

    problems = load_benchmark("arith", problems).problems
    by_prompt = {problem.prompt: problem for problem in problems}
    asked = 0

    class Counting(StepGeneration):
        async def aforward(self, lm, prompts, steps, **options):
            nonlocal asked
            asked += len(prompts)
            return await super().aforward(lm, prompts, steps, **options)

    class Reward(AbstractProcessRewardModel):
        async def ascore(self, prompt, responses):
            problem = by_prompt[str(prompt)]
            rewards = await prm.score([Candidate(problem, (Step(text, (), "step"),)) for text in responses])
            return [reward.total for reward in rewards]

        def score(self, *_):
            raise NotImplementedError

    lm = OpenAICompatibleLanguageModel(f"{url}/v1", "none", checkpoints.locate("arith-policy"), max_completion_tokens=LONGEST)
    steps = Counting(20, "\n\n", "boxed", temperature=1.0, include_stop_str_in_output=True)
    search = BeamSearch(steps, Reward(), beam_width=BEAMS)

    async def solve():
        found = await asyncio.gather(*(search.ainfer(lm, problem.prompt, N) for problem in problems))
        seconds = time.perf_counter() - start
        grader = Grader()
        pairs = zip(problems, found, strict=True)
        verdicts = [await grader.judge([Candidate(p, (Step(f["content"], (), "stop"),))]) for p, f in pairs]
        await grader.close()
        return seconds, asked, sum(bool(verdict.correct) for [verdict] in verdicts) / len(problems)

    start = time.perf_counter()
    return asyncio.run(solve())


def main(repeat: int = 3, problems: int = 64) -> None:
    """Print a table of problems per second, generations and accuracy."""
    process, url = serve()
    try:
        prm = PRM("arith-prm")
        contenders = {"tts": by_tts, "its-hub": by_its_hub}
        results = {name: [] for name in contenders}
        for seed in range(repeat + 1):
            for name, solve in contenders.items():
                result = solve(url, prm, seed, problems)
                print(f"{name}, seed {seed}: {result[0]:.1f} s, {result[1]:,} generations", file=sys.stderr, flush=True)
                if seed:  # the first round is a warm-up
                    results[name].append(result)
    finally:
        os.killpg(process.pid, 9)
    print("| | problems per second | generations | accuracy |\n|---|---|---|---|")
    rates = {}
    for name, rows in results.items():
        seconds, generations, accuracy = (statistics.median(column) for column in zip(*rows, strict=True))
        rates[name] = problems / seconds
        print(f"| {name} | {rates[name]:.2f} | {generations:,} | {accuracy:.1%} |")
    print(f"| ratio | {rates['tts'] / rates['its-hub']:.2f} | | |")


if __name__ == "__main__":
    cyclopts.run(main)
