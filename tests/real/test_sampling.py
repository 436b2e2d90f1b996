"""How the real vLLM and SGLang draw tokens, on a model whose generation_config.json recommends what no test asks for.

make real
"""

from __future__ import annotations

import asyncio
import json
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.real.serving import free_port, process
from tests.real.test_engines import ARGUMENTS, HERE, NAME, PROBLEMS, SERVE
from tests.test_sampling import PENALTIES, recommending
from tts.demo import MODELS
from tts.engines import load_engine
from tts.engines.drawing import penalize, truncate
from tts.engines.transformers import TransformersEngine
from tts.errors import InputError
from tts.solving.generator import Generator
from tts.types import Candidate, Sampling

pytestmark = pytest.mark.skipif(not HERE, reason="NEITHER vLLM NOR SGLANG IS INSTALLED HERE: run `make real`")
OWN = {"sglang": {"enable_custom_logit_processor": True}}
COUNT = 1500


@pytest.fixture(scope="module")
def loop():
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The bundled policy with flatter distributions: dozens of tokens are likely in every place."""
    folder = tmp_path_factory.mktemp("own") / "policy"
    name = recommending(folder, temperature=0.1, top_k=1, repetition_penalty=1.5, top_p=0.5)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= 0.4
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return name


@pytest.fixture(scope="module")
def inside(loop, model):
    engine = load_engine(NAME, model, options=ARGUMENTS[NAME] | OWN.get(NAME, {}))
    yield engine
    loop.run(engine.close())


@pytest.fixture(scope="module")
def url(model):
    port = free_port()
    with process([model if argument == str(MODELS["arith-policy"]) else argument for argument in SERVE[NAME]], port):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def native(loop, url, model):
    if NAME != "sglang":
        pytest.skip("the native /generate server is SGLang's")
    engine = load_engine("sglang", model, url=url)
    yield engine
    loop.run(engine.close())


@pytest.fixture(scope="module")
def over_http(loop, url, model):
    if NAME != "vllm":
        pytest.skip("SGLang's completions are text, without token ids to count")
    engine = load_engine("server", model, url=url)
    yield engine
    loop.run(engine.close())


@pytest.fixture(params=["inside", "native", "over_http"])
def engine(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def embedded(model):
    return TransformersEngine(model)


@pytest.fixture(scope="module")
def started(loop, embedded):
    """A prompt, and the start of a solution."""
    prompt = embedded.encode(PROBLEMS[0])
    [start] = loop.run(embedded.generate(prompt, 1, Sampling(seed=1, max_tokens=12))).steps
    return prompt, start.token_ids


def distribution(embedded, sampling, prefix):
    """What tokens follow a prefix, by the embedded model and the functions that the fast tests compare with transformers."""
    with torch.no_grad():
        logits = embedded.model(torch.tensor([prefix])).logits[0, -1].float()
    penalize(logits, sampling, prefix, [], embedded.loop.ends)
    [kept] = truncate((logits / sampling.temperature).softmax(-1)[None], [sampling])
    return (kept / kept.sum()).numpy()


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"top_k": 8},
        {"min_p": 0.05},
        {"repetition_penalty": 1.3},
        {"presence_penalty": 1.5, "frequency_penalty": 1.0},
        {"frequency_penalty": 1.0, "written": 12},
        {"min_tokens": 1, "top_k": 20},
        {**PENALTIES, "written": 12},
    ],
    ids=str,
)
def test_samples_follow_the_processed_distribution(loop, engine, embedded, started, shape):
    prompt, start = started
    sampling = Sampling(temperature=2.0, max_tokens=1, seed=3, **shape)
    prefix = (*prompt, *start)
    try:
        steps = loop.run(engine.generate(prefix, COUNT, sampling)).steps
    except InputError:
        assert sampling.penalized
        assert NAME == "vllm" or engine.client is not None  # SGLang in this process counts as tts does
        return
    expected = distribution(embedded, sampling, prefix)
    counts = np.bincount([step.token_ids[0] for step in steps], minlength=len(expected))
    assert counts[expected == 0].sum() == 0
    likely = expected * COUNT >= 5
    square = ((counts - expected * COUNT)[likely] ** 2 / (expected * COUNT)[likely]).sum()
    freedom = likely.sum() - 1
    assert freedom > 2
    assert square < freedom + 4 * (2 * freedom) ** 0.5


def test_greedy_text_with_penalties_is_that_of_the_embedded_engine(loop, inside, embedded):
    sampling = Sampling(0, max_tokens=60, min_tokens=40, **PENALTIES)
    for problem in PROBLEMS[:3]:
        prefix = inside.encode(problem)
        [theirs] = loop.run(inside.generate(prefix, 1, sampling)).steps
        [ours] = loop.run(embedded.generate(prefix, 1, sampling)).steps
        assert theirs.token_ids == ours.token_ids


def test_a_solution_grown_step_by_step_is_penalized_and_long_enough_as_at_once(loop, engine):
    penalties = PENALTIES if getattr(engine, "processor", None) else {"frequency_penalty": 0.3}
    for problem in PROBLEMS[:3]:
        generator = Generator(engine, problem, Sampling(0, max_tokens=60, min_tokens=40, **penalties))

        async def both(generator=generator, problem=problem):
            [whole] = await generator.finish(Candidate(problem))
            grown = Candidate(problem)
            while not grown.done:
                [grown] = await generator.step(grown)
            return whole, grown

        whole, grown = loop.run(both())
        assert len(grown.steps) > 1
        assert grown.token_ids == whole.token_ids
        assert len(grown.token_ids) >= 40
        assert [step.text for step in grown.steps] == [step.text for step in whole.steps]


def test_a_penalty_that_would_count_something_else_is_refused(loop, engine, started):
    prompt, start = started
    if getattr(engine, "processor", None):
        pytest.skip("this one counts as tts does")
    with pytest.raises(InputError, match="--presence-penalty only to tokens that one request generates"):
        loop.run(engine.generate((*prompt, *start), 1, Sampling(presence_penalty=1.0, written=len(start))))


@pytest.mark.parametrize(
    "shape",
    [{}, {"temperature": 0}, {"temperature": 0.6, "min_tokens": 5}, {"temperature": 2.0, "top_k": 5}, PENALTIES],
    ids=str,
)
def test_log_probabilities_are_the_models_own(loop, engine, embedded, shape):
    sampling = Sampling(**{"max_tokens": 20, "seed": 5, "logprobs": True, "confidence": 5, "top": 3, **shape})
    if NAME == "sglang" and engine.client is not None:
        sampling = replace(sampling, repetition_penalty=1.0)
    prefix = engine.encode(PROBLEMS[1])
    for step in loop.run(engine.generate(prefix, 3, sampling)).steps:
        with torch.no_grad():
            raw = embedded.model(torch.tensor([[*prefix, *step.token_ids]])).logits[0].log_softmax(-1)[len(prefix) - 1 : -1]
        assert step.logprobs == pytest.approx([raw[i, token].item() for i, token in enumerate(step.token_ids)], abs=2e-3)
        assert step.confidence == pytest.approx((-raw.topk(5).values.mean(-1)).tolist(), abs=2e-2)
        assert len(step.top) == len(step.token_ids)


def test_a_server_fills_in_what_is_left_out_and_not_what_is_said(url, model, embedded, started):
    """What `Sampling.parameters(neutral=True)` is for."""
    prompt, start = started

    def drawn(**said):
        body = {"model": model, "prompt": [*prompt, *start], "max_tokens": 1, "n": 40, "seed": 1, **said}
        request = urllib.request.Request(
            f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return {choice["text"] for choice in json.load(urllib.request.urlopen(request))["choices"]}

    hot = Sampling(temperature=2.0).parameters(neutral=True)
    assert len(drawn(**hot)) > 5
    if NAME == "vllm":  # SGLang's completions fill in nothing
        assert len(drawn(temperature=2.0)) == 1
