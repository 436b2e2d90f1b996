"""Speed of the reward model: ragged batches against padded ones, and incremental scoring in a search against scoring anew.

    python benchmarks/scoring.py

The model is the bundled PRM with a longer context. The contenders of a table take turns, and medians are reported. "One by one"
and "padded" are transformers' own forward pass, the latter in batches of 16 in order of arrival.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import cyclopts
import torch

from tts.demo import MODELS
from tts.scorers.modeling import Qwen2ForProcessRewardModel
from tts.scorers.prm import PRM
from tts.scorers.reader import Query
from tts.types import Candidate, Problem, Reward, Step

TRACES, STEP = 256, 20


def long_context(folder):
    """Return the bundled PRM with a longer context than it was trained on: its rewards are useless there, its speed is not."""
    path = Path(folder, "prm")
    shutil.copytree(MODELS["arith-prm"], path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    return str(path)


def traces(rng, vocabulary, shortest, longest):
    lengths = [rng.randint(shortest, longest) for _ in range(TRACES)]
    return [
        Query([rng.randrange(vocabulary) for _ in range(n)], [*range(STEP, n - 1, STEP), n - 1]) for n in lengths
    ]  # fmt: skip


@torch.inference_mode()
def one_by_one(model, queries):
    return [model(torch.tensor([q.ids])).softmax(-1)[0, q.positions, 1].tolist() for q in queries]


@torch.inference_mode()
def padded(model, queries, size=16):
    rewards = []
    for start in range(0, len(queries), size):
        batch = queries[start : start + size]
        longest = max(len(q.ids) for q in batch)
        ids, mask = torch.zeros(len(batch), longest, dtype=torch.long), torch.zeros(len(batch), longest, dtype=torch.long)
        for row, q in enumerate(batch):
            ids[row, : len(q.ids)], mask[row, : len(q.ids)] = torch.tensor(q.ids), 1
        right = model(ids, attention_mask=mask).softmax(-1)[..., 1]
        rewards += [right[row, q.positions].tolist() for row, q in enumerate(batch)]
    return rewards


def ragged(repeat, shortest, longest):
    with tempfile.TemporaryDirectory() as folder:
        name = long_context(folder)
        model = Qwen2ForProcessRewardModel.from_pretrained(name).eval()
        prm = PRM(name, cache_gib=0)
        queries = traces(random.Random(0), model.config.vocab_size, shortest, longest)

        def ours(_, queries):
            prm.reader.model.forest.clear()
            return prm.reader.model.rewards(queries)

        contenders = {"one by one": one_by_one, "padded": padded, "tts": ours}
        times, results = {name: [] for name in contenders}, {}
        for _ in range(repeat):
            for name, score in contenders.items():
                start = time.perf_counter()
                results[name] = score(model, queries)
                times[name].append(time.perf_counter() - start)
        flat = {name: torch.tensor([x for row in rows for x in row]) for name, rows in results.items()}
    tokens = sum(len(q.ids) for q in queries)
    print(f"\n{TRACES} traces of {shortest} to {longest} tokens, {tokens:,} in all\n")
    print("| | seconds | tokens/s | tts is faster by | largest difference |\n|---|---|---|---|---|")
    mine = statistics.median(times["tts"])
    for name, spent in times.items():
        seconds = statistics.median(spent)
        off = (flat[name] - flat["tts"]).abs().max()
        print(f"| {name} | {seconds:.2f} | {tokens / seconds:,.0f} | {seconds / mine:.2f} | {off:.1e} |")


def beam(score, rng, rounds=40, n=16, width=4):
    """Make the calls of a beam search: in each round, n children of the n / width best candidates, one step longer."""
    problem, beams = Problem("p", "Start with 7.\n1) multiply by 8\nWhat is the last digit?"), [""] * (n // width)
    for _ in range(rounds):
        texts = [f"{text}{_step(rng)}\n\n" for text in beams for _ in range(width)]
        candidates = [Candidate(problem, (Step(text, (1,), "step"),)) for text in texts]
        rewards = score(candidates)
        order = sorted(range(n), key=lambda i: -rewards[i].total)
        beams = [texts[i] for i in order[: n // width]]


def _step(rng):
    return "so " + " and ".join(f"{rng.randrange(10)}*{rng.randrange(10)}={rng.randrange(10)}" for _ in range(4))


def incremental(repeat):
    with tempfile.TemporaryDirectory() as folder:
        name = long_context(folder)
        kept, fresh = PRM(name), PRM(name, cache_gib=0)
        model = Qwen2ForProcessRewardModel.from_pretrained(name).eval()
        tree, seconds, forwarded, usual = set(), {"kept": [], "fresh": [], "usual": []}, {}, [0]

        def score(prm, forget):
            def call(candidates):
                if forget:
                    prm.reader.model.forest.clear()
                queries = [query for candidate in candidates for query in prm._plan(candidate)]
                start = time.perf_counter()
                values = prm.reader.model.rewards(queries)
                spent.append(time.perf_counter() - start)
                if not forget:
                    for query in queries:
                        tree.update(tuple(query.ids[: i + 1]) for i in range(query.positions[-1] + 1))
                return [Reward(tuple(a), b[0]) for a, b in zip(values[::2], values[1::2], strict=True)]

            return call

        def again(candidates):
            queries = [query for candidate in candidates for query in kept._plan(candidate)]
            start = time.perf_counter()
            values = [*padded(model, queries[::2]), *padded(model, queries[1::2])]
            spent.append(time.perf_counter() - start)
            usual[0] += sum(len(query.ids) for query in queries)
            half = len(candidates)
            return [Reward(tuple(a), b[0]) for a, b in zip(values[:half], values[half:], strict=True)]

        for _ in range(repeat):
            spent, usual[0] = [], 0
            beam(again, random.Random(0))
            seconds["usual"].append(sum(spent))
            for which, prm, forget in (("kept", kept, False), ("fresh", fresh, True)):
                spent = []
                prm.reader.model.forest.clear()
                before = prm.reader.model.forest.forwarded
                tree.clear() if which == "kept" else None
                beam(score(prm, forget), random.Random(0))
                seconds[which].append(sum(spent))
                forwarded[which] = prm.reader.model.forest.forwarded - before
    print(f"\n40 steps of a beam search, n = 16, width 4: a tree of {len(tree):,} tokens, for step rewards and final rewards\n")
    print("| | tokens forwarded | per token of the tree | seconds |\n|---|---|---|---|")
    print(
        f"| transformers, whole prefixes | {usual[0]:,} | {usual[0] / len(tree):.2f}"
        f" | {statistics.median(seconds['usual']):.2f} |"
    )
    for which, label in (("fresh", "tts, without a cache between rounds"), ("kept", "tts")):
        print(
            f"| {label} | {forwarded[which]:,} | {forwarded[which] / len(tree):.2f} | {statistics.median(seconds[which]):.2f} |"
        )
    print(f"| ratio | | | {statistics.median(seconds['usual']) / statistics.median(seconds['kept']):.1f} |")


def main(repeat: int = 3) -> None:
    """Print the three tables."""
    ragged(repeat, 50, 2000)
    ragged(repeat, 50, 200)
    incremental(repeat)


if __name__ == "__main__":
    cyclopts.run(main)
