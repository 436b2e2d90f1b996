"""The embedded engine on other architectures with random weights; adapters, devices and precisions."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tts.demo import MODELS
from tts.engines import decoding
from tts.engines.llama import LlamaForward
from tts.engines.transformers import TransformersEngine
from tts.errors import InputError
from tts.models import adapters, weights
from tts.types import Sampling

SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "vocab_size": 342, "max_position_embeddings": 256, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 337,
}  # fmt: skip
KINDS = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": None},
    "qwen2": {
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 128},
    },
    "qwen3": {},
    "gemma2": {"sliding_window": 128, "query_pre_attn_scalar": 16},  # gemma2 and phi3 use the forward pass of transformers
    "phi3": {"sliding_window": None},
}  # fmt: skip


@pytest.fixture(params=KINDS)
def folder(request, tmp_path):
    return make(request.param, tmp_path / request.param)


def make(kind, folder, **options):
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(SIZES | KINDS[kind] | options)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # far from uniform, so that a wrong position or head shows
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODELS["arith-policy"] / file, folder)
    return folder


def reference(model, prefix, count):
    """Decode greedily with transformers, with a forward pass over the whole sequence for every token."""
    ids = list(prefix)
    for _ in range(count):
        with torch.no_grad():
            ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
        if ids[-1] == SIZES["eos_token_id"]:
            break
    return tuple(ids[len(prefix) :])


async def test_every_architecture_decodes_as_its_own_forward_pass_does(folder, problems, monkeypatch):
    monkeypatch.setattr(decoding, "CHUNK", 16)  # prompts are longer, so that prefill takes several chunks
    engine = TransformersEngine(str(folder), device="cpu")
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    for problem in problems[:3]:
        prefix = engine.encode(problem)
        [step] = (await engine.generate(prefix, 1, Sampling(temperature=0, max_tokens=40, logprobs=True))).steps
        assert step.token_ids == reference(plain, prefix, 40)
        with torch.no_grad():
            logits = plain(torch.tensor([[*prefix, *step.token_ids]])).logits[0, len(prefix) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(step.token_ids)[:, None])[:, 0]
        assert step.logprobs == pytest.approx(expected.tolist(), abs=2e-4)


async def test_every_architecture_decodes_samples_together_as_one_by_one(folder, problems):
    engine = TransformersEngine(str(folder), device="cpu")
    prefix = engine.encode(problems[0])
    sampling = Sampling(temperature=20, max_tokens=30, logprobs=True)  # the distributions of random weights are very peaked
    together = (await engine.generate(prefix, 11, replace(sampling, seed=5))).steps
    alone = [(await engine.generate(prefix, 1, replace(sampling, seed=5 + i))).steps[0] for i in range(11)]
    assert list(together) == alone
    assert len(set(together)) > 5


def test_the_lean_forward_pass_is_used_only_for_known_architectures(tmp_path):
    for kind in KINDS:
        model = AutoModelForCausalLM.from_pretrained(make(kind, tmp_path / kind))
        assert LlamaForward.fits(model) == (kind in ("llama", "mistral", "qwen2", "qwen3"))


def test_fused_weights_take_no_additional_memory(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make("qwen3", tmp_path / "m"))
    LlamaForward(model)
    attention = model.model.layers[0].self_attn
    assert attention.q_proj.weight.untyped_storage().data_ptr() == attention.v_proj.weight.untyped_storage().data_ptr()


async def test_a_sliding_window_limits_the_context(tmp_path, problems):
    engine = TransformersEngine(str(make("mistral", tmp_path / "m", sliding_window=96)))
    assert engine.context == 96
    prefix = engine.encode(problems[0])
    [step] = (await engine.generate(prefix, 1, Sampling(max_tokens=500, temperature=0))).steps
    assert len(prefix) + len(step.token_ids) <= 96


def test_a_model_with_layers_other_than_attention_is_refused(tmp_path):
    folder = make("qwen2", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["layer_types"] = ["full_attention", "linear_attention", "full_attention"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"has layers other than plain attention.*--engine vllm or sglang"):
        TransformersEngine(str(folder))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
async def test_half_precision_gives_nearly_the_same_logprobs(dtype, engine, problems):
    half = TransformersEngine("arith-policy", dtype=dtype)
    assert next(half.model.parameters()).dtype == getattr(torch, dtype)
    prefix = engine.encode(problems[0])
    sampling = Sampling(temperature=0, max_tokens=3, logprobs=True)
    [ours], [full] = [(await e.generate(prefix, 1, sampling)).steps for e in (half, engine)]
    assert ours.token_ids == full.token_ids
    assert ours.logprobs == pytest.approx(full.logprobs, abs=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:7"}, "device is 'cuda:7'; expected auto or a device of this machine: cpu"),
        ({"device": "toaster"}, "device is 'toaster'"),
        ({"dtype": "int8"}, "dtype is 'int8'; expected one of auto, float32, bfloat16, float16"),
        ({"adapter": "/nowhere"}, "no adapter at '/nowhere': expected a folder that peft's save_pretrained wrote"),
    ],
)
def test_missing_devices_unknown_precisions_and_missing_adapters_are_refused(options, message):
    if "cuda" in options.get("device", "") and torch.cuda.device_count() > 7:
        pytest.skip("this machine has that device")
    with pytest.raises(InputError, match=message):
        TransformersEngine("arith-policy", **options)


def test_a_truncated_file_of_weights_is_refused(tmp_path):
    folder = make("llama", tmp_path / "m")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match=r"cannot read model.safetensors of .*incomplete"):
        TransformersEngine(str(folder))


def test_a_gpu_beyond_the_last_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert weights.find_device("cuda:1") == torch.device("cuda:1")
    assert weights.find_device("auto") == torch.device("cuda")
    with pytest.raises(InputError, match="'cuda:2'; expected auto or a device of this machine: cuda:0 to cuda:1, cpu"):
        weights.find_device("cuda:2")


def write_adapter(folder, rank=4):
    """Write a LoRA adapter of the bundled policy with random weights, in peft's layout, and the policy with it merged."""
    from safetensors.torch import save_file

    model = AutoModelForCausalLM.from_pretrained(MODELS["arith-policy"])
    torch.manual_seed(5)
    tensors = {}
    for name, module in model.named_modules():
        if name.endswith(("q_proj", "v_proj", "down_proj")):
            a, b = torch.randn(rank, module.in_features) * 0.1, torch.randn(module.out_features, rank) * 0.1
            tensors |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
            module.weight.data += 2.0 * (b @ a)  # lora_alpha / r
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "lora_dropout": 0.0, "bias": "none",
        "target_modules": ["q_proj", "v_proj", "down_proj"], "base_model_name_or_path": "arith-policy",
    }  # fmt: skip
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    model.save_pretrained(folder / "merged")
    for file in MODELS["arith-policy"].glob("*token*"):
        shutil.copy(file, folder / "merged")
    for file in MODELS["arith-policy"].glob("*.jinja"):
        shutil.copy(file, folder / "merged")
    return str(folder / "adapter"), str(folder / "merged")


async def test_an_adapter_is_merged_into_the_weights(tmp_path, problems, engine):
    adapter, merged = write_adapter(tmp_path)
    adapted, by_hand = TransformersEngine("arith-policy", adapter=adapter), TransformersEngine(merged)
    sampling = Sampling(temperature=0, max_tokens=40, logprobs=True)
    prefix = engine.encode(problems[0])
    [ours], [theirs], [base] = [(await e.generate(prefix, 1, sampling)).steps for e in (adapted, by_hand, engine)]
    assert ours.token_ids == theirs.token_ids
    assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
    assert ours.logprobs != pytest.approx(base.logprobs, abs=1e-2)
    assert adapters.adapter_rank(adapter) == 8


async def test_an_out_of_memory_error_says_what_to_lower(problems, monkeypatch):
    engine = TransformersEngine("arith-policy")
    monkeypatch.setattr(engine.loop, "forward", lambda *_: torch.empty(10**16))
    with pytest.raises(MemoryError, match=r"out of memory .*lower --engine-arg max_rows or cache_gib, --n or --max-tokens"):
        await engine.generate(engine.encode(problems[0]), 2, Sampling())
    monkeypatch.undo()
    assert (await engine.generate(engine.encode(problems[0]), 2, Sampling())).steps


async def test_a_stop_string_that_can_never_appear_is_refused(engine, problems):
    complaint = r"'<\|im_end\|>' can never appear: with this model's tokenizer it is omitted from the decoded text"
    with pytest.raises(InputError, match=complaint):
        await engine.generate(engine.encode(problems[0]), 1, Sampling(stop=("<|im_end|>",)))
