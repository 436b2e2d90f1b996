"""The real vLLM and SGLang on the bundled policy. Skipped in an environment that has neither.

make real    # installs each in its own environment and runs this folder's tests there
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.real.serving import free_port, process
from tests.test_models import write_adapter
from tts.demo import MODELS, arith
from tts.engines import load_engine
from tts.engines.transformers import TransformersEngine
from tts.solving.generator import Generator
from tts.types import Candidate, Problem, Sampling

ROOT = Path(__file__).parents[2]
PROBLEMS = [Problem(f"dev-{i}", chain.prompt, chain.answer) for i, chain in enumerate(arith.take("dev", 6))]
ARGUMENTS = {
    "vllm": {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "gpu_memory_utilization": 0.5},
    "sglang": {
        "device": "cpu", "attention_backend": "torch_native", "dtype": "float32", "max_total_tokens": 32768,
        "max_running_requests": 64, "disable_overlap_schedule": True,
    },
}  # fmt: skip
SERVE = {
    "vllm": ["-m", "vllm.entrypoints.openai.api_server", "--model", str(MODELS["arith-policy"]), "--dtype", "float32",
             "--enforce-eager", "--max-model-len", "512", "--enable-prompt-tokens-details", "--no-enable-chunked-prefill",
             "--gpu-memory-utilization", "0.5"],
    "sglang": ["-m", "sglang.launch_server", "--model-path", str(MODELS["arith-policy"]), "--device", "cpu",
               "--attention-backend", "torch_native", "--dtype", "float32", "--max-total-tokens", "32768",
               "--max-running-requests", "64", "--disable-overlap-schedule", "--enable-cache-report"],
}  # fmt: skip
HERE = [name for name in ("vllm", "sglang") if importlib.util.find_spec(name)]
pytestmark = pytest.mark.skipif(not HERE, reason="NEITHER vLLM NOR SGLANG IS INSTALLED HERE: run `make real`")
NAME = HERE[0] if HERE else ""


@pytest.fixture(scope="module")
def loop():
    """One event loop for the module, since a real engine can be used in only one."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def inside(loop):
    engine = load_engine(NAME, "arith-policy", options=ARGUMENTS[NAME])
    yield engine
    loop.run(engine.close())


@pytest.fixture(scope="module")
def url():
    port = free_port()
    with process(SERVE[NAME], port):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def over_http(loop, url):
    engine = load_engine("server", "arith-policy", url=url)
    yield engine
    loop.run(engine.close())


@pytest.fixture(scope="module")
def native(loop, url):
    if NAME != "sglang":
        pytest.skip("the native /generate server is SGLang's")
    engine = load_engine("sglang", "arith-policy", url=url)
    yield engine
    loop.run(engine.close())


KINDS = ["inside", "over_http", "native"]


@pytest.fixture(params=KINDS)
def engine(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def embedded():
    return TransformersEngine("arith-policy")


def test_greedy_equals_the_embedded_engine_token_for_token(loop, engine, embedded):
    async def work():
        for problem in PROBLEMS:
            sampling = Sampling(temperature=0, max_tokens=200)
            [ours] = (await embedded.generate(embedded.encode(problem), 1, sampling)).steps
            [theirs] = (await engine.generate(engine.encode(problem), 1, sampling)).steps
            eos = embedded.tokenizer.eos_token_id  # a server that returns text omits the end token
            assert [t for t in theirs.token_ids if t != eos] == [t for t in ours.token_ids if t != eos]
            assert (theirs.text, theirs.finish) == (ours.text, "stop")

    loop.run(work())


def test_a_greedy_solution_is_the_same_step_by_step_and_at_once(loop, engine):
    async def work():
        for problem in PROBLEMS[:3]:
            generator = Generator(engine, problem, Sampling(temperature=0, max_tokens=200))
            [whole] = await generator.finish(Candidate(problem))
            grown = Candidate(problem)
            while not grown.done:
                [grown] = await generator.step(grown)
            assert grown.text == whole.text
            assert [step.text for step in grown.steps] == [step.text for step in whole.steps]

    loop.run(work())


def test_length_stop_and_step_are_distinguished(loop, engine):
    async def work():
        prefix = engine.encode(PROBLEMS[0])
        [step] = (await engine.generate(prefix, 1, Sampling(stop=("\n\n",), seed=1))).steps
        assert step.finish == "step"
        assert step.text.endswith("\n\n")
        [short] = (await engine.generate(prefix, 1, Sampling(max_tokens=5, seed=1))).steps
        assert short.finish == "length"
        [whole] = (await engine.generate(prefix, 1, Sampling(seed=1, max_tokens=200))).steps
        assert whole.finish == "stop"

    loop.run(work())


def test_greedy_samples_are_equal_and_all_returned(loop, engine):
    async def work():
        generation = await engine.generate(engine.encode(PROBLEMS[0]), 3, Sampling(temperature=0, max_tokens=200))
        assert len(generation.steps) == 3
        assert len(set(generation.steps)) == 1

    loop.run(work())


def test_samples_differ_and_are_all_returned(loop, engine):
    async def work():
        generation = await engine.generate(engine.encode(PROBLEMS[0]), 12, Sampling(seed=7, max_tokens=200))
        assert len(generation.steps) == 12
        assert len({step.text for step in generation.steps}) > 2

    loop.run(work())


def test_the_same_seed_gives_the_same_samples_where_the_engine_takes_seeds(loop, engine):
    if NAME != "vllm":
        pytest.skip("SGLang takes no seed for a sample outside its deterministic mode")

    async def work():
        prefix = engine.encode(PROBLEMS[1])
        first, second, other = [await engine.generate(prefix, 4, Sampling(seed=s, max_tokens=200)) for s in (3, 3, 50)]
        assert [s.text for s in first.steps] == [s.text for s in second.steps]
        assert [s.text for s in first.steps] != [s.text for s in other.steps]

    loop.run(work())


def test_a_prefix_is_not_computed_twice(loop, engine):
    async def work():
        long = Problem("long", "\n".join(f"{i % 9 + 1}) add {i % 7 + 2}" for i in range(40)))
        prefix = engine.encode(long)
        await engine.generate(prefix, 1, Sampling(max_tokens=2))
        again = await engine.generate(prefix, 1, Sampling(max_tokens=2))
        assert again.cached_tokens > len(prefix) / 2

    loop.run(work())


def test_vllm_has_its_batch_sizes_for_offline_work(inside):
    if NAME != "vllm":
        pytest.skip("a matter of vLLM's defaults")
    from vllm import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    offline = AsyncEngineArgs(model=str(MODELS["arith-policy"]), **ARGUMENTS["vllm"]).create_engine_config(
        UsageContext.LLM_CLASS
    )
    assert inside.llm.vllm_config.scheduler_config.max_num_seqs == offline.scheduler_config.max_num_seqs


def test_logprobs(loop, inside, embedded):
    async def work():
        prefix = inside.encode(PROBLEMS[0])
        sampling = Sampling(temperature=0, max_tokens=30, logprobs=True, confidence=5)
        [theirs] = (await inside.generate(prefix, 1, sampling)).steps
        [ours] = (await embedded.generate(prefix, 1, sampling)).steps
        assert theirs.logprobs == pytest.approx(ours.logprobs, abs=1e-3)
        assert theirs.confidence == pytest.approx(ours.confidence, abs=1e-2)

    loop.run(work())


def test_usage_is_what_the_backend_reports(loop, url):
    """Compare the generator's token count, candidate by candidate, with the server's."""

    async def work():
        engine = load_engine("server", "arith-policy", url=url)
        reported = []
        ask = engine.client.ask

        async def listening(path, body, read):
            answer = await ask(path, body, read)
            reported.append(answer.generated_tokens)
            return answer

        engine.client.ask = listening
        generator = Generator(engine, PROBLEMS[0], Sampling(max_tokens=200))
        candidates = await generator.finish(Candidate(PROBLEMS[0]), 8)
        await engine.close()
        assert generator.usage.generated == sum(reported)
        if NAME == "vllm":  # SGLang's completions endpoint returns text, without the end token
            assert sum(len(c.token_ids) for c in candidates) == sum(reported)

    loop.run(work())


def test_an_adapter_is_applied(tmp_path):
    """Run in a new process, because the module's engine was started without adapters."""
    if NAME == "sglang":
        pytest.skip("SGLang 0.5.23 pins the memory of adapters, which needs an accelerator")
    adapter, merged = write_adapter(tmp_path)
    [expected] = asyncio.run(greedy(TransformersEngine(merged)))
    code = f"""
import asyncio, json
from tests.real.test_engines import ARGUMENTS, NAME, greedy, load_engine
if __name__ == "__main__":
    engine = load_engine(NAME, "arith-policy", options=ARGUMENTS[NAME] | {{"adapter": {adapter!r}}})
    [step] = asyncio.run(greedy(engine))
    print("TOKENS", json.dumps(step.token_ids))
"""
    (script := tmp_path / "adapted.py").write_text(code)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=600, env=os.environ | {"PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("TOKENS "))
    assert json.loads(line.removeprefix("TOKENS ")) == list(expected.token_ids)


async def greedy(engine):
    generation = await engine.generate(engine.encode(PROBLEMS[0]), 1, Sampling(temperature=0, max_tokens=40))
    await engine.close()
    return generation.steps


def children(session):
    """List the processes of a session that are still running."""
    return subprocess.run(["pgrep", "-a", "-s", str(session)], capture_output=True, text=True).stdout


def test_ctrl_c_during_generation_leaves_no_process_running(tmp_path):
    arguments = [f"--engine-arg={name}={value}" for name, value in ARGUMENTS[NAME].items()]
    process = subprocess.Popen(
        [sys.executable, "-m", "tts.cli", "run", "--engine", NAME, *arguments, "--limit", "300", "--n", "16", "--out",
         str(tmp_path / "r")], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    results, deadline = tmp_path / "r" / "results.jsonl", time.monotonic() + 300
    while not (results.exists() and results.read_text().count("\n") >= 2):
        assert process.poll() is None, process.stderr.read()[-3000:]
        assert time.monotonic() < deadline, "nothing was solved within 300 s"
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # sent to every process of the group, as a terminal does
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "tts run --resume" in errors
    deadline = time.monotonic() + 20
    while (left := children(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left == ""


def test_a_run_from_the_command_line_leaves_no_process_running(tmp_path):
    arguments = [f"--engine-arg={name}={value}" for name, value in ARGUMENTS[NAME].items()]
    done = subprocess.run(
        [sys.executable, "-m", "tts.cli", "run", "--engine", NAME, *arguments, "--limit", "4", "--n", "4", "--json", "--out",
         str(tmp_path / "r"), "--max-tokens", "200"],
        capture_output=True, text=True, timeout=600, start_new_session=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert '"failed": 0' in done.stdout.splitlines()[-1]
    assert subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True).stdout == ""
