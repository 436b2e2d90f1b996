"""Reward models in the real vLLM, in its pooling runner and its server: rewards equal those of this process."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from contextlib import contextmanager

import pytest
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForTokenClassification

from tests.real.serving import free_port, process
from tts.demo import MODELS, arith
from tts.scorers.prm import PRM
from tts.solving.generator import Generator
from tts.train.prm.training import train_prm
from tts.train.settings import TrainPRMSettings
from tts.types import Candidate, Problem, Sampling, Step

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("vllm"), reason="vLLM IS NOT INSTALLED HERE: run `make real`")

ARGUMENTS = {"dtype": "float32", "enforce_eager": True, "max_model_len": 1024, "gpu_memory_utilization": 0.5}
PROBLEM = Problem("p", "Start with 7.\n1) multiply by 8\nWhat is the last digit?")
TEXTS = [
    "<think>\n1) 7*8=6\n\nWait, 7*8=6\n</think>\n\nmultiply by 8 gives 6\n\n\\boxed{6}",
    "a\n\nb",
    "One üñí 世界 step " * 12,
]
CANDIDATES = [Candidate(PROBLEM, (Step(text, (1,), "stop"),)) for text in TEXTS]


@pytest.fixture(scope="module")
def loop():
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A random token classification PRM in the layout that TRL's PRMTrainer saves."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "tiny-PRM"
    config = Qwen2Config(
        vocab_size=400, hidden_size=64, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=1024, num_labels=2, initializer_range=0.5,
    )  # fmt: skip
    Qwen2ForTokenClassification(config).save_pretrained(path)
    AutoTokenizer.from_pretrained(MODELS["arith-prm"]).save_pretrained(path)
    return str(path)


def same(one, other):
    for a, b in zip(one, other, strict=True):
        assert len(a.steps) == len(b.steps)
        assert a.steps == pytest.approx(b.steps, abs=1e-4)
        assert a.final == pytest.approx(b.final, abs=1e-4)


def test_the_pooling_runner(loop):
    prm = PRM("arith-prm", backend="vllm", **ARGUMENTS)
    same(loop.run(prm.score(CANDIDATES)), loop.run(PRM("arith-prm").score(CANDIDATES)))
    loop.run(prm.close())


@contextmanager
def served(model, *arguments):
    port = free_port()
    command = [
        "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--runner", "pooling", "--dtype", "float32",
        "--enforce-eager", "--gpu-memory-utilization", "0.5", *arguments,
    ]  # fmt: skip
    with process(command, port):
        yield f"http://127.0.0.1:{port}"


def test_a_server_that_pools_steps_at_a_tag(loop, problems, engine):
    # the default of vllm serve for this architecture, except that the bundled tokenizer has another tag
    [tag] = AutoTokenizer.from_pretrained(MODELS["arith-prm"]).convert_tokens_to_ids(["<extra_0>"])
    config = json.dumps({"pooling_type": "STEP", "step_tag_id": tag})
    with served(str(MODELS["arith-prm"]), "--pooler-config", config) as url:
        prm, here = PRM("arith-prm", backend="server", url=url), PRM("arith-prm")
        same(loop.run(prm.score(CANDIDATES)), loop.run(here.score(CANDIDATES)))
        drawn = loop.run(Generator(engine, problems[0], Sampling(seed=0, max_tokens=200)).finish(Candidate(problems[0]), 8))
        same(loop.run(prm.score(drawn)), loop.run(here.score(drawn)))
        loop.run(prm.close())


def test_a_server_that_answers_for_every_token(loop, classifier):
    with served(classifier) as url:
        prm, here = PRM(classifier, backend="server", url=url), PRM(classifier)
        same(loop.run(prm.score(CANDIDATES)), loop.run(here.score(CANDIDATES)))
        loop.run(prm.close())


@pytest.mark.parametrize("head", ["step", "both"])
def test_a_prm_trained_by_tts(loop, tmp_path, head):
    rows = [{"problem": PROBLEM.prompt, "text": TEXTS[0], "step_targets": [1, 0, 1, 0], "final_target": 1}] * 8
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "prm"
    train_prm(TrainPRMSettings(data=tmp_path / "rows.jsonl", out=out, head=head, max_steps=5, lr=1e-3, device="cpu"))
    rates_traces = head == "step"  # vLLM cannot compute reward_head.pt
    prm, here = PRM(str(out), final=rates_traces, backend="vllm", **ARGUMENTS), PRM(str(out), final=rates_traces)
    same(loop.run(prm.score(CANDIDATES)), loop.run(here.score(CANDIDATES)))
    loop.run(prm.close())


@pytest.fixture(scope="module")
def problems():
    return [Problem(f"dev-{i}", chain.prompt, chain.answer) for i, chain in enumerate(arith.take("dev", 2))]


@pytest.fixture(scope="module")
def engine():
    from tts.engines.transformers import TransformersEngine

    return TransformersEngine("arith-policy")
