"""Formats of reward models against their published code, rewritten here for one trace: no batch, no cache, no code of tts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tts.errors import InputError
from tts.scorers import formats
from tts.scorers.formats import FORMATS, Format, TwoTokens, encode
from tts.scorers.modeling import Qwen2ForProcessRewardModel
from tts.scorers.prm import PRM
from tts.types import Candidate, Problem, Step

# Sentence ends before separators, line ends within a step, and letters that NFC shortens: each shifts tokens or offsets.
PROMPT = "Was ist 7·8·5?\nNur die letzte Ziffer (世界, e\u0301)."
STEPS = ["7*8=6.", "6*5=0 (e\u0301)", "Warte, é→ü:\nzwei Zeilen!", "Also 世界: {6}", "The result is \\boxed{0}."]
TRACE = "<think>\n" + "\n\n".join(STEPS[:3]) + "\n</think>\n\n" + "\n\n".join(STEPS[3:])

CONTEXT = 512


def candidate(text: str = TRACE, prompt: str = PROMPT) -> Candidate:
    return Candidate(Problem("p", prompt), (Step(text, (1,), "stop"),))


SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN_CHAT = (
    "{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{%- endif %}"
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
LLAMA_CHAT = (
    "{{- bos_token }}{%- for m in messages %}{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}"
    "{{- m.content | trim + '<|eot_id|>' }}{%- endfor %}"
)


def byte_level(special: list[str]) -> Tokenizer:
    merges = [("Ċ", "Ċ"), ("ĊĊ", "ĊĊ"), ("Ġ", "ĊĊĊĊ"), (".", "Ċ"), (".", "ĊĊ"), ("!", "Ċ"), ("}", "ĊĊ"), (")", "Ċ"), ("t", "e")]
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, merges))
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return tokenizer


def qwen_tokenizer(*more: str, bos: str | None = None) -> hf.PreTrainedTokenizerFast:
    chat = ["<|im_start|>", "<|im_end|>"]
    tokenizer = byte_level(["<|endoftext|>", *chat, *more])
    tokenizer.normalizer = normalizers.NFC()
    names = {"bos_token": bos, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "additional_special_tokens": chat}
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=QWEN_CHAT, **names)


def llama_tokenizer() -> hf.PreTrainedTokenizerFast:
    bos = "<|begin_of_text|>"
    tokenizer = byte_level([bos, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"])
    template = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), template])
    names = {"bos_token": bos, "eos_token": "<|eot_id|>"}  # as in tokenizer_config.json of Llama 3, which lists no others
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=LLAMA_CHAT, **names)


def mistral_tokenizer(prefix: str = "always") -> hf.PreTrainedTokenizerFast:
    merges = [("▁", "+"), ("▁", "-"), ("к", "и"), ("▁", "ки"), ("e", "r"), ("▁", "S")]
    symbols = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *map(chr, range(33, 127)), "к", "и", "é"]
    symbols += [a + b for a, b in merges]
    vocabulary = {symbol: i for i, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if prefix == "normalizer":  # as in the tokenizer.json of Llama 2
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in symbols[:3]])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def save(folder, model_class, tokenizer, seed=0, **options):
    """Save a model with random weights, large enough for earlier tokens to matter as much as the token itself."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "vocab_size": len(tokenizer)}
    model = model_class(model_class.config_class(**sizes, pad_token_id=None, **options))
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def add_trace_head(folder):
    torch.manual_seed(7)
    torch.save({"weight": torch.randn(1, 32) * 0.3, "bias": torch.randn(1)}, folder / "reward_head.pt")


CHECKPOINTS = {
    "qwen-math": ("Qwen2.5-Math-PRM-7B", Qwen2ForProcessRewardModel, lambda: qwen_tokenizer("<extra_0>")),
    "reasonflux": ("ReasonFlux-PRM-7B", Qwen2ForProcessRewardModel, lambda: qwen_tokenizer("<extra_0>")),
    "reasonflux-trace": ("ReasonFlux-PRM-1.5B", hf.Qwen2ForCausalLM, qwen_tokenizer),
    "math-shepherd": ("math-shepherd-mistral-7b-prm", hf.MistralForCausalLM, mistral_tokenizer),
    "rlhflow": ("Llama3.1-8B-PRM-Deepseek-Data", hf.LlamaForCausalLM, llama_tokenizer),
    "skywork": ("Skywork-o1-Open-PRM-Qwen-2.5-1.5B", hf.Qwen2ForCausalLM, lambda: qwen_tokenizer(bos="<|endoftext|>")),
    "eurus": ("EurusPRM-Stage2", hf.Qwen2ForCausalLM, qwen_tokenizer),
    "versa": ("VersaPRM", hf.LlamaForCausalLM, llama_tokenizer),
    "trl": ("Qwen2.5-Math-1.5B-Instruct-PRM-0.2", hf.Qwen2ForTokenClassification, qwen_tokenizer),
    "trl-lines": ("lines-PRM", hf.Qwen2ForTokenClassification, lambda: qwen_tokenizer(bos="<|endoftext|>")),
}
ALL = list(CHECKPOINTS)
STEPWISE = [name for name in ALL if name != "reasonflux-trace"]


def build(format, root):
    """Write a checkpoint of a format; return it with the options that PRM needs for it."""
    name, model_class, tokenizer = CHECKPOINTS[format]
    folder = save(root / name, model_class, tokenizer(), num_labels=2)
    if format == "skywork":
        weights, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
        weights |= {"v_head.summary.weight": torch.randn(1, 32) * 0.3, "v_head.summary.bias": torch.randn(1)}
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen2ForPrmModel"]}))
    if format == "reasonflux-trace":
        add_trace_head(folder)
    if format == "eurus":
        return folder, {"reference": str(save(root / "base", model_class, tokenizer(), seed=1))}
    return folder, {"format": "trl-lines"} if format == "trl-lines" else {}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Checkpoints that are built once, and that no test changes."""
    built = {}

    def get(format):
        if format not in built:
            built[format] = build(format, tmp_path_factory.mktemp("models"))
        return built[format]

    return get


def load(checkpoint, name, **options) -> PRM:
    folder, needed = checkpoint(name)
    return PRM(str(folder), **(needed | options))


class Expected(NamedTuple):
    ids: list[int]
    positions: list[int]
    rewards: list[float]


@torch.no_grad()
def run(model_class, folder, ids):
    return model_class.from_pretrained(folder, attn_implementation="eager").eval()(torch.tensor([ids]))


def where(ids: list[int], token: int) -> list[int]:
    return [i for i, other in enumerate(ids) if other == token]


def linear(hidden, weights, name):
    return hidden @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def at_extra_0(folder, messages, steps, head=None) -> Expected:
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    messages = [*messages, {"role": "assistant", "content": "<extra_0>".join(steps) + "<extra_0>"}]
    ids = tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False))
    positions = where(ids, tokenizer.convert_tokens_to_ids("<extra_0>"))
    hidden = run(hf.AutoModel, folder, ids).last_hidden_state[0, positions]
    if head is not None:
        return Expected(ids, positions, (hidden @ head["weight"].T + head["bias"])[:, 0].sigmoid().tolist())
    weights = load_file(folder / "model.safetensors")
    logits = linear(torch.relu(linear(hidden, weights, "score.0")), weights, "score.2")
    return Expected(ids, positions, logits.softmax(-1)[:, 1].tolist())


def expected_qwen_math(folder, prompt, steps):
    system = {"role": "system", "content": "Please reason step by step, and put your final answer within \\boxed{}."}
    return at_extra_0(folder, [system, {"role": "user", "content": prompt}], steps)


def expected_reasonflux(folder, prompt, steps):
    return at_extra_0(folder, [{"role": "user", "content": prompt}], steps)


def expected_reasonflux_trace(folder, prompt, steps):
    [completion] = steps
    ids = hf.AutoTokenizer.from_pretrained(folder).encode(prompt + completion)
    head = torch.load(folder / "reward_head.pt")
    hidden = run(hf.AutoModel, folder, ids).last_hidden_state[0, -1]
    return Expected(ids, [len(ids) - 1], (hidden @ head["weight"].T + head["bias"]).sigmoid().tolist())


def plus_share(folder, ids, positions, plus, minus) -> Expected:
    logits = run(hf.AutoModelForCausalLM, folder, ids).logits[0, positions]
    return Expected(ids, positions, logits[:, [minus, plus]].softmax(-1)[:, 1].tolist())


def expected_math_shepherd(folder, prompt, steps):
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.encode(f"{prompt} " + "".join(f"Step {i}: {step} ки\n" for i, step in enumerate(steps, 1)))
    positions = where(ids, tokenizer.encode("ки")[-1])
    return plus_share(folder, ids, positions, *tokenizer.encode("+ -")[1:])


def expected_rlhflow(folder, prompt, steps):
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    messages = []
    for i, step in enumerate(steps):
        messages += [{"role": "user", "content": step if i else f"{prompt} {step}"}, {"role": "assistant", "content": "+"}]
    ids = tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False)
    answer = tokenizer.convert_tokens_to_ids(["<|end_header_id|>", "ĊĊ", "+", "<|eot_id|>"])
    positions = [i + 1 for i in range(len(ids)) if ids[i : i + 4] == answer]
    return plus_share(folder, ids, positions, answer[2], tokenizer.convert_tokens_to_ids("-"))


def expected_skywork(folder, prompt, steps):
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    ids, positions = tokenizer.encode(f"{tokenizer.bos_token}{prompt}\n"), []
    for step in steps:  # prepare_input of skywork-o1-prm-inference: encode(step) + [the id of "\n"]
        ids += tokenizer.encode(step.replace("\n", " ")) + tokenizer.encode("\n")[-1:]
        positions.append(len(ids) - 1)
    hidden = run(hf.AutoModel, folder, ids).last_hidden_state[0, positions]
    values = linear(hidden, load_file(folder / "model.safetensors"), "v_head.summary")
    return Expected(ids, positions, values[:, 0].sigmoid().tolist())


def expected_eurus(folder, prompt, steps):
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": "\n\n".join(steps)}]
    text = unicodedata.normalize("NFC", tokenizer.apply_chat_template(messages, tokenize=False))
    ids = tokenizer.encode(text)
    head = text.partition("<|im_start|>assistant\n")
    ends = [unicodedata.normalize("NFC", "".join(head[:2]) + "\n\n".join(steps[:i])) for i in range(len(steps) + 1)]
    sizes = [len(token) for token in tokenizer.convert_ids_to_tokens(ids)]  # one symbol per byte
    starts = [sum(sizes[:i]) for i in range(len(ids))]
    first, *counts = (sum(start < len(end.encode()) for start in starts) for end in ends)

    def logprobs(path):
        rows = run(hf.AutoModelForCausalLM, path, ids).logits[0].double().log_softmax(-1)
        return torch.tensor([0.0, *(rows[i - 1, ids[i]].item() for i in range(1, len(ids)))], dtype=torch.float64)

    ratio = logprobs(folder) - logprobs(folder.parent / "base")
    return Expected(ids, [n - 1 for n in (first, *counts)], [0.001 * ratio[first:end].sum().item() for end in counts])


def expected_versa(folder, prompt, steps):
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.encode(f"{prompt} \n\n" + "".join(f"{step} \n\n\n\n" for step in steps))
    positions = where(ids, tokenizer.convert_tokens_to_ids("ĠĊĊĊĊ"))
    return plus_share(folder, ids, positions, *tokenizer.convert_tokens_to_ids(["+", "-"]))


def expected_trl(folder, prompt, steps, separator="\n\n"):
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids, positions = bos + tokenizer.encode(prompt, add_special_tokens=False), []
    for step in steps:
        ids += tokenizer.encode(step, add_special_tokens=False) + tokenizer.encode(separator, add_special_tokens=False)
        positions.append(len(ids) - 1)
    logits = run(hf.AutoModelForTokenClassification, folder, ids).logits[0, positions]
    return Expected(ids, positions, logits.softmax(-1)[:, 1].tolist())


def expected_trl_lines(folder, prompt, steps):
    return expected_trl(folder, prompt, steps, "\n")


def expected(format, folder, steps, prompt=PROMPT) -> Expected:
    return globals()["expected_" + format.replace("-", "_")](folder, prompt, steps)


def test_every_format_is_tested():
    assert list(FORMATS) == ALL


@pytest.mark.parametrize("format", ALL)
async def test_tokens_positions_and_rewards_are_the_published_ones(checkpoint, format):
    await check(load(checkpoint, format), format, checkpoint(format)[0])


async def check(prm, format, folder):
    assert prm.format is FORMATS[format]
    shown = STEPS if prm.format.by_step else [TRACE]
    want, whole = expected(format, folder, shown), expected(format, folder, ["\n\n".join(shown)])
    got = encode(prm.format, prm.text, PROMPT, shown)
    tokens = prm.text.tokenizer.convert_ids_to_tokens
    assert tokens(got.ids) == tokens(want.ids)
    assert (got.ids, got.positions) == (want.ids, want.positions)
    assert len(want.rewards) == len(shown)
    ordered = sorted(want.rewards)
    assert all(b - a > 1e-4 for a, b in pairwise(ordered)), "rewards are too similar to distinguish positions"
    [reward] = await prm.score([candidate()])
    assert reward.steps == pytest.approx(want.rewards if prm.format.by_step else (), abs=1e-5)
    assert reward.final == pytest.approx(whole.rewards[-1], abs=1e-5)


@pytest.mark.parametrize("prefix", ["first", "normalizer"])
async def test_math_shepherd_with_each_way_in_which_its_tokenizer_begins_a_text(tmp_path, prefix):
    folder = save(tmp_path / "math-shepherd", hf.MistralForCausalLM, mistral_tokenizer(prefix))
    await check(PRM(str(folder)), "math-shepherd", folder)


async def test_a_reward_head_beside_a_two_class_checkpoint_rates_the_whole_trace(tmp_path):
    folder, _ = build("reasonflux", tmp_path)
    add_trace_head(folder)
    [reward] = await PRM(str(folder)).score([candidate()])
    assert reward.steps == pytest.approx(expected_reasonflux(folder, PROMPT, STEPS).rewards, abs=1e-5)
    user, head = {"role": "user", "content": PROMPT}, torch.load(folder / "reward_head.pt")
    whole = at_extra_0(folder, [user], ["\n\n".join(STEPS)], head)
    assert reward.final == pytest.approx(whole.rewards[0], abs=1e-5)


SPELT = "<extra_0> ки + - <|im_end|>\n<|im_start|>assistant <|eot_id|><|start_header_id|>user<|end_header_id|> </s><s><unk>"
SPELT += "<|endoftext|><|begin_of_text|> ки \n"


def same(rewards, others):
    for reward, other in zip(rewards, others, strict=True):
        assert reward.steps == pytest.approx(other.steps, abs=1e-5)
        assert reward.final == pytest.approx(other.final, abs=1e-5)


@pytest.mark.parametrize("format", ALL)
async def test_rewards_depend_neither_on_the_batch_nor_on_earlier_calls(checkpoint, format):
    short = [candidate(TRACE[: 40 + 15 * i]) for i in range(6)]
    other = [candidate("\n\n".join(f"{j}) {i}·{j} = é" for j in range(1 + i)), "Anders?") for i in range(6)]
    mixed = [c for pair in zip(short, other, strict=True) for c in pair]
    alone = [(await load(checkpoint, format).score([mixed[i]]))[0] for i in (0, 7, 10)]
    prm = load(checkpoint, format)
    together = await prm.score(mixed)
    same(alone, [together[i] for i in (0, 7, 10)])
    same(await prm.score(mixed[::-1]), together[::-1])
    same([(await prm.score([c]))[0] for c in mixed], together)
    same(await load(checkpoint, format, cache_gib=0, batch_tokens=64).score(mixed), together)


@pytest.mark.parametrize("format", STEPWISE)
async def test_there_are_as_many_rewards_as_steps(checkpoint, format):
    counts = {
        "a\r\n\r\nb\r\n": 2,
        "\n\n \n\n\n\na\n\n\n\n\n\nb.\n\n": 2,
        "<think>\n\n</think>\n\n": 0,
        "<think>\n1.\n\n2)\n</think>\n\n\n3!\n\n": 3,
        "世\n\n🧮🧮\n\ne\u0301\n\n\u00a0ü\u2028": 4,
        ".\n\n.\n\n+\n\n-\n\n}\n\n\\": 6,
        "Step 1: a\n\nStep 1: b": 2,
    }
    rewards = await load(checkpoint, format).score([candidate(text) for text in counts])
    assert [len(reward.steps) for reward in rewards] == list(counts.values())


@pytest.mark.parametrize("prompt", ["", " ", "q\n", "q \n\n\n\n", "q ки"])
@pytest.mark.parametrize("format", STEPWISE)
async def test_a_problem_may_be_empty_or_end_like_a_step(checkpoint, format, prompt):
    [reward] = await load(checkpoint, format).score([candidate(prompt=prompt)])
    assert len(reward.steps) == len(STEPS)


def controls(prm, prompt, steps):
    """Count each control token in what the model is shown."""
    ids = encode(prm.format, prm.text, prompt, steps).ids
    added = prm.text.tokenizer.added_tokens_decoder
    return {token.content: ids.count(i) for i, token in added.items() if token.special}


@pytest.mark.parametrize("format", ALL)
async def test_nothing_in_a_text_becomes_a_control_token(checkpoint, format):
    prm = load(checkpoint, format)
    steps = [SPELT, f"a {SPELT} b", "<extra_0>"] if prm.format.by_step else ["\n\n".join([SPELT] * 2)]
    assert controls(prm, SPELT, steps) == controls(prm, "a", ["b"] * len(steps))
    if format in ("qwen-math", "reasonflux"):
        assert controls(prm, SPELT, steps)["<extra_0>"] == len(steps)


@pytest.mark.parametrize("format", STEPWISE)
async def test_nothing_in_a_text_becomes_a_step(checkpoint, format):
    text = f"{SPELT}\n\n\n\n<extra_0>\n\n+ \n\n\n\nки ки\n\n<|im_end|>"
    [reward] = await load(checkpoint, format).score([candidate(text, "<extra_0> ки + <|im_end|><|eot_id|></s> \n\n\n\n")])
    assert len(reward.steps) == 5


@pytest.mark.parametrize("format", ALL)
def test_no_control_token_is_formed_where_texts_meet(checkpoint, format):
    prm = load(checkpoint, format)
    for token in controls(prm, "a", ["b"]):
        assert controls(prm, f"a {token[:2]}", [token[2:]]) == controls(prm, "a", ["b"]), token


LONG = [f"{i}) {i}*{i}={i * i}." for i in range(60)]


@pytest.mark.parametrize("format", ALL)
async def test_without_windows_a_trace_longer_than_the_context_is_refused(checkpoint, format):
    with pytest.raises(InputError, match=rf"longer than the {CONTEXT} .*omit --scorer-arg window=false"):
        await load(checkpoint, format, window=False).score([candidate("\n\n".join(LONG))])


@pytest.mark.parametrize("format", ALL)
async def test_a_trace_that_fits_is_read_in_one_piece(checkpoint, format):
    [reward] = await load(checkpoint, format).score([candidate()])
    assert reward.windows == ()
    assert [reward] == await load(checkpoint, format, window=False).score([candidate()])


@pytest.mark.parametrize("format", ALL)
async def test_each_window_has_the_published_rewards_of_the_problem_and_the_steps_in_it(checkpoint, format):
    folder, _ = checkpoint(format)
    [reward] = await load(checkpoint, format).score([candidate("\n\n".join(LONG))])
    steps = [window for window in reward.windows if window.of == "steps"]
    rewards = []
    for window in steps:
        want = expected(format, folder, LONG[window.begin : window.end])
        assert window.tokens == len(want.ids) <= CONTEXT
        values, skipped = [0.0, *want.rewards], window.rated - window.begin
        before = rewards[-1] - values[skipped] if rewards and format == "eurus" else 0.0  # its rewards are sums
        rewards += [before + value for value in values[skipped + 1 :]]
    assert reward.steps == pytest.approx(rewards, abs=1e-5)
    if FORMATS[format].by_step:
        assert len(reward.steps) == len(LONG)
        assert len(steps) > 1
        assert [i for window in steps for i in range(window.rated, window.end)] == list(range(len(LONG)))
        assert all(window.begin < window.rated for window in steps[1:])
    if format == "eurus":
        assert reward.final == reward.steps[-1]
    else:
        [whole] = [window for window in reward.windows if window.of == "whole"]
        want = expected(format, folder, ["\n\n".join(LONG[whole.begin :])])
        assert reward.final == pytest.approx(want.rewards[-1], abs=1e-5)
        assert (
            whole.tokens == len(want.ids) <= CONTEXT < len(expected(format, folder, ["\n\n".join(LONG[whole.begin - 1 :])]).ids)
        )
    assert reward.tokens == sum(window.tokens for window in reward.windows)


@pytest.mark.slow
@pytest.mark.parametrize("format", ALL)
async def test_windows_depend_neither_on_the_batch_nor_on_what_follows(checkpoint, format):
    prm = load(checkpoint, format)
    counts = [60, 3, 59, 41, 40, 39, 20, 60]
    traces = [candidate("\n\n".join(LONG[:count])) for count in counts]
    together = await prm.score(traces)
    alone = [(await load(checkpoint, format, cache_gib=0).score([trace]))[0] for trace in traces]
    same(together, alone)
    assert [reward.windows for reward in together] == [reward.windows for reward in alone]
    for reward, count in zip(together, counts, strict=True):
        stable = count - (format == "eurus")  # a step's last token may hold the line ends after it
        assert reward.steps[:stable] == pytest.approx(together[0].steps[:stable], abs=1e-5)


@pytest.mark.parametrize("text", ["x" * 700, "世界 " * 300, "Also e\u0301! " * 90])
@pytest.mark.parametrize("format", ALL)
async def test_of_a_step_longer_than_the_context_the_end_is_read(checkpoint, format, text):
    text = text.strip()
    prm = load(checkpoint, format)
    ends = [f"{text} {end}" for end in ("right", "wrong")]
    rewards = await prm.score([candidate(f"a\n\n{end}\n\nb") for end in ends])
    for reward in rewards:
        assert len(reward.steps) == (3 if prm.format.by_step else 0)
        assert all(window.tokens <= CONTEXT for window in reward.windows)
        for window in reward.windows:
            if window.of == "steps":
                assert (window.omitted > 0) == (window.begin == 1 == window.end - 1)
    if prm.format.by_step:
        assert rewards[0].steps[1] != rewards[1].steps[1]
    [alone] = await prm.score([candidate(text)])
    [other] = await prm.score([candidate("y" + text)])
    assert all(window.omitted > 0 for window in alone.windows)
    assert (alone.steps, alone.final) == (other.steps, other.final)  # the beginning is not seen
    assert [w.omitted + 1 for w in alone.windows] == [w.omitted for w in other.windows]


@pytest.mark.parametrize("format", ALL)
async def test_a_problem_that_leaves_no_room_is_refused(checkpoint, format):
    with pytest.raises(InputError, match=rf"the problem takes \d+ of the {CONTEXT} tokens .* no room for a solution"):
        await load(checkpoint, format).score([candidate("a", "q" * CONTEXT)])


async def test_smaller_windows_and_wrong_ones(checkpoint):
    [reward] = await load(checkpoint, "reasonflux", window=200).score([candidate("\n\n".join(LONG))])
    assert max(window.tokens for window in reward.windows) <= 200
    for wrong in (CONTEXT + 1, 0, "yes", 0.5):
        with pytest.raises(InputError, match=rf"window is {wrong!r}; it should be true, false, or a number of tokens up to"):
            load(checkpoint, "reasonflux", window=wrong)


async def test_a_trace_rated_as_a_whole_keeps_its_thinking_tags_in_windows(checkpoint, monkeypatch):
    prm, queries = load(checkpoint, "reasonflux-trace"), []

    async def read(batch):
        queries.extend(batch)
        return [[0.5]] * len(batch)

    monkeypatch.setattr(prm.reader, "read", read)
    thinking = "\n\n".join(LONG)
    ends = ["59) 59*59=3481.\n</think>\n\nso\n\n7", "59) 59*59=3481."]
    for text, end in zip((f"<think>\n{thinking}\n</think>\n\nso\n\n7", f"<think>\n{thinking}"), ends, strict=True):
        [reward] = await prm.score([candidate(text)])
        shown = prm.text.tokenizer.decode(queries[-1].ids)
        assert f"<think>\n{reward.windows[0].begin}) " in shown
        assert shown.endswith(end)


async def test_a_format_given_by_name_is_used(checkpoint):
    folder, _ = checkpoint("trl")
    [reward] = await PRM(str(folder), format="trl-lines").score([candidate()])
    assert reward.steps == pytest.approx(expected_trl_lines(folder, PROMPT, STEPS).rewards, abs=1e-5)


async def test_the_example_in_the_documentation_is_a_working_format(checkpoint):
    """The example file in the module's docstring, which repeats VersaPRM's format."""
    lines = formats.__doc__.split("looks like this")[1].splitlines()[1:]
    example = textwrap.dedent("\n".join(line for line in lines if line.startswith("    ") or not line))
    assert len(example.strip().splitlines()) < 20
    Path("mine.py").write_text(example)
    folder, _ = checkpoint("versa")
    mine, versa = [await PRM(str(folder), format=name).score([candidate()]) for name in ("mine.py:MINE", "versa")]
    assert mine == versa


READOUT = """
from dataclasses import dataclass

from transformers import AutoModel

from tts.scorers.formats import FORMATS, Format, HeadReadout
from tts.scorers.heads import Heads


@dataclass(frozen=True)
class FirstUnit(HeadReadout):
    def heads(self, name, tokenizer, **options):
        return Heads(AutoModel.from_pretrained(name).eval(), lambda hidden: hidden[:, 0].sigmoid())


MINE = Format(about="the first unit", build=FORMATS["versa"].build, readout=FirstUnit())
"""


async def test_a_users_readout(checkpoint):
    Path("mine.py").write_text(READOUT)
    folder, _ = checkpoint("versa")
    [reward] = await PRM(str(folder), format="mine.py:MINE").score([candidate()])
    ids, positions, _ = expected_versa(folder, PROMPT, STEPS)
    hidden = run(hf.AutoModel, folder, ids).last_hidden_state[0, positions]
    assert reward.steps == pytest.approx(hidden[:, 0].sigmoid().tolist(), abs=1e-5)


def test_a_format_without_a_pattern_is_never_recognised(checkpoint, monkeypatch):
    never = Format(about="mine", build=FORMATS["versa"].build, readout=TwoTokens("+", "-"))
    monkeypatch.setattr(FORMATS, "builtin", {"never": never} | FORMATS.builtin)
    assert formats.format_of(str(checkpoint("versa")[0])) is FORMATS["versa"]
    assert formats.format_of(str(checkpoint("versa")[0]), "never") is never


def test_formats_and_readers_are_listed_without_importing_torch():
    code = "import sys; from tts.scorers import formats, reader; print({'torch', 'transformers'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_an_unknown_format_is_refused_with_the_known_ones(checkpoint):
    with pytest.raises(InputError, match=r"'nonsense'.*" + ", ".join(ALL)):
        load(checkpoint, "trl", format="nonsense")


@pytest.mark.parametrize("format", ["qwen-math", "reasonflux"])
def test_a_tokenizer_without_extra_0_is_refused(tmp_path, format):
    folder = save(tmp_path / "model", Qwen2ForProcessRewardModel, qwen_tokenizer())
    with pytest.raises(InputError, match="no <extra_0> token"):
        PRM(str(folder), format=format)


def test_the_name_of_a_parent_folder_does_not_determine_the_format(tmp_path, checkpoint):
    folder = shutil.copytree(checkpoint("trl")[0], tmp_path / "VersaPRM" / "mine")
    assert PRM(str(folder)).format is FORMATS["trl"]


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("ran",)


NOT_A_HEAD = [{"weight": torch.zeros(2, 32)}, {"weight": torch.zeros(1, 16)}, {}, [1], Hostile(), {"weight": Hostile()}]


@pytest.mark.parametrize("format", ["reasonflux-trace", "reasonflux"])
@pytest.mark.parametrize("head", NOT_A_HEAD)
def test_a_file_that_is_not_a_reward_head_is_refused_and_its_code_does_not_run(tmp_path, checkpoint, format, head):
    folder = shutil.copytree(checkpoint(format)[0], tmp_path / "model")
    torch.save(head, folder / "reward_head.pt")
    with pytest.raises(InputError, match=r"reward_head\.pt .* does not hold the weights of one Linear\(32, 1\)"):
        PRM(str(folder), format=format)
    assert not os.path.exists("ran")


def test_a_classifier_of_three_labels_is_refused(tmp_path):
    save(tmp_path / "three", hf.Qwen2ForTokenClassification, qwen_tokenizer(), num_labels=3)
    with pytest.raises(InputError, match="has 3 labels; a process reward model has 2"):
        PRM(str(tmp_path / "three"))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"backend": "vlm"}, "--scorer-engine is 'vlm'; expected one of transformers, vllm, server"),
        ({"backend": "server"}, "--scorer-engine server needs --scorer-url, such as"),
        ({"url": "http://127.0.0.1:1"}, "--scorer-url does not go with --scorer-engine transformers"),
        ({"backend": "vllm"}, "vLLM cannot compute the rewards of"),
        ({"wings": 2}, "--scorer-engine transformers does not accept 'wings'"),
        ({"over": "everything"}, "--score-over is 'everything'; expected one of all, think, response"),
    ],
)
def test_a_reader_that_cannot_be_used_says_why(checkpoint, options, complaint):
    with pytest.raises(InputError, match=complaint):
        load(checkpoint, "versa", **options)


def test_an_index_of_weights_that_cannot_be_read_is_refused(tmp_path, checkpoint):
    folder = shutil.copytree(checkpoint("skywork")[0], tmp_path / "Skywork-PRM")
    (folder / "model.safetensors").rename(folder / "model.safetensors.index.json")
    with pytest.raises(InputError, match=r"cannot read model\.safetensors\.index\.json"):
        PRM(str(folder))


@pytest.mark.parametrize("options", [{}, {"reference": "missing"}])
def test_an_implicit_reward_without_its_reference_says_how_to_give_one(checkpoint, monkeypatch, options):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"--scorer-arg reference=NAME"):
        PRM(str(checkpoint("eurus")[0]), **options)
