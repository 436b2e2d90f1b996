"""How tokens are drawn: against transformers' own processors, step by step as at once, and what settings make of options."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList
from transformers.generation import logits_process as theirs

import tts
from tests.scripted import ScriptedEngine
from tts.data.store import RunStore
from tts.demo import MODELS
from tts.engines.counting import MOST, bias_of, check_counts, cut_at_stop
from tts.engines.drawing import draw, penalize, truncate, uniform
from tts.engines.sglang import SGLangEngine
from tts.engines.vllm import VLLMEngine
from tts.errors import InputError
from tts.options import without_defaults
from tts.runs.settings import RunSettings
from tts.solving.generator import Generator
from tts.types import PARAMETERS, Candidate, Problem, Sampling, Step

ENDS = (3, 7)
SHAPES = [
    {"top_k": 5},
    {"top_k": 1},
    {"top_k": 500},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"top_p": 0.6},
    {"temperature": 0.6, "top_p": 0.95, "top_k": 20},
    {"temperature": 1.5, "top_k": 12, "top_p": 0.7, "min_p": 0.15},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7},
    {"min_tokens": 4},
    {"min_tokens": 3},
    {"repetition_penalty": 1.2, "min_tokens": 9, "temperature": 0.8, "top_k": 15, "top_p": 0.8, "min_p": 0.05},
]
PENALTIES = {"repetition_penalty": 1.2, "presence_penalty": 0.6, "frequency_penalty": 0.3}
FULL = Sampling(**PENALTIES, temperature=0.8, top_k=20, min_p=0.02, min_tokens=30, max_tokens=60)


def processors(sampling: Sampling, prefix: int) -> LogitsProcessorList:
    """The processors of transformers, in the order of `generate`."""
    found: list = []
    if sampling.repetition_penalty != 1:
        found.append(theirs.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.min_tokens:
        found.append(theirs.MinNewTokensLengthLogitsProcessor(prefix, sampling.min_tokens, list(ENDS)))
    found.append(theirs.TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k:
        found.append(theirs.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        found.append(theirs.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        found.append(theirs.MinPLogitsWarper(sampling.min_p))
    return LogitsProcessorList(found)


def distributions(sampling: Sampling, logits: torch.Tensor, prefix: list[int], tokens: list[int]) -> tuple:
    """Ours and theirs, each as probabilities of the vocabulary."""
    reference = processors(sampling, len(prefix))(torch.tensor([[*prefix, *tokens]]), logits[None].clone())[0].softmax(-1)
    own = logits.clone()
    penalize(own, sampling, prefix, tokens, ENDS)
    [ours] = truncate((own / sampling.temperature).softmax(-1)[None], [sampling])
    return ours / ours.sum(), reference


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_distribution_is_that_of_transformers_processors(shape):
    draws = torch.Generator().manual_seed(1)
    for tokens in ([], [5, 5, 9], [5, 9, 9, 11]):
        logits = (3 * torch.randn(50, generator=draws)).round(decimals=1)  # with ties
        ours, reference = distributions(Sampling(**shape), logits, [1, 2, 9, 30], tokens)
        assert torch.equal(ours > 0, reference > 0)
        assert torch.allclose(ours, reference, atol=1e-6)


def test_presence_and_frequency_are_openais_formula_over_the_candidates_own_tokens():
    logits = torch.linspace(-2, 2, 12)
    sampling = Sampling(presence_penalty=0.5, frequency_penalty=0.25, written=2)
    own = logits.clone()
    penalize(own, sampling, [1, 2, 4, 5], [5, 5, 6], ENDS)  # 1 and 2 are the prompt
    off = torch.zeros(12)
    off[4], off[5], off[6] = 0.5 + 0.25, 0.5 + 3 * 0.25, 0.5 + 0.25
    assert torch.allclose(own, logits - off)
    assert torch.allclose(penalized(logits, replace(sampling, written=0), [1, 2, 4, 5], []), logits)


def penalized(logits, sampling, prefix, tokens):
    penalize(own := logits.clone(), sampling, prefix, tokens, ENDS)
    return own


@pytest.mark.parametrize("shape", [SHAPES[7], SHAPES[12], {"temperature": 0.7, **PENALTIES, "written": 2}], ids=str)
def test_draws_follow_the_distribution(shape):
    """Pearson's chi-square of 20,000 draws, beside rows that are drawn otherwise."""
    sampling, count = Sampling(**shape), 20000
    logits = torch.randn(40, generator=torch.Generator().manual_seed(2))
    logits = penalized(logits, sampling, [1, 2, 9], [9, 4])
    [expected] = truncate((logits / sampling.temperature).softmax(-1)[None], [sampling])
    expected = expected / expected.sum()
    rows = [sampling, Sampling(), Sampling(top_k=2), Sampling(0)] * count
    u = uniform([3] * (4 * count), range(4 * count))
    found = draw(logits.expand(4 * count, 40), rows, u)[::4]
    assert torch.equal(found, draw(logits.expand(count, 40), [sampling] * count, u[::4]))  # its neighbours change nothing
    counts = torch.bincount(found, minlength=40)
    assert counts[expected == 0].sum() == 0
    likely = expected * count >= 5
    square = ((counts - expected * count)[likely] ** 2 / (expected * count)[likely]).sum().item()
    freedom = int(likely.sum()) - 1
    assert square < freedom + 4 * (2 * freedom) ** 0.5


async def test_samples_of_the_engine_follow_the_processed_distribution(engine, problems):
    """Chi-square of the second token of a solution that is being continued, over the vocabulary of the bundled policy."""
    prompt = engine.encode(problems[0])
    [start] = (await engine.generate(prompt, 1, Sampling(seed=1, max_tokens=12))).steps
    prefix, count = (*prompt, *start.token_ids), 3000
    sampling = Sampling(temperature=3.0, top_k=30, max_tokens=1, written=len(start.token_ids), **PENALTIES)
    with torch.no_grad():
        logits = engine.model(torch.tensor([prefix])).logits[0, -1].float()
    penalize(logits, sampling, prefix, [], engine.loop.ends)
    [expected] = truncate((logits / 3.0).softmax(-1)[None], [sampling])
    expected = (expected / expected.sum()).numpy()
    steps = (await engine.generate(prefix, count, sampling)).steps
    counts = np.bincount([step.token_ids[0] for step in steps], minlength=len(expected))
    likely = expected * count >= 5
    assert likely.sum() > 5
    square = ((counts - expected * count)[likely] ** 2 / (expected * count)[likely]).sum()
    freedom = likely.sum() - 1
    assert square < freedom + 4 * (2 * freedom) ** 0.5
    assert counts[expected == 0].sum() == 0


async def test_greedy_text_with_penalties_is_that_of_transformers_generate(engine, problems):
    for problem in problems[:3]:
        prefix = engine.encode(problem)
        sampling = Sampling(0, max_tokens=60, repetition_penalty=1.3, min_tokens=50)
        [ours] = (await engine.generate(prefix, 1, sampling)).steps
        reference = engine.model.generate(
            torch.tensor([prefix]), do_sample=False, max_new_tokens=60, min_new_tokens=50, repetition_penalty=1.3
        )
        assert list(ours.token_ids) == reference[0, len(prefix) :].tolist()
        assert len(ours.token_ids) >= 50


async def test_penalties_and_min_tokens_count_a_solution_that_grows_step_by_step(engine, problems):
    for problem in problems[:4]:
        generator = Generator(engine, problem, replace(FULL, temperature=0))
        [whole] = await generator.finish(Candidate(problem))
        grown = Candidate(problem)
        while not grown.done:
            [grown] = await generator.step(grown)
        assert len(grown.steps) > 1
        assert grown.token_ids == whole.token_ids
        assert len(grown.token_ids) >= 30


async def test_log_probabilities_are_the_models_own_whatever_is_penalized(engine, problems):
    prefix = engine.encode(problems[0])
    [step] = (await engine.generate(prefix, 1, replace(FULL, logprobs=True, confidence=5))).steps
    with torch.no_grad():
        raw = engine.model(torch.tensor([[*prefix, *step.token_ids]])).logits[0].log_softmax(-1)[len(prefix) - 1 : -1]
    assert step.logprobs == pytest.approx([raw[i, token].item() for i, token in enumerate(step.token_ids)], abs=1e-4)
    assert step.confidence == pytest.approx((-raw.topk(5).values.mean(-1)).tolist(), abs=1e-4)


async def test_the_generator_says_what_is_written_and_what_is_left_of_min_tokens():
    asked = []

    class Recording(ScriptedEngine):
        async def generate(self, prefix, n, sampling):
            asked.append((sampling.written, sampling.min_tokens))
            return await super().generate(prefix, n, sampling)

    problem = Problem("p", "question")
    generator = Generator(Recording(lambda prompt, seed: "abc\n\ndefg\n\nh"), problem, Sampling(min_tokens=8))
    candidate = Candidate(problem)
    while not candidate.done:
        [candidate] = await generator.step(candidate)
    assert asked == [(0, 8), (5, 3), (11, 0)]


# settings


def test_requests_say_what_is_not_neutral_or_everything():
    assert Sampling(max_tokens=5, stop=("x",), seed=4).parameters() == {}
    assert Sampling(0.6, top_k=20).parameters() == {"temperature": 0.6, "top_k": 20}
    assert Sampling(0.6).parameters(neutral=True) == {
        "temperature": 0.6, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
        "frequency_penalty": 0.0, "min_tokens": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"top_k": -1}, "--top-k is -1"),
        ({"min_p": 1.5}, "--min-p is 1.5"),
        ({"repetition_penalty": 0}, "--repetition-penalty is 0"),
        ({"presence_penalty": 2.5}, "--presence-penalty is 2.5"),
        ({"frequency_penalty": "much"}, "--frequency-penalty is 'much'"),
        ({"min_tokens": 50, "max_tokens": 40}, "--min-tokens is 50; --max-tokens, which is 40"),
        ({"generation_config": "theirs"}, "none or model"),
        ({"generation_config": "model", "model": "a-name-of-a-server"}, "--generation-config model: cannot read"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        RunSettings(**wrong)


def recommending(folder, **values):
    """A copy of the bundled policy whose generation_config.json says something about sampling."""
    shutil.copytree(MODELS["arith-policy"], folder)
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(config | values))
    return str(folder)


def test_a_models_own_values_are_used_by_choice_only_and_run_json_has_what_was_used(tmp_path, caplog):
    own = {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.05, "do_sample": True, "max_new_tokens": 7, "top_p": None}
    model = recommending(tmp_path / "own", **own)
    with caplog.at_level(logging.WARNING):
        for name, more in (("neutral", {"top_k": 4}), ("theirs", {"generation_config": "model", "temperature": 1.0})):
            tts.run("single", model=model, limit=1, max_tokens=20, out=tmp_path / name, **more)
    [notice] = [record.message for record in caplog.records if "generation_config.json" in record.message]
    assert "--temperature 0.6 --repetition-penalty 1.05, which is not used" in notice
    used = [RunStore.open(tmp_path / name).settings for name in ("neutral", "theirs")]
    assert [{name: settings[name] for name in PARAMETERS[:5]} for settings in used] == [
        {"temperature": 1.0, "top_p": 1.0, "top_k": 4, "min_p": 0.0, "repetition_penalty": 1.0},
        {"temperature": 1.0, "top_p": 1.0, "top_k": 20, "min_p": 0.0, "repetition_penalty": 1.05},
    ]
    tts.run(resume=tmp_path / "theirs")
    with pytest.raises(InputError, match="was started with --top-k 20, not 3"):
        tts.run(resume=tmp_path / "theirs", top_k=3)


def test_a_recommendation_that_is_no_value_is_refused_or_left_out(tmp_path, caplog):
    model = recommending(tmp_path / "odd", temperature="hot", top_p=0.9)
    with pytest.raises(InputError, match=r"generation_config.json of .*: temperature is 'hot'"):
        RunSettings(model=model, generation_config="model")
    with caplog.at_level(logging.WARNING):
        RunSettings(model=model).note_recommended()
        RunSettings(model=model, temperature=0).note_recommended()  # greedy text has no tail to cut off
    assert [record.message for record in caplog.records if "--top-p 0.9, which" in record.message]
    assert len(caplog.records) == 1
    served = RunSettings(model="a-servers-name", engine_args={"tokenizer": model}, top_p=1.0)
    assert [(o.name, value) for o, value in served._passed_over()] == [("top_p", 0.9)]


def test_a_run_from_before_these_options_resumes(tmp_path):
    tts.run("bon", limit=2, n=2, max_tokens=20, out=tmp_path / "old")
    run = json.loads((tmp_path / "old" / "run.json").read_text())
    for name in (*PARAMETERS[2:], "generation_config"):
        del run["settings"][name]
    (tmp_path / "old" / "run.json").write_text(json.dumps(run))
    rows = (tmp_path / "old" / "results.jsonl").read_text()
    tts.run(resume=tmp_path / "old")
    assert (tmp_path / "old" / "results.jsonl").read_text() == rows


def test_options_that_were_not_given_are_not_saved():
    assert without_defaults(RunSettings()) == {}
    assert without_defaults(RunSettings(top_k=20, temperature=1.0)) == {"top-k": 20}


# engines that take the whole prefix for the prompt


@pytest.mark.parametrize(
    ("shape", "repeats_prompt", "message"),
    [
        ({"presence_penalty": 1.0, "written": 3}, True, "X applies --presence-penalty only to tokens that one request"),
        ({"frequency_penalty": 1.0, "repetition_penalty": 1.1, "written": 3}, True, "omit one of them"),
        ({"repetition_penalty": 1.1}, False, "not to those of the prompt"),
    ],
)
def test_penalties_that_would_count_something_else_are_refused(shape, repeats_prompt, message):
    with pytest.raises(InputError, match=message):
        check_counts(Sampling(**shape), "X", repeats_prompt=repeats_prompt)


def test_penalties_that_count_the_same_are_not_refused():
    check_counts(Sampling(**PENALTIES), "X", repeats_prompt=True)
    check_counts(Sampling(presence_penalty=1, frequency_penalty=1), "X", repeats_prompt=False)
    check_counts(Sampling(top_k=3, min_p=0.1, min_tokens=5, frequency_penalty=1, written=9), "X", repeats_prompt=False)


def test_the_frequency_penalty_of_a_prefix_is_a_bias():
    prefix, sampling = [1, 2, 5, 6, 5], Sampling(frequency_penalty=0.5, written=3)
    assert bias_of(sampling, prefix) == {5: -1.0, 6: -0.5}
    assert bias_of(replace(sampling, written=0), prefix) == {}
    assert bias_of(Sampling(written=3), prefix) == {}
    whole = penalized(torch.zeros(12), sampling, prefix, [6, 8])
    own = penalized(torch.zeros(12), replace(sampling, written=0), prefix, [6, 8])
    for token, value in bias_of(sampling, prefix).items():
        own[token] += value
    assert torch.allclose(whole, own)
    with pytest.raises(ValueError, match=f"takes {MOST}"):
        bias_of(replace(sampling, written=2000), list(range(2000)))


def test_vllm_reports_no_other_log_probabilities():
    with pytest.raises(InputError, match="logprobs_mode is processed_logprobs; tts needs raw_logprobs"):
        VLLMEngine("arith-policy", logprobs_mode="processed_logprobs")


def test_a_continuation_is_cut_at_a_stop_string_that_was_overlooked():
    def decode(tokens):
        return "".join(map(chr, tokens))

    step = Step("ab|cd|", tuple(b"ab|cd|"), "length", logprobs=(-1.0,) * 6, top=({},) * 6)
    sampling = Sampling(min_tokens=5, stop=("|",))
    cut = cut_at_stop(step, sampling, decode)
    assert cut == Step("ab|", tuple(b"ab|"), "step", logprobs=(-1.0,) * 3)
    assert len(cut.top) == 3
    assert cut_at_stop(step, replace(sampling, min_tokens=0), decode) is step
    assert cut_at_stop(step, replace(sampling, stop=("x",)), decode) == step


async def test_sglang_gets_every_value_and_reads_again_what_it_drew_from_another_distribution(problems):
    engine, asked = SGLangEngine("arith-policy", url="http://127.0.0.1:9"), []
    prompt = engine.encode(problems[0])

    async def answer(request):
        asked.append(request)
        if request["sampling_params"]["max_new_tokens"]:
            return {"output_ids": [5, 6], "meta_info": {"finish_reason": {"type": "length"}}}
        [ids] = request["input_ids"]
        assert ids == [*prompt, 5, 6]
        logprobs = [(None, prompt[-1], None), (-0.5, 5, None), (-0.25, 6, None)]
        return [{"meta_info": {"input_token_logprobs": logprobs}}]

    engine._ask = answer
    for temperature, requests in ((1.0, 1), (0.6, 3)):
        [step] = (await engine.generate(prompt, 1, Sampling(temperature, max_tokens=2, logprobs=True))).steps
        assert len(asked) == requests
        assert asked[requests - 1]["return_logprob"]
    assert step.logprobs == (-0.5, -0.25)
    said = asked[0]["sampling_params"]
    neutral = Sampling().parameters(neutral=True)
    neutral["min_new_tokens"] = neutral.pop("min_tokens")
    assert {name: said[name] for name in neutral} == neutral
    await engine.generate((*prompt, 5, 6, 5), 1, Sampling(frequency_penalty=0.5, written=3))
    assert asked[-1]["sampling_params"]["logit_bias"] == {"5": -1.0, "6": -0.5}
    with pytest.raises(InputError, match="SGLang applies --presence-penalty only"):
        await engine.generate((*prompt, 5), 1, Sampling(presence_penalty=0.5, written=1))
    await engine.close()
