from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.killing import run_killed
from tts import interrupts
from tts.data.traces import parse_line
from tts.engines.transformers import TransformersEngine
from tts.errors import InputError
from tts.models import adapters, checkpoints
from tts.train.policy import shared
from tts.train.policy.sft import SFTCollator, end_of_turn, make_sft_trainer, read_traces, sft, tokenize_trace
from tts.train.policy.shared import PolicyPrompts
from tts.train.settings import SFTSettings
from tts.types import Problem, Sampling


@pytest.fixture(scope="session")
def prompts():
    return PolicyPrompts("arith-policy")


@pytest.fixture
def file(tmp_path, problems):
    """Traces of several lengths."""
    path = tmp_path / "traces.jsonl"
    texts = [
        "<think>\n" + "\n\n".join(["one and one"] * (1 + i % 5)) + f"\n</think>\n\nIt is \\boxed{{{i}}}" for i in range(12)
    ]
    rows = [{"problem": problem.prompt, "text": text} for problem, text in zip(problems, texts, strict=False)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def trace(problem, text):
    [found] = parse_line(json.dumps({"problem": problem, "text": text}), 1, {})
    return found


def settings(file, tmp_path, **more):
    given = {"out": tmp_path / "out", "traces": file, "batch_size": 4, "log_steps": 1, "lr": 1e-3, "device": "cpu"}
    return SFTSettings(**{**given, **more})


async def test_a_trace_is_tokenized_as_the_policy_drew_it(engine, prompts, problems):
    for problem in problems[:6]:
        prefix = engine.encode(problem)
        [step] = (await engine.generate(prefix, 1, Sampling(seed=1, max_tokens=400))).steps
        row = tokenize_trace(prompts, trace(problem.prompt, step.text), end_of_turn(prompts))
        assert step.finish == "stop"
        assert row["input_ids"] == [*prefix, *step.token_ids]
        assert row["labels"] == [-100] * len(prefix) + list(step.token_ids)


def test_the_prompt_is_that_of_inference_including_the_system_prompt():
    prompts = PolicyPrompts("arith-policy", system="Be brief.")
    problem = Problem("1", "1 + 1 = ?")
    prefix = TransformersEngine("arith-policy", system="Be brief.").encode(problem)
    row = tokenize_trace(prompts, trace("1 + 1 = ?", "2"), end_of_turn(prompts))
    assert row["input_ids"][: len(prefix)] == list(prefix)
    assert row["input_ids"][-1] == prompts.tokenizer.eos_token_id


def test_a_trace_that_was_cut_off_has_no_end_of_turn(prompts):
    row = {"id": 1, "problem": "1 + 1 = ?", "candidates": [{"steps": ["one and"], "finish": end} for end in ("length", "stop")]}
    cut_off, whole = (tokenize_trace(prompts, found, end_of_turn(prompts)) for found in parse_line(json.dumps(row), 1, {}))
    assert whole["input_ids"] == [*cut_off["input_ids"], end_of_turn(prompts)]


def test_a_text_cannot_forge_control_tokens(prompts):
    row = tokenize_trace(prompts, trace("<|im_end|> ?", "a <|im_end|> b <extra_0>"), end_of_turn(prompts))
    end, mark = prompts.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<extra_0>"])
    completion = [label for label in row["labels"] if label != -100]
    assert completion.count(end) == 1 == row["input_ids"].count(end) - 1  # one ends the user's turn, one the assistant's
    assert mark not in row["input_ids"]
    assert prompts.decode(completion) == "a <|im_end|> b <extra_0>"


@pytest.fixture
def thinker(tmp_path):
    """A policy whose chat template opens <think>."""
    folder = tmp_path / "thinker"
    AutoModelForCausalLM.from_pretrained(checkpoints.locate("arith-policy")).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(checkpoints.locate("arith-policy"))
    opened = "<|im_start|>assistant\n"
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>assistant\n", opened + "<think>\n")
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("text", "trained"),
    [
        ("<think>\nso\n</think>\n\n2", "so\n</think>\n\n2"),
        ("so\n</think>\n\n2", "so\n</think>\n\n2"),
        ("2", "\n</think>\n\n2"),
        ("<think>so</think>2", "so</think>2"),
    ],
)
def test_a_think_tag_that_the_chat_template_opens_is_not_opened_twice(thinker, text, trained):
    prompts = PolicyPrompts(thinker)
    assert prompts.opener == "<think>\n"
    row = tokenize_trace(prompts, trace("1 + 1", text), end_of_turn(prompts))
    prefix = prompts.encode(Problem("", "1 + 1"))
    assert row["input_ids"][: len(prefix)] == list(prefix)
    assert prompts.decode(row["input_ids"][len(prefix) :]) == trained
    assert prompts.completion(row["input_ids"][len(prefix) :]).startswith("<think>\n")


def test_a_turn_ends_with_the_token_of_the_chat_template_if_engines_stop_at_it(thinker, tmp_path):
    config = json.loads((tmp_path / "thinker/config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(thinker)
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(thinker)
    assert end_of_turn(PolicyPrompts(thinker)) == config["eos_token_id"] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def reference_loss(rows):
    """The mean loss of completion tokens, computed one trace at a time."""
    model = AutoModelForCausalLM.from_pretrained(checkpoints.locate("arith-policy")).eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1].log_softmax(-1)
            for position, label in enumerate(row["labels"][1:]):
                if label != -100:
                    total, count = total - logits[position, label].item(), count + 1
    return total / count


@pytest.mark.parametrize("packing", [False, True])
def test_the_loss_is_that_of_the_completions_read_one_at_a_time(file, tmp_path, prompts, packing):
    rows = read_traces(file, prompts, 200, {})
    trainer = make_sft_trainer(settings(file, tmp_path, packing=packing, batch_size=12, max_length=200), prompts, rows, rows)
    found = trainer.evaluate()
    assert found["eval_loss"] == pytest.approx(reference_loss(rows), abs=1e-5)
    if packing:
        assert len(trainer.train_dataset) < len(rows)
        assert max(len(row) for row in trainer.train_dataset["input_ids"]) <= 200


def test_packed_traces_do_not_attend_to_each_other(prompts, file):
    one, two = read_traces(file, prompts, 200, {})[:2]
    packed = {name: one[name] + two[name] for name in one} | {"seq_lengths": [len(one["labels"]), len(two["labels"])]}
    model = AutoModelForCausalLM.from_pretrained(checkpoints.locate("arith-policy")).eval()

    def logits(rows):
        batch = SFTCollator(0)(rows)
        with torch.no_grad():
            return model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits

    alone = logits([two])[0]
    together = logits([packed, one])[0, len(one["labels"]) : len(one["labels"]) + len(two["labels"])]
    assert torch.allclose(alone, together, atol=1e-4)


def test_the_loss_decreases_and_the_folder_is_a_policy(file, tmp_path, capsys):
    out = tmp_path / "out"
    sft(settings(file, tmp_path, max_steps=8, eval=file, eval_steps=3, packing=True, max_length=256, epochs=10))
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [row["eval_loss"] for row in rows if "eval_loss" in row]
    assert losses[-1] < losses[0] - 0.1
    assert [row["step"] for row in rows if "eval_loss" in row] == [0, 3, 6, 8]
    assert "held-out loss" in capsys.readouterr().out
    assert checkpoints.load_config(str(out))["dtype"] == "float32"
    engine = TransformersEngine(str(out))
    assert engine.encode(Problem("", "x")) == TransformersEngine("arith-policy").encode(Problem("", "x"))
    assert not (out / "training_args.bin").exists()


def test_lora_adapters_are_merged_and_saved(file, tmp_path):
    out = tmp_path / "out"
    sft(settings(file, tmp_path, lora=4, max_steps=4, eval=file, eval_steps=4))
    merged = AutoModelForCausalLM.from_pretrained(out).eval()
    adapted = adapters.merge_adapter(
        AutoModelForCausalLM.from_pretrained(checkpoints.locate("arith-policy")), str(out / shared.ADAPTER)
    )
    base = AutoModelForCausalLM.from_pretrained(checkpoints.locate("arith-policy")).eval()
    ids = torch.tensor([[1, 2, 3]])
    assert torch.allclose(merged(ids).logits, adapted(ids).logits, atol=1e-5)
    assert not torch.allclose(merged(ids).logits, base(ids).logits, atol=1e-3)


def curve(out):
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.mark.slow
def test_training_resumed_after_a_kill_gives_the_same_losses(file, tmp_path):
    whole, killed = (
        settings(file, tmp_path, out=tmp_path / name, epochs=12, batch_size=2, save_steps=4) for name in ("whole", "killed")
    )
    sft(whole)
    command = [
        "sft", file, "--out", killed.out, "--epochs", "12", "--batch-size", "2", "--lr", "0.001", "--log-steps", "1",
        "--save-steps", "4", "--device", "cpu",
    ]  # fmt: skip
    run_killed("transformers.trainer:Trainer.training_step", 10, *command)
    assert max(curve(killed.out)) == 9
    sft(replace(killed, resume=True))
    assert curve(killed.out) == pytest.approx(curve(whole.out), abs=1e-6)


def test_traces_that_are_too_long_are_skipped_and_counted(file, prompts, capsys):
    lengths = sorted(len(row["input_ids"]) for row in read_traces(file, prompts, 1024, {}))
    kept = read_traces(file, prompts, lengths[-3], {})
    assert all(len(row["input_ids"]) <= lengths[-3] for row in kept)
    skipped = 12 - len(kept)
    assert f"{skipped} of 12 traces of {file} are longer than {lengths[-3]} tokens" in capsys.readouterr().err
    with pytest.raises(InputError, match="give a larger --max-length"):
        read_traces(file, prompts, 3, {})


def test_bad_input_is_reported_in_one_line(file, tmp_path, monkeypatch):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"problem": "1 + 1", "text": "2"}\n{"problem": "1 + 1"}\n')
    for changed, words in (
        ({"traces": empty}, "has no traces"),
        ({"traces": wrong}, "line 2"),
        ({"traces": tmp_path / "none"}, "cannot read"),
        ({"model": "arith-prm"}, "reward model"),
        ({"device": "cuda"}, "cuda"),
        ({"fields": {"texts": "x"}}, "not a field of a trace"),
        ({"lora": 4, "optimizer": "muon"}, "omit one of the two"),
    ):
        with pytest.raises(InputError, match=words):
            sft(replace(settings(file, tmp_path), **changed))
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(InputError, match=r"tts-toolkit\[train\]"):
        sft(settings(file, tmp_path))


def test_ctrl_c_before_the_first_step_says_so(file, tmp_path, monkeypatch, capsys):
    import tts.train.policy.sft

    with monkeypatch.context() as patched:
        patched.setattr(tts.train.policy.sft, "fit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert interrupts.guard(lambda: sft(settings(file, tmp_path))) == 130
    assert capsys.readouterr().err == "tts: interrupted before anything was trained; nothing was written\n"
    interrupts.uninstall()
    assert sft(settings(file, tmp_path, max_steps=1)) == 0  # the same command
