"""Three real vLLM servers that share the problems of a run, one of which is killed."""

from __future__ import annotations

import importlib.util
import json
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

import tts
from tests.real.serving import free_port, process
from tests.real.test_engines import SERVE
from tts.data.store import RunStore
from tts.engines.http import JsonClient

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM IS NOT INSTALLED HERE: run `make real`"
)  # fmt: skip
PROBLEMS = 40


@pytest.fixture(scope="module")
def ports():
    """Three servers, started at the same time."""
    with ExitStack() as stack:
        ports = [free_port() for _ in range(3)]
        starting = [stack.enter_context(process(SERVE["vllm"], port, wait=False)) for port in ports]
        for server in starting:
            server.ready()
        yield dict(zip(ports, starting, strict=True))


def rows(folder):
    return {record.id: record.to_json() for record in RunStore.open(Path(folder)).records()}


def test_a_run_goes_on_when_one_of_three_servers_is_killed(ports, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"engine": "server", "limit": PROBLEMS, "n": 4, "concurrency": 4, "max_tokens": 200}
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    undisturbed = tts.run("beam", url=urls[0], out="alone", **settings)
    assert undisturbed.failed == 0
    results = Path("three/results.jsonl")

    def kill():
        while not results.exists() or results.read_bytes().count(b"\n") < PROBLEMS // 4:
            time.sleep(0.01)
        ports[next(reversed(ports))].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    summary = tts.run("beam", url=urls, out="three", **settings)
    killer.join()
    assert summary.failed == 0
    assert rows("three") == rows("alone")
    [notice] = json.loads(Path("three/run.json").read_text())["notices"]
    assert notice.startswith(f"lost the server {urls[-1]}")


async def test_a_seed_of_31_bits_is_all_that_vllm_needs(ports):
    client = JsonClient(f"http://127.0.0.1:{next(iter(ports))}")
    body = {"model": SERVE["vllm"][3], "prompt": "Start with", "max_tokens": 8, "seed": 2**31 - 1}
    answers = [await client.post("/v1/completions", body) for _ in range(2)]
    await client.close()
    assert answers[0]["choices"][0]["text"] == answers[1]["choices"][0]["text"]
