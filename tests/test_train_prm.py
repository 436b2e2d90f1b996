from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, set_seed

from tests.killing import run_killed
from tests.test_score import command, read, write
from tts.demo import arith
from tts.errors import InputError
from tts.models import checkpoints
from tts.scorers.formats import Text
from tts.scorers.prm import PRM
from tts.train.prm.data import PRMCollator, read_examples
from tts.train.prm.reward_model import load_prm_tokenizer, load_reward_model
from tts.train.prm.trainer import PRMTrainer, ScoredExample, auc, metrics
from tts.train.prm.training import TrainedPRM, _arguments, train_prm
from tts.train.settings import TrainPRMSettings
from tts.train.trainer import optimizers
from tts.trajectory import parse
from tts.types import Candidate, Problem, Step

HEADS = ("step", "trace", "both")
RESPONSE = "multiply by 8 gives 6\n\nThe result is \\boxed{6}"
ROW = {
    "problem": "Start with 7.\n1) multiply by 8\nWhat is the last digit?",
    "text": f"<think>\n1) 7*8=6\n</think>\n\n{RESPONSE}",
    "step_targets": [1, 0.5, 0],
    "final_target": 0.25,
}


@pytest.fixture(scope="session")
def policy(tmp_path_factory):
    """A tiny policy with random weights, large enough for rewards to differ."""
    return save_policy(tmp_path_factory.mktemp("models") / "policy")


def save_policy(path, **changes):
    torch.manual_seed(0)
    tokenizer = checkpoints.load_tokenizer("arith-policy")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    given = {
        "vocab_size": len(tokenizer), **sizes, "num_key_value_heads": 1, "max_position_embeddings": 512,
        "initializer_range": 0.3, "tie_word_embeddings": True, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    Qwen2ForCausalLM(Qwen2Config(**{**given, **changes})).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def labelled(split, problems, samples=1, seed=0):
    """The teacher's solutions, with soft targets, some of them missing."""
    import random

    rng = random.Random(seed)
    rows = []
    for chain, i in product(arith.take(split, problems, seed), range(samples)):
        text = arith.teach(chain, rng)
        labels = arith.check(chain, parse(text))
        targets = [0.1 + 0.8 * label for label in labels]
        targets[i % len(targets)] = None
        row = {"problem": chain.prompt, "text": text, "correct": bool(labels[-1])}
        rows.append(row | {"step_targets": targets, "final_target": float(labels[-1])})
    return rows


def settings_of(policy, name="data.jsonl", rows=None, **changes):
    if rows is not None:
        write(Path(name), *rows)
    given = {
        "data": Path(name), "out": Path("out"), "model": policy, "device": "cpu", "batch_size": 4, "lr": 1e-3, "log_steps": 1,
    }  # fmt: skip
    return TrainPRMSettings(**{**given, **changes})


def trainer_of(settings, dev=()):
    settings.out.mkdir(exist_ok=True)
    text = Text(load_prm_tokenizer(settings))
    train = read_examples(settings.data, settings, text, 512, train=True)
    dev = read_examples(settings.eval, settings, text, 512, train=False) if settings.eval else []
    set_seed(settings.seed)
    model = load_reward_model(settings, text.tokenizer)
    args = _arguments(settings)
    return PRMTrainer(model, settings, train, dev, args=args, optimizers=optimizers(settings, model)), text.tokenizer


def curve(out, name="loss"):
    return {row["step"]: row[name] for row in read(Path(out) / "log.jsonl") if name in row}


def score(prm, row):
    [reward] = asyncio.run(prm.score([Candidate(Problem("p", row["problem"]), (Step(row["text"], (), "stop"),))]))
    return reward


def by_hand(model, example, settings):
    """The paper's loss of one trace in NumPy, from the hidden states of each sequence alone."""

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def error(p, target):
        if settings.loss == "mse":
            return (p - target) ** 2
        return -(target * np.log(p) + (1 - target) * np.log(1 - p))

    total = 0.0
    for sequence in example.sequences:
        with torch.no_grad():
            hidden = model.base.base_model(sequence.ids.long()[None]).last_hidden_state[0].numpy().astype(np.float64)
        hidden = hidden[list(sequence.positions)]
        if settings.head == "trace" or (settings.head == "both" and sequence.whole):
            weight, bias = (p.detach().numpy() for p in model.reward_head.parameters())
            rewards = sigmoid(hidden @ weight.T + bias)[:, 0]
        else:
            first, _, second = model.base.score
            layer = np.maximum(hidden @ first.weight.detach().numpy().T + first.bias.detach().numpy(), 0)
            logits = np.exp(layer @ second.weight.detach().numpy().T + second.bias.detach().numpy())
            rewards = logits[:, 1] / logits.sum(1)
        known = [error(p, target) for p, target in zip(rewards, sequence.targets, strict=True) if target is not None]
        if known:
            total += (settings.lambda_final if sequence.whole else settings.lambda_step) * np.mean(known)
    return total


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("loss", ["mse", "ce"])
@pytest.mark.parametrize("head", HEADS)
def test_the_loss_is_that_of_the_formula(policy, head, loss, packing):
    rows = labelled("train", 5)
    del rows[3]["final_target" if head == "step" else "step_targets"]
    settings = settings_of(
        policy, rows=rows, head=head, loss=loss, packing=packing, lambda_step=0.7, lambda_final=1.9, eval=Path("data.jsonl")
    )
    trainer, _ = trainer_of(settings)
    expected = [by_hand(trainer.model, example, settings) for example in trainer.train_dataset]
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, trainer.collator(trainer.train_dataset))
    assert float(loss) == pytest.approx(np.mean(expected), rel=1e-6, abs=1e-6)
    if head != "trace":  # rows without a final target are skipped there
        assert [s.loss for s in trainer.score(trainer.dev)] == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_gradients_reach_the_heads_and_the_decoder(policy, head, packing):
    trainer, _ = trainer_of(settings_of(policy, rows=labelled("train", 4), head=head, packing=packing))
    trainer.compute_loss(trainer.model, trainer.collator(trainer.train_dataset)).backward()
    trained = dict(trainer.model.named_parameters())
    assert any("reward_head" in name for name in trained) is (head != "step")
    assert any("score" in name for name in trained) is (head != "trace")
    for name, parameter in trained.items():
        assert parameter.grad is not None, name
        # adding the same to all keys does not change attention
        assert parameter.grad.abs().sum() > 0 or name.endswith("k_proj.bias"), name


@pytest.mark.parametrize("head", HEADS)
def test_packing_changes_neither_loss_nor_gradients(policy, head):
    settings = settings_of(policy, rows=labelled("train", 6), head=head)
    trainer, _ = trainer_of(settings)
    found = []
    for packing in (False, True):
        trainer.model.zero_grad()
        batch = PRMCollator(1.0, 1.0, packing)(trainer.train_dataset)
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        found.append((loss.item(), {name: p.grad.clone() for name, p in trainer.model.named_parameters()}))
    (padded, gradients), (packed, others) = found
    assert packed == pytest.approx(padded, abs=1e-5)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, others[name], atol=1e-5), name


def test_traces_count_equally_however_an_optimizer_step_is_split(policy):
    rows = labelled("train", 10)
    found = []
    for batch_size, accumulate in ((5, 1), (1, 5), (2, 3), (3, 2)):  # the last two end in a smaller batch
        out = Path(f"{batch_size}x{accumulate}")
        settings = settings_of(
            policy, rows=rows[:5], out=out, head="both", batch_size=batch_size, accumulate=accumulate, max_steps=1
        )
        trained = train_prm(settings)
        found.append((trained.losses[0], curve(out, "grad_norm")[1]))
    assert all(pair == pytest.approx(found[0], rel=1e-4) for pair in found)


@pytest.mark.parametrize(("head", "over"), [*product(HEADS, ("all", "think", "response"))])
def test_a_saved_prm_gives_the_rewards_that_it_gave_in_training(policy, head, over):
    rows = labelled("dev", 3, 2)
    settings = settings_of(policy, rows=rows, head=head, over=over, eval=Path("data.jsonl"), max_steps=3)
    trainer, tokenizer = trainer_of(settings)
    trainer.train()
    scored = trainer.score(trainer.dev)
    trainer.model.save(settings.out, tokenizer)
    prm = PRM("out")
    assert prm.over == over
    for row, expected in zip(rows, scored, strict=True):
        reward = score(prm, row)
        assert reward.steps == pytest.approx(expected.steps, abs=1e-6)
        assert reward.final == pytest.approx(expected.final, abs=1e-6)


def test_adapters_are_trained_together_with_the_heads_and_merged(policy):
    rows = labelled("dev", 3, 2)
    settings = settings_of(policy, rows=rows, head="both", lora=4, eval=Path("data.jsonl"), eval_steps=4, max_steps=8, lr=1e-2)
    trainer, tokenizer = trainer_of(settings)
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert all("lora" in name or "score" in name or "reward_head" in name for name in trained)
    assert sum("lora" in name for name in trained) == 2 * 2 * 7  # layers, matrices of an adapter, linear layers of each
    before = trainer.score(trainer.dev)
    trainer.train()
    assert set(load_file("out/checkpoints/checkpoint-8/model.safetensors")) == trained
    scored = trainer.score(trainer.dev)
    assert abs(scored[0].steps[0] - before[0].steps[0]) > 1e-3
    trainer.model.merge_adapters()
    trainer.model.save(settings.out, tokenizer)
    assert not any("lora" in name for name in load_file("out/model.safetensors"))
    for row, expected in zip(rows, scored, strict=True):
        assert score(PRM("out"), row).steps == pytest.approx(expected.steps, abs=1e-5)


def test_a_missing_separator_is_added_to_the_tokenizer(tmp_path):
    rows = labelled("dev", 2)
    for size in (341, 360):  # an embedding matrix without room for one more token, and one with room
        path = Path(save_policy(tmp_path / f"policy-{size}", vocab_size=max(size, 342)))
        raw = json.loads((path / "tokenizer.json").read_text())
        raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] != "<extra_0>"]
        (path / "tokenizer.json").write_text(json.dumps(raw))
        config = json.loads((path / "tokenizer_config.json").read_text())
        config["extra_special_tokens"].remove("<extra_0>")
        (path / "tokenizer_config.json").write_text(json.dumps(config))
        known = checkpoints.load_tokenizer(str(path)).get_vocab()
        assert "<extra_0>" not in known
        if size == 341:
            weights = load_file(path / "model.safetensors")
            weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][: max(known.values()) + 1].clone()
            save_file(weights, path / "model.safetensors", {"format": "pt"})
            config = json.loads((path / "config.json").read_text())
            (path / "config.json").write_text(json.dumps({**config, "vocab_size": max(known.values()) + 1}))
        out = tmp_path / f"out-{size}"
        train_prm(settings_of(str(path), rows=rows, out=out, max_steps=1))
        reward = score(PRM(str(out)), rows[0])
        assert len(reward.steps) == len(rows[0]["step_targets"])
        rest = json.loads((out / "config.json").read_text())["vocab_size"]
        assert rest == (360 if size == 360 else max(known.values()) + 2)


def test_a_prm_can_be_trained_further(policy):
    rows = labelled("train", 4)
    train_prm(settings_of(policy, rows=rows, out=Path("first"), over="think", max_steps=1))
    before = score(PRM("first"), rows[0])
    train_prm(settings_of("first", rows=rows, out=Path("second"), max_steps=1, lr=1e-9, over="think"))
    assert score(PRM("second"), rows[0]).steps == pytest.approx(before.steps, abs=1e-5)
    train_prm(settings_of("first", rows=rows, out=Path("third"), max_steps=1))
    assert PRM("third").over == "all"


def test_training_on_few_traces_memorizes_them(policy):
    rows = labelled("train", 8)
    trained = train_prm(
        settings_of(policy, rows=rows, head="both", max_steps=40, batch_size=8, lr=5e-3, optimizer="muon", warmup=0)
    )
    first, last = trained.losses
    assert last < 0.2 * first
    reward = score(PRM("out"), rows[0])
    assert reward.final == pytest.approx(rows[0]["final_target"], abs=0.3)


@pytest.mark.filterwarnings("error:.*checkpointing:FutureWarning")
@pytest.mark.parametrize(
    "change", [{"gradient_checkpointing": True}, {"gradient_checkpointing": True, "lora": 4}, {"bf16": True}]
)
def test_options_that_save_memory_hardly_change_the_losses(policy, change):
    rows = labelled("train", 8)
    plain = {name: value for name, value in change.items() if name == "lora"}
    train_prm(settings_of(policy, rows=rows, out=Path("plain"), head="both", max_steps=4, **plain))
    train_prm(settings_of(policy, rows=rows, head="both", max_steps=4, **change))
    close = 1e-5 if "bf16" not in change else 0.02
    assert curve("out") == pytest.approx(curve("plain"), abs=close)
    assert {tensor.dtype for tensor in load_file("out/model.safetensors").values()} == {torch.float32}


def test_the_same_seed_gives_the_same_weights(policy):
    rows = labelled("train", 8)
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_prm(settings_of(policy, rows=rows, out=Path(out), max_steps=4, seed=seed))
    same, other, different = (load_file(f"{out}/model.safetensors") for out in "abc")
    assert all(torch.equal(tensor, other[name]) for name, tensor in same.items())
    assert not all(torch.equal(tensor, different[name]) for name, tensor in same.items())


@pytest.mark.slow
def test_two_processes_train_like_one(policy):
    rows = labelled("train", 16)
    rows[0]["step_targets"] = [None] * len(rows[0]["step_targets"])  # one process may have no target for one of the heads
    train_prm(
        settings_of(
            policy, rows=rows, out=Path("one"), head="both", max_steps=4, batch_size=2, accumulate=2, eval=Path("data.jsonl")
        )
    )
    arguments = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tts.cli", "train-prm"),
        *("data.jsonl", "--out", "two", "--model", policy, "--head", "both", "--max-steps", "4", "--batch-size", "1"),
        *("--accumulate", "2", "--eval", "data.jsonl", "--device", "cpu", "--lr", "1e-3", "--log-steps", "1"),
    ]
    process = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("use it with tts run --scorer two") == 1
    for name in ("loss", "grad_norm", "eval_loss", "eval_step_auc"):
        assert curve("two", name) == pytest.approx(curve("one", name), rel=1e-4), name


WATCHED = """
import atexit, os
from pathlib import Path
from tts import cli
from tts.errors import InputError
from tts.train.prm.trainer import PRMTrainer

def look():
    threads = [comm.read_text().strip() for comm in Path("/proc/self/task").glob("*/comm")]
    Path(f"threads-{os.environ['RANK']}").write_text(" ".join(threads))

def fail(*_):
    raise {ERROR}("a failure")

def watched(arguments, main=cli.main):
    atexit.register(look)  # called after what is registered later, and before Python's end, which was registered earlier
    return main(arguments)

if {ERROR} is not None:
    PRMTrainer.training_step = fail
cli.main = watched
cli.entry()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("error", "code"), [("None", 0), ("InputError", 2), ("ValueError", 1)])
def test_a_process_leaves_its_group_before_python_ends(policy, error, code):
    """A thread of the group that lets go of a tensor while Python ends would abort the process, now and then."""
    write(Path("data.jsonl"), *labelled("train", 8))
    Path("watched.py").write_text(WATCHED.replace("{ERROR}", error))
    arguments = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "watched.py", "train-prm"),
        *("data.jsonl", "--out", "out", "--model", policy, "--max-steps", "2", "--batch-size", "1", "--device", "cpu"),
    ]
    process = subprocess.run(arguments, capture_output=True, text=True)
    assert process.returncode == bool(code), process.stderr
    assert not code or f"exitcode  : {code} " in process.stderr, process.stderr
    assert "SIGABRT" not in process.stderr
    threads = [path.read_text() for path in Path().glob("threads-*")]
    assert len(threads) >= (1 if code else 2)  # torchrun may end the second of two that fail before it has looked
    assert all("python" in names and "gloo" not in names for names in threads), threads


@pytest.mark.slow
def test_several_processes_stop_after_the_same_step(policy):
    """Ctrl-C goes to the launcher, which passes it on at moments of its own."""
    write(Path("data.jsonl"), *labelled("train", 16))
    arguments = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tts.cli", "train-prm"),
        *("data.jsonl", "--out", "out", "--model", policy, "--max-steps", "100000", "--batch-size", "1", "--device", "cpu"),
        *("--log-steps", "1"),
    ]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    for line in process.stderr:
        if "step 3/" in line:
            break
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode != 0
    assert said.count("tts: interrupted; resume with the same command and --resume (out)") == 1, said
    assert "tts/" not in said, said  # a traceback is the launcher's
    [checkpoint] = Path("out/checkpoints").iterdir()
    assert (checkpoint / "trainer_state.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_resumed_after_a_kill_ends_like_an_uninterrupted_one(policy, optimizer):
    rows = labelled("train", 24)
    settings = settings_of(
        policy,
        rows=rows,
        out=Path("whole"),
        head="both",
        optimizer=optimizer,
        max_steps=30,
        save_steps=3,
        eval=Path("data.jsonl"),
    )
    train_prm(settings)
    arguments = [
        *("train-prm", "data.jsonl", "--out", "out", "--model", policy, "--head", "both"),
        *("--optimizer", optimizer, "--max-steps", "30", "--save-steps", "3", "--eval", "data.jsonl"),
        *("--device", "cpu", "--batch-size", "4", "--lr", "1e-3", "--log-steps", "1"),
    ]
    run_killed("transformers.trainer:Trainer.training_step", 11, *arguments)
    assert not Path("out/config.json").exists()
    Path("out/checkpoints/checkpoint-27").mkdir()  # as if it had been killed while writing one
    Path("out/checkpoints/checkpoint-27/model.safetensors").write_bytes(b"torn")
    train_prm(replace(settings, out=Path("out"), resume=True))
    assert len(curve("whole")) == 30
    assert curve("out") == pytest.approx(curve("whole"), abs=1e-6)
    assert curve("out", "eval_loss") == pytest.approx(curve("whole", "eval_loss"), abs=1e-6)
    one, other = load_file("whole/model.safetensors"), load_file("out/model.safetensors")
    assert all(torch.allclose(tensor, other[name], atol=1e-6) for name, tensor in one.items())


def test_ctrl_c_saves_and_says_how_to_go_on(policy, monkeypatch, capsys):
    write(Path("data.jsonl"), *labelled("train", 12))
    step = PRMTrainer.training_step

    def interrupted(self, *given):
        if self.state.global_step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *given)

    arguments = ["data.jsonl", "--out", "out", "--model", policy, "--device", "cpu", "--max-steps", "6", "--batch-size", "4"]
    with monkeypatch.context() as patched:
        patched.setattr(PRMTrainer, "training_step", interrupted)
        code, out, err = command(patched, capsys, "train-prm", *arguments)
    assert code == 130
    assert "tts: interrupted; resume with the same command and --resume (out)" in err
    assert not out
    code, out, err = command(monkeypatch, capsys, "train-prm", *arguments, "--resume")
    assert code == 0, err
    assert out.startswith("6 steps on 12 traces")
    assert out.endswith("out: use it with tts run --scorer out\n")


def test_the_best_checkpoint_is_kept_and_patience_ends_training(policy, monkeypatch):
    write(Path("dev.jsonl"), *({**row, "final_target": 1 - row["final_target"]} for row in labelled("train", 8)))
    settings = settings_of(
        policy, rows=labelled("train", 8), head="trace", eval=Path("dev.jsonl"), eval_steps=2, patience=3, max_steps=200,
        lr=1e-2, batch_size=8,
    )  # fmt: skip
    trained = train_prm(settings)
    evaluated = curve("out", "eval_loss")
    best = min(evaluated, key=evaluated.get)  # it learns the opposite of what it is evaluated on
    assert trained.best == best
    assert trained.steps == best + 2 * 3
    assert trained.metrics["loss"] == evaluated[best]
    kept = load_file(f"out/checkpoints/checkpoint-{best}/model.safetensors")
    saved = load_file("out/model.safetensors")
    assert torch.equal(saved["model.norm.weight"], kept["base.model.norm.weight"])

    step = PRMTrainer.training_step

    def crash(self, *given):
        if self.state.global_step == best + 4:
            raise RuntimeError("the power is off")
        return step(self, *given)

    settings = replace(settings, out=Path("again"))
    with monkeypatch.context() as patched:
        patched.setattr(PRMTrainer, "training_step", crash)
        with pytest.raises(RuntimeError, match="power"):
            train_prm(settings)
    assert train_prm(replace(settings, resume=True)).steps == best + 2 * 3  # the count of --patience is resumed too


@pytest.mark.parametrize(("over", "expected"), [("all", (0.1, 0.2, 0.3)), ("think", (0.1,)), ("response", (0.2, 0.3))])
def test_targets_are_those_of_the_rated_part(policy, over, expected):
    settings = settings_of(policy, rows=[{**ROW, "step_targets": [0.1, 0.2, 0.3]}], over=over)
    text = Text(load_prm_tokenizer(settings))
    [example] = read_examples(Path("data.jsonl"), settings, text, 512, train=True)
    by_step, whole = example.sequences
    assert by_step.targets == expected
    assert whole.targets == (0.25,)
    shown = text.tokenizer.decode(by_step.ids)
    assert ("7*8=6" in shown) is (over != "response")
    assert ("The result is" in shown) is (over != "think")


def test_metrics_are_computed_from_the_rewards(policy):
    rows = labelled("dev", 3, 4)
    trained = train_prm(settings_of(policy, rows=rows, eval=Path("data.jsonl"), max_steps=2, metric="step_auc"))
    prm = PRM("out")
    rewards = [score(prm, row) for row in rows]
    pairs = [
        (reward, target >= 0.5)
        for row, given in zip(rows, rewards, strict=True)
        for reward, target in zip(given.steps, row["step_targets"], strict=True)
        if target is not None
    ]
    above = [
        float(one > other) + 0.5 * float(one == other) for one, right in pairs if right for other, wrong in pairs if not wrong
    ]
    assert trained.metrics["step_auc"] == pytest.approx(np.mean(above), abs=1e-3)
    best = []
    for start in range(0, len(rows), 4):
        chosen = max(range(start, start + 4), key=lambda i: rewards[i].total)
        best.append(rows[chosen]["correct"])
    assert trained.metrics["best_of_n"] == pytest.approx(np.mean(best))
    assert trained.metrics["mean_correct"] == pytest.approx(np.mean([row["correct"] for row in rows]))


def test_auc_counts_ties_half():
    assert auc([0.1, 0.4, 0.4, 0.9], [False, True, False, True]) == (1 + 0.5 + 1 + 1) / 4
    assert auc([0.1, 0.9], [False, True]) == 1
    assert auc([0.5, 0.5, 0.5], [False, True, True]) == 0.5


def test_metrics_that_the_data_does_not_allow_are_omitted(policy):
    rows = [{**ROW, "step_targets": [1, 1, None]}, {**ROW, "problem": "another"}]
    settings = settings_of(policy, rows=rows)
    examples = read_examples(Path("data.jsonl"), settings, Text(load_prm_tokenizer(settings)), 512, train=False)
    found = metrics(examples[:1], [ScoredExample(0, 0.5, (0.9, 0.8, 0.1), 0.5)])
    assert found == {"loss": 0.5, "calibration_error": pytest.approx(0.15)}


def test_other_layouts_and_field_names_are_read(policy):
    write(
        Path("data.jsonl"),
        {"question": ROW["problem"], "text": ROW["text"], "step_targets": [1, 1, 1]},
        {"prompt": "p", "completions": ["a", "b"], "labels": [True, False]},
    )
    trained = train_prm(settings_of(policy, max_steps=1, fields={"problem": "question"}))
    assert trained.traces == 2


def test_unusable_traces_are_skipped_and_counted(policy, capsys):
    rows = [
        ROW, {**ROW, "text": "a " * 600, "step_targets": [1]}, {**ROW, "text": "<think>\na", "step_targets": [1]},
        {**ROW, "step_targets": [1, None, None], "final_target": None}, {**ROW, "step_targets": None, "final_target": 1},
    ]  # fmt: skip
    trained = train_prm(settings_of(policy, rows=rows, over="response", max_steps=1))
    assert trained.traces == 2
    assert (
        "tts: skipped 3 of 5 traces of data.jsonl: 1 longer than 512 tokens (--max-length),"
        " 1 without steps in the part that --over response rates, 1 without targets for --head step"
    ) in capsys.readouterr().err
    trained = train_prm(settings_of(policy, rows=[{**ROW, "final_target": None}], out=Path("steps"), max_steps=1))
    assert "score with --alpha 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        ({"step_targets": [1]}, {}, "data.jsonl, line 2: 1 labels for 3 steps; expected one for every thinking step"),
        ({"step_targets": [1, 1, 1.5]}, {}, "trace 2: a target is 1.5, but targets must be between 0 and 1"),
        ({"final_target": -1}, {}, "trace 2: a target is -1, but targets must be between 0 and 1"),
        ({}, {"max_length": 20}, "none of the 2 traces of data.jsonl can be used: 2 longer than 20 tokens"),
        ({}, {"max_length": 600}, "--max-length is 600, but"),
        ({}, {"device": "cuda"}, "device is 'cuda'; expected auto or a device of this machine: cpu"),
        ({}, {"fields": {"prompt": "question"}}, "--field prompt is not a field of a trace"),
        ({}, {"model": "arith-prm", "head": "both"}, "'arith-prm' is a reward model (Qwen2ForProcessRewardModel)"),
        ({}, {"out": Path("math-shepherd-mine")}, "would be loaded as a PRM of the format math-shepherd"),
        ({}, {"eval": Path("none.jsonl")}, "cannot read none.jsonl: No such file"),
        ({}, {"eval": Path("data.jsonl"), "metric": "best_of_n"}, "best_of_n cannot be computed from data.jsonl: it needs"),
    ],
)  # fmt: skip
def test_mistakes_are_reported_before_training(policy, row, changes, message):
    if torch.cuda.is_available() and changes.get("device") == "cuda":
        pytest.skip("CUDA is available")
    with pytest.raises(InputError) as error:
        train_prm(settings_of(policy, rows=[ROW, {**ROW, **row}], **changes))
    assert message in str(error.value)


def test_data_without_targets_for_a_head_is_refused(policy):
    Path("empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match=r"empty\.jsonl is empty; expected labelled traces"):
        train_prm(settings_of(policy, "empty.jsonl"))
    steps, finals = {**ROW, "final_target": None}, {**ROW, "step_targets": None}
    for rows, head, message in (
        ([steps], "both", "no final targets, which --head both needs; use --head step"),
        ([finals], "both", "no targets of steps, which --head both needs; use --head trace"),
        ([steps], "trace", "none of the 1 traces of data.jsonl can be used: 1 without targets for --head trace"),
        ([{**steps, "step_targets": [None] * 3}], "step", "1 without targets for --head step"),
        ([{"problem": "p", "text": "t"}], "step", "line 1: the line has no targets; expected the columns of `tts label`"),
    ):
        with pytest.raises(InputError, match=message):  # the folder of a training that never started may be reused
            train_prm(settings_of(policy, rows=rows, head=head))


def test_other_architectures_can_have_only_a_trace_head(tmp_path):
    path = tmp_path / "llama"
    tokenizer = checkpoints.load_tokenizer("arith-policy")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=512, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    for head in ("step", "both"):
        with pytest.raises(InputError, match=r"is LlamaForCausalLM, but a step head needs a Qwen2 model"):
            train_prm(settings_of(str(path), rows=[ROW], head=head))
    train_prm(settings_of(str(path), rows=[ROW], head="trace", max_steps=2, packing=True))
    reward = score(PRM("out"), ROW)
    assert reward.steps == ()
    assert 0 < reward.final < 1
    before, after = load_file(path / "model.safetensors"), load_file("out/model.safetensors")
    assert torch.equal(before["lm_head.weight"], after["lm_head.weight"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--patience", "2"], "--patience needs data to evaluate on; name it with --eval"),
        (["--lambda-step", "-1"], "--lambda-step is '-1'; it should be a number, at least 0"),
        (["--head", "both", "--lambda-final", "0"], "--lambda-step 1 --lambda-final 0 leave --head both untrained"),
        (["--head", "trace", "--lambda-final", "0"], "leave --head trace untrained"),
        (["--max-length", "0"], "--max-length is '0'; it should be a whole number, at least 1"),
        (["--head", "value"], "--head is 'value'; it should be step, trace or both"),
        (["--resume"], "out holds no training to resume"),
        (["--model", "nowhere"], "no model at 'nowhere'"),
    ],
)
def test_wrong_options_end_with_one_line_and_exit_code_2(policy, monkeypatch, capsys, arguments, message):
    write(Path("data.jsonl"), ROW)
    model = [] if "--model" in arguments else ["--model", policy]
    code, _, err = command(
        monkeypatch, capsys, "train-prm", "data.jsonl", "--out", "out", "--device", "cpu", *model, *arguments
    )
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_missing_libraries_are_named(policy, monkeypatch):
    settings = settings_of(policy, rows=[ROW], lora=4, max_steps=1)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "peft", None)
        with pytest.raises(InputError, match=r"--lora needs peft; install it with: pip install 'tts-toolkit\[train\]'"):
            train_prm(settings)
    monkeypatch.setattr("tts.train.trainer.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"training needs accelerate; install it with: pip install 'tts-toolkit\[train\]'"):
        train_prm(replace(settings, lora=None))


def test_a_training_resumes_only_with_its_own_settings(policy):
    settings = settings_of(policy, rows=[ROW], max_steps=1)
    assert isinstance(train_prm(settings), TrainedPRM)
    with pytest.raises(InputError, match="out exists and is not an empty folder; continue in it with --resume"):
        train_prm(settings)
    with pytest.raises(InputError, match=r"out was started with --lambda-step 1\.0, not 0\.5"):
        train_prm(replace(settings, lambda_step=0.5, resume=True))
    assert train_prm(replace(settings, resume=True)).steps == 1


def test_a_loss_that_is_not_finite_ends_training(policy, monkeypatch):
    monkeypatch.setattr("tts.train.prm.trainer.reward_losses", lambda margins, *_: margins * float("nan"))
    with pytest.raises(InputError, match="the loss is nan at step 1; try a smaller --lr"):
        train_prm(settings_of(policy, rows=[ROW], max_steps=1))


def test_vllm_refuses_a_trace_head(policy):
    train_prm(settings_of(policy, rows=[ROW], head="both", max_steps=1))
    with pytest.raises(InputError, match=r"rates a trace with reward_head\.pt, which vLLM cannot compute"):
        PRM("out", backend="server", url="http://127.0.0.1:1")
    PRM("out", backend="server", url="http://127.0.0.1:1", final=False)
