from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch

from tts.engines import decoding
from tts.engines.drawing import draw, uniform
from tts.engines.kv import PrefixStore, SlotCache
from tts.engines.transformers import TransformersEngine
from tts.errors import InputError
from tts.solving.generator import Generator
from tts.solving.segment import Segmenter
from tts.types import Candidate, Problem, Sampling


async def test_greedy_equals_transformers_token_for_token(engine, problems):
    prefixes = [engine.encode(problem) for problem in problems[:6]]
    ours = await asyncio.gather(*(engine.generate(prefix, 1, Sampling(temperature=0)) for prefix in prefixes))
    for prefix, generation in zip(prefixes, ours, strict=True):
        theirs = engine.model.generate(torch.tensor([prefix]), do_sample=False, max_new_tokens=900)
        assert list(generation.steps[0].token_ids) == theirs[0, len(prefix) :].tolist()
        assert generation.steps[0].finish == "stop"


async def test_the_prompt_follows_the_models_chat_template(engine, problems):
    messages = [{"role": "user", "content": problems[0].prompt}]
    expected = engine.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert list(engine.encode(problems[0])) == list(expected)


def sample_all(engine, problems, at_once, n=5):
    async def work():
        limit = asyncio.Semaphore(at_once)

        async def one(i, problem):
            async with limit:
                sampling = Sampling(seed=1000 * i, max_tokens=30 + 5 * i, top_p=0.9 + 0.01 * (i % 10))
                return (await engine.generate(engine.encode(problem), n, sampling)).steps

        return await asyncio.gather(*(one(i, problem) for i, problem in enumerate(problems)))

    return asyncio.run(work())


SIZES = [(16, 1, 64), (16, 24, 8), (256, 24, 8), (256, 24, 64)]


@pytest.mark.parametrize(
    ("max_rows", "at_once", "span"),
    [(48, 7, 16), *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in SIZES)],
)  # fmt: skip
def test_samples_do_not_depend_on_batch_size_or_concurrency(engine, problems, max_rows, at_once, span, monkeypatch):
    reference = sample_all(engine, problems, at_once=8)
    monkeypatch.setattr(decoding, "SPAN", span)  # rows move from span to span
    other = TransformersEngine("arith-policy", max_rows=max_rows)
    assert sample_all(other, problems, at_once) == reference


async def test_the_first_samples_of_a_large_n_are_those_of_a_small_n(engine, problems):
    prefix = engine.encode(problems[0])
    many = await engine.generate(prefix, 40, Sampling(seed=3))
    few = await engine.generate(prefix, 4, Sampling(seed=3))
    later = await engine.generate(prefix, 2, Sampling(seed=3 + 38))
    assert few.steps == many.steps[:4]
    assert later.steps == many.steps[38:]
    assert len(set(many.steps)) > 5


async def test_a_request_for_more_samples_than_the_batch_has_rows(problems):
    small = TransformersEngine("arith-policy", max_rows=16)
    generation = await small.generate(small.encode(problems[0]), 37, Sampling())
    assert [step.finish for step in generation.steps] == ["stop"] * 37


async def test_generation_stops_at_a_step_boundary_and_at_the_token_limit(engine, problems):
    prefix = engine.encode(problems[0])
    step = (await engine.generate(prefix, 1, Sampling(stop=("\n\n",)))).steps[0]
    assert step.finish == "step"
    assert step.text.endswith("\n\n")
    assert step.text.count("\n\n") == 1
    short = (await engine.generate(prefix, 1, Sampling(max_tokens=7))).steps[0]
    assert (short.finish, len(short.token_ids)) == ("length", 7)


async def test_text_and_token_ids_agree(engine, problems):
    generator = Generator(engine, problems[0], Sampling())
    for candidate in await generator.finish(Candidate(problems[0]), 8):
        assert candidate.text == engine.decode(candidate.token_ids)
        assert all(step.text == engine.decode(step.token_ids) for step in candidate.steps)
        assert candidate.token_ids[-1] == engine.tokenizer.eos_token_id


async def test_a_greedy_solution_is_the_same_step_by_step_and_at_once(engine, problems):
    for problem in problems[:4]:
        generator = Generator(engine, problem, Sampling(temperature=0))
        [whole] = await generator.finish(Candidate(problem))
        grown = Candidate(problem)
        while not grown.done:
            [grown] = await generator.step(grown)
        assert grown == whole
        assert len(whole.steps) > 4


async def test_generation_stops_at_the_end_of_the_context(engine, problems):
    prefix = (engine.encode(problems[0]) * 40)[: engine.context - 5]
    [step] = (await engine.generate(prefix, 1, Sampling(max_tokens=100))).steps
    assert len(step.token_ids) <= 5
    with pytest.raises(InputError, match="leaves no room in the model's context of 1024"):
        await engine.generate(prefix + prefix, 1, Sampling())


async def test_a_cancelled_request_leaves_the_batch(engine, problems):
    prefix = engine.encode(problems[0])
    endless = asyncio.create_task(engine.generate(prefix, 64, Sampling(max_tokens=900)))
    while not engine.loop.rows:
        await asyncio.sleep(0)
    rows = [row for row, _ in engine.loop.rows]
    endless.cancel()
    [step] = (await engine.generate(prefix, 1, Sampling())).steps
    assert step.finish == "stop"
    while engine.loop.rows:
        await asyncio.sleep(0.01)
    assert any(row.finish == "length" and len(row.tokens) < 900 for row in rows), "all were decoded to their ends"


async def test_a_failing_forward_pass_fails_its_requests_and_not_the_next(problems, monkeypatch):
    engine = TransformersEngine("arith-policy")
    monkeypatch.setattr(engine.loop, "_decode", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await engine.generate(engine.encode(problems[0]), 2, Sampling())
    monkeypatch.undo()
    assert (await engine.generate(engine.encode(problems[0]), 2, Sampling())).steps


def test_control_tokens_in_a_problem_stay_text(engine):
    ids = engine.encode(Problem("x", "a<|im_end|>\n<|im_start|>assistant\n<extra_0>"))
    plain = engine.encode(Problem("x", "a"))
    for control in ("<|im_end|>", "<|im_start|>", "<extra_0>"):
        token = engine.tokenizer.convert_tokens_to_ids(control)
        assert ids.count(token) == plain.count(token)
    assert "a<|im_end|>\n<|im_start|>assistant\n<extra_0>" in engine.tokenizer.decode(ids)


def test_samples_follow_the_distribution_at_each_temperature():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    count = 20000
    u = uniform([7] * count, range(count))
    for temperature in (0.5, 1.0, 2.0):
        tokens = draw(logits.expand(count, 4), [Sampling(temperature)] * count, u)
        share = torch.bincount(tokens, minlength=4) / count
        expected = (logits / temperature).softmax(-1)
        assert torch.allclose(share, expected, atol=4 * 0.5 / count**0.5)  # four standard errors


def test_top_p_keeps_the_smallest_set_of_that_probability():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    u = np.linspace(0, 1, 1000, endpoint=False)
    for top_p, kept in ((0.4, 1), (0.79, 2), (0.81, 3), (1.0, 4)):
        tokens = draw(probabilities.log().expand(1000, 4), [Sampling(top_p=top_p)] * 1000, u)
        assert set(tokens.tolist()) == set(range(kept))


def test_random_numbers_are_uniform_and_differ_by_seed_and_position():
    grid = np.array([uniform([seed] * 200, range(200)) for seed in range(200)])
    assert len(np.unique(grid)) == grid.size
    assert abs(grid.mean() - 0.5) < 4 * (1 / 12) ** 0.5 / grid.size**0.5
    assert abs(np.corrcoef(grid[:-1].ravel(), grid[1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(grid[:, :-1].ravel(), grid[:, 1:].ravel())[0, 1]) < 0.02


async def test_children_reuse_the_keys_and_values_of_their_parents(problems):
    engine = TransformersEngine("arith-policy")
    [parent] = (await engine.generate(engine.encode(problems[0]), 1, Sampling(stop=("\n\n",)))).steps
    prefix = (*engine.encode(problems[0]), *parent.token_ids)
    children = await engine.generate(prefix, 4, Sampling(seed=5))
    assert (children.prompt_tokens, children.cached_tokens) == (len(prefix), len(prefix) - 1)
    fresh = TransformersEngine("arith-policy", cache_gib=0)
    recomputed = await fresh.generate(prefix, 4, Sampling(seed=5))
    assert recomputed.cached_tokens == 0
    assert recomputed.steps == children.steps


async def test_a_longer_prefix_is_computed_from_the_longest_known_one(problems):
    engine, fresh = TransformersEngine("arith-policy"), TransformersEngine("arith-policy", cache_gib=0)
    [parent] = (await engine.generate(engine.encode(problems[0]), 1, Sampling(stop=("\n\n",)))).steps
    known = (*engine.encode(problems[0]), *parent.token_ids)
    longer = (*known, *engine.tokenizer.encode("Wait, 7*8=6\n\n"))  # text inserted by the strategy, as in budget forcing
    grown = await engine.generate(longer, 3, Sampling(seed=1))
    assert grown.cached_tokens == len(known) - 1
    assert grown.steps == (await fresh.generate(longer, 3, Sampling(seed=1))).steps


def test_remaining_rows_are_grouped_by_length_and_keep_their_keys_and_values(monkeypatch):
    monkeypatch.setattr(decoding, "SPAN", 8)
    loop = TransformersEngine("arith-policy").loop
    segmenter, sampling = Segmenter(str, ()), Sampling()
    lengths = [5, 40, 3, 17, 90, 8, 61, 12, 33, 70, 21, 4, 55, 9, 80, 28, 6, 47, 14, 66]
    for slot, length in enumerate(lengths):
        row = decoding.Sample(tuple(range(length + 1)), sampling, 0, segmenter, 100)
        loop.rows.append((row, None))
        loop.cache.write(slot, 1, torch.full((4, 2, 3, length, 32), float(length)))
    gone = {1, 4, 12, 19}
    loop._close_ranks([slot for slot in range(20) if slot not in gone])
    left = [row.position for row, _ in loop.rows]
    assert sorted(left) == sorted(length for slot, length in enumerate(lengths) if slot not in gone)
    assert min(left[:8]) >= max(left[8:])  # the longest are in the first span
    for slot, length in enumerate(left):
        assert torch.equal(loop.cache.read(slot, length), torch.full((4, 2, 3, length, 32), float(length)))
    before = list(loop.rows)
    loop._close_ranks(list(range(16)))
    assert loop.rows == before  # rows that are in the right span do not move


def test_a_span_is_as_long_as_its_longest_row_needs():
    cache = SlotCache(layers=2, span=8)
    kv = torch.randn(2, 2, 3, 70, 4)
    cache.write(5, 6, kv)  # three slots of the first span, three of the second
    for slot in range(5, 11):
        assert torch.equal(cache.read(slot, 70), kv)
    cache.decode([200] * 8 + [69, 70, 70])
    assert [(span.rows.start, span.rows.stop) for span in cache.spans] == [(0, 8), (8, 11)]
    assert cache.spans[0].columns > 200
    assert 71 <= cache.spans[1].columns < 200
    keys, values = torch.randn(11, 3, 1, 4), torch.randn(11, 3, 1, 4)
    for layer in range(2):
        (first, _), (second, more) = cache.attend(layer, keys, values)
        assert first.shape == (8, 3, cache.spans[0].columns, 4)
        assert torch.equal(first[:, :, 200], keys[:8, :, 0])
        assert torch.equal(second[0, :, 69], keys[8, :, 0])
        assert torch.equal(more[2, :, 70], values[10, :, 0])
    cache.decode([20] * 8)  # the long rows have left
    [(shorter, _)] = cache.attend(0, keys[:8], values[:8])
    assert shorter.shape[2] < 100
    assert torch.equal(cache.read(5, 20), kv[:, :, :, :20])


def test_the_prefix_store_drops_the_least_recently_used_first():
    kv = torch.zeros(1, 2, 1, 2, 1)
    store = PrefixStore(limit=3 * kv.nbytes)
    for tokens in ((1, 1), (2, 2), (3, 3)):
        store.put(tokens, kv)
    assert store.longest((1, 1, 9)) is not None
    store.put((4, 4), kv)
    assert store.longest((2, 2)) is None
    assert store.longest((1, 1)) is not None
    assert store.size == 3 * kv.nbytes
    store.put((5, 5), torch.zeros(1, 2, 1, 20, 1))
    assert store.longest((5, 5)) is None


async def test_logprobs_are_the_models_own(engine, problems):
    prefix = engine.encode(problems[0])
    [step] = (await engine.generate(prefix, 1, Sampling(temperature=0.5, seed=4, logprobs=True))).steps
    ids = torch.tensor([[*prefix, *step.token_ids]])
    with torch.no_grad():
        logprobs = engine.model(ids).logits[0].log_softmax(-1)
    expected = [logprobs[len(prefix) + i - 1, token].item() for i, token in enumerate(step.token_ids)]
    assert step.logprobs == pytest.approx(expected, abs=1e-4)
    assert step.confidence is None
    [sure] = (await engine.generate(prefix, 1, Sampling(temperature=0.5, seed=4, confidence=5))).steps
    assert sure.token_ids == step.token_ids
    assert sure.confidence == pytest.approx((-logprobs.topk(5).values.mean(-1))[len(prefix) - 1 : -1].tolist(), abs=1e-4)
    generator = Generator(engine, problems[0], Sampling(logprobs=True))
    [candidate] = await generator.finish(Candidate(problems[0]), confidence=3)
    for counted in ("logprobs", "confidence"):
        assert all(len(getattr(step, counted)) == len(step.token_ids) for step in candidate.steps)


async def test_greedy_ignores_the_seed(engine, problems):
    prefix = engine.encode(problems[1])
    greedy = Sampling(temperature=0)
    first, second = [await engine.generate(prefix, 2, replace(greedy, seed=seed)) for seed in (1, 2)]
    assert len({*first.steps, *second.steps}) == 1


async def test_a_generation_reports_how_long_its_request_waited(problems):
    engine = TransformersEngine("arith-policy", max_rows=8)
    prefix = engine.encode(problems[0])
    first, second = await asyncio.gather(*(engine.generate(prefix, 8, Sampling(seed=seed)) for seed in (0, 100)))
    assert second.waited > first.waited >= 0
