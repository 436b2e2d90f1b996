"""Broken and hostile checkpoints, wherever one can be given: one line, exit code 2, nothing written, nothing executed."""

from __future__ import annotations

import json
import os
import re
import resource
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import hostile
from tests.hostile import CONFIGS, FILES, TEMPLATES
from tts.cli import main
from tts.models import bounded as bounds
from tts.models.chat import Turn, render
from tts.models.checkpoints import fingerprint, load_tokenizer

TEXT = "<think>\n1 + 1 = 2.\n</think>\n\nIt is \\boxed{2}."
TRACES = [{"id": id, "problem": f"{id} + 1 = ?", "answer": "2", "text": TEXT} for id in ("1", "2")]
LABELLED = {"problem": "1 + 1 = ?", "text": TEXT, "step_targets": [1.0, 1.0], "final_target": 1.0}
COMMANDS = {
    "policy": "run --strategy single --limit 1 --model {}",
    "scorer": "run --strategy bon --n 2 --limit 1 --scorer {}",
    "judge": "run --strategy bon --n 2 --limit 1 --scorer judge --scorer-arg model={}",
    "score": "score traces.jsonl --out out.jsonl --scorer {}",
    "encoder": "label traces.jsonl --out out.jsonl --encoder {}",
    "select": "select traces.jsonl --out out.jsonl --scorer {}",
    "train-prm": "train-prm labelled.jsonl --out out --model {}",
    "sft": "sft traces.jsonl --out out --model {}",
    "rl": "rl --out out --model {}",
    "adapter": "run --strategy single --limit 1 --adapter {}",
}
"""Commands by the part that a checkpoint has in them."""


@pytest.fixture(autouse=True)
def _nothing_is_executed_or_asked(monkeypatch):
    def ask(prompt: str = "") -> str:
        raise AssertionError(f"asked: {prompt}")

    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.syspath_prepend(str(Path.cwd()))  # as with python -m: code of the folder could be imported
    monkeypatch.setattr(bounds, "SECONDS", 1)
    hostile.SIGN.unlink(missing_ok=True)
    yield
    assert not hostile.SIGN.exists(), "code of the checkpoint was executed"


@pytest.fixture
def complaint(capfd):
    """Run a command on a checkpoint, which must be refused; its one line."""

    def run(part: str, checkpoint: str) -> str:
        Path("traces.jsonl").write_text("".join(json.dumps(trace) + "\n" for trace in TRACES))
        Path("labelled.jsonl").write_text(json.dumps(LABELLED) + "\n")
        before = sorted(Path().rglob("*"))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        code = main(COMMANDS[part].format(checkpoint).split())
        captured = capfd.readouterr()
        assert code == 2, captured.err
        assert captured.out == ""
        assert re.fullmatch(r"tts: [^\n]*\n", captured.err), captured.err
        assert captured.err.rstrip("\n").isprintable()
        assert sorted(Path().rglob("*")) == before, "something was written"
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < memory + 2**20, "1 GiB more than before"
        return captured.err

    return run


def pairs(*parts: str, kinds: dict) -> list:
    """Every kind for every part; the first part's are fast enough for every day."""
    return [
        pytest.param(part, *kinds[kind], id=f"{part}: {kind}", marks=() if part == parts[0] else pytest.mark.slow)
        for part in parts
        for kind in kinds
    ]


@pytest.mark.parametrize(("part", "harm", "pattern"), pairs("policy", "scorer", "encoder", kinds=CONFIGS | FILES))
def test_a_broken_checkpoint_is_one_line(complaint, part, harm, pattern):
    model = "arith-prm" if part == "scorer" else "arith-policy"
    assert re.search(pattern, complaint(part, hostile.folder(harm, Path("m").absolute(), model)))


@pytest.mark.parametrize(("part", "text", "pattern"), pairs("policy", "scorer", kinds=TEMPLATES))
def test_a_chat_template_is_tried_before_a_run(complaint, part, text, pattern):
    model = hostile.folder(hostile.template(text), Path("m").absolute(), "arith-prm" if part == "scorer" else "arith-policy")
    assert re.search(rf"the chat template of .* failed: .*({pattern})", complaint(part, model))


@pytest.mark.slow
@pytest.mark.parametrize("part", [part for part in COMMANDS if part not in ("policy", "scorer", "encoder", "adapter")])
@pytest.mark.parametrize(("harm", "pattern"), [FILES["NaN"], FILES["pickled code"], CONFIGS["with a huge vocabulary"]])
def test_every_command_that_loads_a_checkpoint_refuses_broken_ones(complaint, part, harm, pattern):
    model = "arith-prm" if part in ("score", "select") else "arith-policy"
    assert re.search(pattern, complaint(part, hostile.folder(harm, Path("m").absolute(), model)))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["judge", "sft", "rl", "score", "select"])
def test_every_command_that_prompts_tries_the_chat_template_first(complaint, part):
    harm = hostile.template(TEMPLATES["loops"][0])
    model = hostile.folder(harm, Path("m").absolute(), "arith-prm" if part in ("score", "select") else "arith-policy")
    assert "takes more than 1 seconds" in complaint(part, model)


@pytest.mark.parametrize(
    ("harm", "config", "pattern"),
    [
        (None, {"size": 64}, r"cannot merge the adapter .* size mismatch"),
        (hostile.text("adapter_model.safetensors", "weights"), {}, "cannot merge the adapter .*header"),
        (hostile.without("adapter_model.safetensors"), {}, "has no adapter_model.safetensors"),
        (hostile.text("adapter_config.json", "["), {}, "cannot read adapter_config.json of"),
        (None, {"peft_type": "PROMPT_TUNING"}, "is of the kind 'PROMPT_TUNING'; expected LORA"),
        (None, {"megatron_config": {}, "megatron_core": "evil"}, "is of the kind 'LORA with megatron'; expected LORA"),
        (None, {"r": 10**12}, "has the rank 1000000000000; expected a whole number from 1 to 4096"),
        (None, {"r": 4000}, "its config says rank 4000, and its weights have 2"),
        (None, {"r": "two"}, "has the rank 'two'"),
        (None, {"target_modules": ["k_proj"]}, "cannot merge the adapter .*missing adapter keys"),
        (None, {"target_modules": ["evil"]}, "cannot merge the adapter .*[Tt]arget modules"),
        (None, {"target_modules": "(([a-z0-9._]*)*)*X"}, "target_modules of the adapter .* takes more than 1 seconds"),
        (None, {"target_modules": "("}, "target_modules of the adapter .* unterminated subpattern"),
    ],
)
def test_a_broken_adapter_is_one_line(complaint, harm, config, pattern):
    assert re.search(pattern, complaint("adapter", hostile.adapter(Path("a").absolute(), harm or (lambda _: None), **config)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_of_an_adapter_are_looked_at(complaint, value):
    def harm(path):
        file = path / "adapter_model.safetensors"
        save_file({name: tensor * value for name, tensor in load_file(file).items()}, file)

    assert "have NaN or infinity" in complaint("adapter", hostile.adapter(Path("a").absolute(), harm))


def test_a_pickled_adapter_is_not_unpickled(complaint):
    def harm(path):
        (path / "adapter_model.safetensors").unlink()
        torch.save({"a": hostile.Executed()}, path / "adapter_model.bin")

    assert "holds Python objects other than tensors" in complaint("adapter", hostile.adapter(Path("a").absolute(), harm))


def sentences(*modules: str, **dense: object) -> hostile.Harm:
    """Make a sentence-transformers model of the folder."""

    def harm(path):
        parts = ["sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling", *modules]
        listed = [{"idx": i, "name": str(i), "path": f"{i}" if i else "", "type": kind} for i, kind in enumerate(parts)]
        (path / "modules.json").write_text(json.dumps(listed))
        for i in range(1, len(parts)):
            (path / str(i)).mkdir()
            (path / str(i) / "config.json").write_text(json.dumps({"word_embedding_dimension": 96} | (dense if i > 1 else {})))

    return harm


@pytest.mark.parametrize(
    ("harm", "pattern"),
    [
        (sentences("evil.Evil"), "needs code that is not part of sentence-transformers: evil.Evil"),
        (sentences("os.system"), "needs code that is not part of sentence-transformers: os.system"),
        (sentences("sentence_transformers.evil.Evil"), "cannot load the encoder"),
        (
            sentences("sentence_transformers.models.Dense", in_features=96, out_features=8, activation_function="evil.Evil"),
            "cannot load the encoder",
        ),
        (hostile.both(sentences(), hostile.text("modules.json", "{")), "cannot read modules.json"),
        (hostile.both(sentences(), hostile.text("modules.json", "[1]")), "cannot read modules.json"),
        (hostile.both(sentences(), FILES["NaN"][0]), "has NaN or infinity"),
        (hostile.both(sentences(), FILES["pickled code"][0]), "holds Python objects other than tensors"),
        (hostile.both(sentences(), CONFIGS["with code"][0]), "needs Python code of its own"),
        (hostile.both(sentences(), CONFIGS["with a huge vocabulary"][0]), "describes a model of 96,"),
    ],
)
def test_a_broken_sentence_encoder_is_one_line(complaint, harm, pattern):
    pytest.importorskip("sentence_transformers")
    assert re.search(pattern, complaint("encoder", hostile.folder(harm, Path("m").absolute())))


def test_what_is_harmless_is_used(capfd):
    """Code for an architecture that transformers has is left out, as are links in a circle and pipes."""
    code = {"auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}}
    harms = hostile.both(hostile.values(**code), hostile.values("tokenizer_config.json", **code), hostile.looped)
    model = hostile.folder(harms, Path("m").absolute())
    assert main(f"run --strategy single --limit 1 --max-tokens 8 --quiet --model {model}".split()) == 0
    assert capfd.readouterr().err == ""
    assert fingerprint(model) is not None
    assert fingerprint(model) != fingerprint("arith-policy")


def test_a_template_is_rendered_once_for_each_form_of_conversation(monkeypatch):
    tokenizer, before = load_tokenizer("arith-policy"), os.fork
    forks = []
    monkeypatch.setattr(os, "fork", lambda: forks.append(0) or before())
    for text in ("a", "b", "c"):
        assert text in render(tokenizer, [Turn("user", [text])], open_turn=True)
    render(tokenizer, [Turn("user", ["a"])], open_turn=False)
    assert len(forks) == 2
    tokenizer.chat_template = "{{ messages[0].content }}"
    assert render(tokenizer, [Turn("user", ["a"])], open_turn=True) == ["", "a", ""]


def test_a_place_that_a_template_makes_up_shows_nothing():
    tokenizer = load_tokenizer("arith-policy")
    tokenizer.chat_template = "{{ messages[0].content }}\ue0007\ue001\ue000" + "9" * 5000 + "\ue001."
    assert render(tokenizer, [Turn("user", ["a"])], open_turn=True) == ["", "a", "", "", "."]


def test_a_child_process_is_bounded_and_leaves_nothing():
    assert bounds.bounded(lambda: "text") == "text"
    for compute, pattern in [
        (lambda: sys.exit(3), "SystemExit|3"),
        (lambda: os._exit(0), "takes more than 1 seconds|ends"),
        (lambda: os.kill(os.getpid(), 11), "it ends the process"),
        (lambda: 1 / 0, "ZeroDivisionError"),
    ]:
        with pytest.raises(bounds.BoundError, match=pattern):
            bounds.bounded(compute)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
