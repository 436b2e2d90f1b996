from __future__ import annotations

import json
import random

import pytest
import torch

from tts.demo import arith
from tts.reproduce import demo_training as train
from tts.trajectory import parse

CHAIN = arith.Chain(7, (("+", 5), ("*", 3)))


def test_values_are_kept_modulo_ten():
    assert CHAIN.values == (2, 6)
    assert CHAIN.answer == "6"
    assert arith.Chain(2, (("-", 5),)).answer == "7"


def test_splits_share_no_problem():
    splits = {split: set(arith.take(split, 3000, seed)) for split, seed in (("train", 0), ("dev", 0), ("test", 0))}
    assert not splits["train"] & splits["dev"]
    assert not splits["train"] & splits["test"]
    assert not splits["dev"] & splits["test"]
    assert all(len(split) == 3000 for split in splits.values())


def test_the_same_seed_gives_the_same_problems():
    assert arith.take("test", 50) == arith.take("test", 60)[:50]
    assert arith.take("test", 50, seed=1) != arith.take("test", 50)


@pytest.mark.parametrize(
    ("thinking", "response", "labels"),
    [
        ("1) 7+5=2\n\n2) 2*3=6", "add 5 gives 2\n\nmultiply by 3 gives 6\n\nThe result is \\boxed{6}", [1, 1, 1, 1, 1]),
        ("1) 7+5=3\n\n2) 3*3=9", "add 5 gives 3\n\nmultiply by 3 gives 9\n\nThe result is \\boxed{9}", [0, 0, 0, 0, 0]),
        ("1) 7+5=3\n\nWait, 7+5=2\n\n2) 2*3=6", "The result is \\boxed{6}", [0, 1, 1, 1]),
        ("1) 7+5=2\n\n2) 2*3=7", "add 5 gives 2\n\nmultiply by 3 gives 7\n\nThe result is \\boxed{6}", [1, 0, 1, 0, 1]),
        ("1) 7+5=2\n\n3) 2*3=6", "gibberish", [1, 0, 0]),
        ("2) 2*3=6", "The result is \\boxed{}", [0, 0]),
        ("1) 7+5=2\n\n2) 2+3=5\n\n3) 5+1=6", "", [1, 0, 0]),
        ("Wait, 7+5=2", "multiply by 3 gives 6", [0, 0]),
    ],
)
def test_the_checker_follows_the_value_so_far(thinking, response, labels):
    trajectory = parse(f"<think>\n{thinking}\n</think>\n\n{response}")
    assert arith.check(CHAIN, trajectory) == labels


def test_the_teacher_errs_systematically_and_boxes_what_it_computed():
    rng, wrong = random.Random(0), 0
    for chain in arith.take("train", 1000):
        text = arith.teach(chain, rng)
        labels = arith.check(chain, parse(text))
        right = text.endswith(f"\\boxed{{{chain.answer}}}")
        assert labels[-1] == right
        wrong += not right
    assert 400 < wrong < 700


def test_about_half_of_the_facts_are_certain():
    errors = [error for error, _ in arith.misconceptions().values()]
    assert len(errors) == 3 * 10 * 8
    assert 0.4 < errors.count(0.0) / len(errors) < 0.7


@pytest.mark.slow
def test_training_a_small_pair_makes_both_losses_fall(tmp_path):
    """The whole recipe at a hundredth of its size: policy, traces, PRM; each saved, loaded and used by the next."""
    policy = train.train_demo_policy(tmp_path / "policy", steps=40, batch=8, lr=3e-3, hidden=32, seed=0)
    assert sum(policy[-5:]) < 0.7 * sum(policy[:5])
    train.sample_demo_traces(tmp_path / "traces.jsonl", policy=str(tmp_path / "policy"), problems=20, samples=2, max_tokens=60)
    rows = [json.loads(line) for line in (tmp_path / "traces.jsonl").open()]
    assert len(rows) == 40
    rng, chains = random.Random(0), arith.take("train", 60)  # this policy is right about nothing yet: use its teacher's texts
    lines = [json.dumps({"chain": i, "text": arith.teach(chain, rng)}) for i, chain in enumerate(chains)]
    (tmp_path / "taught.jsonl").write_text("\n".join(lines) + "\n")
    prm = train.train_demo_prm(
        tmp_path / "prm", tmp_path / "taught.jsonl", policy=str(tmp_path / "policy"), problems=60, steps=100, batch=8, lr=5e-3
    )
    assert sum(prm[-10:]) < 0.85 * sum(prm[:10])
    from tts.scorers.prm import PRM

    assert PRM(str(tmp_path / "prm")).reader.context == 1024


def test_training_is_repeatable(tmp_path):
    torch.set_num_threads(torch.get_num_threads())
    first, second = (train.train_demo_policy(tmp_path / n, steps=3, batch=4, lr=1e-3, hidden=32, seed=5) for n in "ab")
    assert first == second
