"""Folders of models that are broken or hostile: a bundled model, and what is wrong with it."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tts.demo import MODELS

Harm = Callable[[Path], object]
"""What is done to a folder."""

SIGN = Path("/tmp") / f"tts-executed-{os.getpid()}"
"""A file that code of a hostile folder makes."""
CODE = f"open({str(SIGN)!r}, 'w')\n"
WEIGHTS, PICKLED = "model.safetensors", "pytorch_model.bin"


class Executed:
    """An object whose unpickling makes SIGN."""

    def __reduce__(self) -> Any:
        return os.system, (f"touch {SIGN}",)


def folder(harm: Harm, path: Path, model: str = "arith-policy") -> str:
    """Copy a bundled model and harm it."""
    shutil.copytree(MODELS[model], path)
    (path / "evil.py").write_text(CODE)
    harm(path)
    return str(path)


def values(file: str = "config.json", **values: Any) -> Harm:
    """Set values of a JSON file."""

    def harm(path: Path) -> None:
        found = json.loads((path / file).read_text())
        (path / file).write_text(json.dumps(found | values))

    return harm


def text(file: str, content: str | bytes) -> Harm:
    """Replace a file."""
    return lambda path: (path / file).write_bytes(content.encode() if isinstance(content, str) else content)


def template(content: str) -> Harm:
    """Replace the chat template."""
    return text("chat_template.jinja", content)


def without(file: str) -> Harm:
    """Remove a file."""
    return lambda path: (path / file).unlink()


def tensors(change: Callable[[dict[str, torch.Tensor]], object], file: str = WEIGHTS) -> Harm:
    """Change tensors, or write others."""

    def harm(path: Path) -> None:
        found = load_file(path / WEIGHTS)
        change(found)
        (path / WEIGHTS).unlink()
        save_file(found, path / file, metadata={"format": "pt"})

    return harm


def number(name: str, value: float) -> Harm:
    """Set one number of a tensor."""

    def change(found: dict[str, torch.Tensor]) -> None:
        found[name].view(-1)[3] = value

    return tensors(change)


def pickled(save: Callable[[Path], object]) -> Harm:
    """Write a checkpoint of torch's in place of the weights."""

    def harm(path: Path) -> None:
        (path / WEIGHTS).unlink()
        save(path / PICKLED)

    return harm


def cut(path: Path) -> None:
    """Truncate the weights."""
    whole = (path / WEIGHTS).read_bytes()
    (path / WEIGHTS).write_bytes(whole[: len(whole) // 2])


def sharded(index: Any) -> Harm:
    """Write an index of weights in place of the weights."""

    def harm(path: Path) -> None:
        (path / WEIGHTS).unlink()
        (path / f"{WEIGHTS}.index.json").write_text(json.dumps(index))

    return harm


def looped(path: Path) -> None:
    """Make links that point at themselves, and one at a pipe without an end."""
    (path / "loop.json").symlink_to(path / "loop.json")
    (path / "round").symlink_to(path)
    os.mkfifo(path / "pipe.json")


def both(*harms: Harm) -> Harm:
    """Do several things to a folder."""

    def harm(path: Path) -> None:
        for one in harms:
            one(path)

    return harm


def adapter(path: Path, harm: Harm = lambda _: None, *, size: int = 96, **config: Any) -> str:
    """Write a LoRA adapter for the bundled policy, and harm it."""
    path.mkdir()
    values = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | config
    (path / "adapter_config.json").write_text(json.dumps(values))
    layers = [f"base_model.model.model.layers.{i}.self_attn.q_proj.lora" for i in range(4)]
    weights = {f"{layer}_A.weight": torch.ones(2, size) for layer in layers}
    save_file(weights | {f"{layer}_B.weight": torch.ones(size, 2) for layer in layers}, path / "adapter_model.safetensors")
    harm(path)
    return str(path)


HEADER = struct.pack("<Q", 2**62)

CONFIGS: dict[str, tuple[Harm, str]] = {
    "not JSON": (text("config.json", "{"), "cannot read config.json of .*Expecting"),
    "a list": (text("config.json", "[]"), "is not a JSON object"),
    "nested": (text("config.json", "[" * 100_000), "it is nested too deeply"),
    "not text": (text("config.json", b"\xff\xfe\x00"), "cannot read config.json of .*can't decode"),
    "of no type": (text("config.json", '{"hidden_size": 96}'), "model_type|not recognised"),
    "of an unknown type": (values(model_type="evil"), "does not recognize this architecture|not recognised|qwen2"),
    "of a wrong type": (values(model_type=["qwen2"]), "model_type .*; expected a string"),
    "with code": (
        values(model_type="evil", auto_map=dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "evil.Evil")),
        "needs Python code of its own, which tts does not run",
    ),
    "with a huge vocabulary": (values(vocab_size=10**12), r"describes a model of 96,\d{3},\d{3},\d{3},\d{3} parameters, but"),
    "with endless layers": (values(num_hidden_layers=10**12), "num_hidden_layers 1000000000000; expected at most 4096"),
    "with endless labels": (values(num_labels=10**10), "num_labels 10000000000; expected at most 4096"),
    "with wide layers": (values(intermediate_size=10**10), "describes a model of"),
    "of negative size": (values(hidden_size=-5), "hidden_size -5; expected a whole number, at least 1"),
    "without heads": (values(num_attention_heads=0), "num_attention_heads 0; expected a whole number, at least 1"),
    "of half a layer": (values(num_hidden_layers=1.5), "num_hidden_layers 1.5; expected a whole number"),
    "of another shape": (
        values(intermediate_size=512),
        r"up_proj.weight is \[256, 96\] and should be \[512, 96\] and 9 more",
    ),
    "of an unknown activation": (values(hidden_act="evil"), "KeyError: 'evil'"),
    "of an unknown rope": (values(rope_parameters={"rope_type": "evil"}), "KeyError: 'evil'"),
    "of strange kinds": (values(architectures={"a": 1}), "architectures .*; expected a list of strings"),
    "of no context": (values(max_position_embeddings="many"), "max_position_embeddings 'many'; expected a whole number"),
}
"""By what is wrong with config.json: what makes it so, and a pattern of the complaint."""

FILES: dict[str, tuple[Harm, str]] = {
    "weights that are cut off": (cut, "cannot read model.safetensors of .*incomplete"),
    "weights of text": (text(WEIGHTS, "weights"), "cannot read model.safetensors of"),
    "weights with a huge header": (text(WEIGHTS, HEADER + b"{}"), "cannot read model.safetensors of"),
    "no weights": (without(WEIGHTS), "has no (model|\\*).safetensors"),
    "a tensor of another shape": (
        tensors(lambda found: found.update({"model.norm.weight": torch.ones(7)})),
        r"norm.weight is \[7\] and should be \[96\]",
    ),
    "no norm": (tensors(lambda found: found.pop("model.norm.weight")), "lack 1 of the tensors .* needs: .*norm.weight"),
    "NaN": (number("model.layers.2.mlp.up_proj.weight", float("nan")), r"layers.2.mlp.up_proj.weight has NaN or infinity"),
    "infinity": (number("model.embed_tokens.weight", float("-inf")), "embed_tokens.weight has NaN or infinity"),
    "an index of nothing": (sharded([]), "is not a JSON object"),
    "an index without names": (sharded({"weight_map": {"a": 1}}), "has no weight_map of tensors to files"),
    "a missing shard": (sharded({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}), "lacks 2 of 2 files"),
    "pickled code": (pickled(lambda path: torch.save({"a": Executed()}, path)), "holds Python objects other than tensors"),
    "a bare pickle": (pickled(lambda path: path.write_bytes(pickle.dumps(Executed()))), "holds Python objects other than"),
    "a pickled list": (pickled(lambda path: torch.save([1], path)), ""),
    "an adapter of another model": (text("adapter_config.json", '{"base_model_name_or_path": "x/y"}'), "holds a LoRA adapter"),
    "no tokenizer": (
        both(without("tokenizer.json"), without("tokenizer_config.json")),
        "has no tokenizer; copy tokenizer.json and tokenizer_config.json",
    ),
    "a tokenizer that is cut off": (text("tokenizer.json", '{"a":'), "cannot load the tokenizer of"),
    "an empty tokenizer": (text("tokenizer.json", "{}"), "cannot load the tokenizer of"),
    "a tokenizer that is a list": (text("tokenizer.json", "[]"), "cannot load the tokenizer of"),
    "a list as the tokenizer's config": (text("tokenizer_config.json", "[]"), "cannot load the tokenizer of"),
    "a larger vocabulary than embedding": (
        both(values(vocab_size=8), tensors(lambda found: found.update({"model.embed_tokens.weight": torch.ones(8, 96)}))),
        r"has 33\d tokens, but the model has embeddings of 8; they do not belong together|vocabulary|index",
    ),
}
"""By what is wrong with other files."""

TEMPLATES: dict[str, tuple[str, str]] = {
    "loops": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{{ messages[0].content }}",
        "takes more than 1 seconds",
    ),
    "fills memory": ("{{ 'a' * 10**10 }}{{ messages[0].content }}", "takes more than 512 MiB of memory"),
    "computes for ages": ("{{ 9 ** (9**9) }}{{ messages[0].content }}", "takes more than 1 seconds"),
    "pads": ("{{ messages[0].content.center(10**11) }}", "takes more than 512 MiB of memory"),
    "doubles": (
        "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
        "takes more than 512 MiB of memory",
    ),
    "is long": (
        "{{ 'a' * 2 * 10**6 }}{{ messages[0].content }}",
        "makes a text of 2,0.*; expected at most 1,048,576",
    ),
    "recurses": ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "nested too deeply"),
    "is deep": ("{{ " + "(" * 10_000 + "1" + ")" * 10_000 + " }}", "nested too deeply|ends the process"),
    "looks inside": ("{{ messages.__class__.__mro__[1].__subclasses__() }}{{ messages[0].content }}", "unsafe|undefined"),
    "looks for globals": ("{{ namespace.__init__.__globals__.os.system('touch %s') }}" % SIGN, "unsafe|undefined"),  # noqa: UP031
    "raises": ("{{ raise_exception('no \x1b[2J problems') }}", r"no \[2J problems"),
    "is no template": ("{% if %}", "Expected an expression"),
    "knows too little": ("{{ tools[0].name }}", "no element 0"),
    "is blank": ("  ", "shows the user's message nowhere"),
    "drops the message": ("Hello", "shows the user's message nowhere"),
    "repeats the message": ("{% for i in range(10000) %}{{ messages[0].content }}{% endfor %}", "message 10,000 times"),
    "divides by zero": ("{{ 1 // 0 }}", "ZeroDivisionError"),
    "imports": ("{% include '/etc/passwd' %}{{ messages[0].content }}", "no loader|failed"),
}
"""By what a chat template does: its text, and a pattern of the complaint."""
