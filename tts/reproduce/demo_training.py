"""How the bundled models were made: `python -m tts.reproduce.demo_training policy`, then `traces`, then `prm`.

docs/lab/bundled-models.md has the exact commands, with their seeds and times.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App

from tts.demo import arith
from tts.demo.tokenizer import build_tokenizer
from tts.models.checkpoints import load_tokenizer, locate
from tts.scorers import formats
from tts.solving.generator import derive_seed
from tts.trajectory import BOUNDARY, parse
from tts.types import Part, Problem, Sampling

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from transformers import PreTrainedTokenizerBase

IGNORE = -100
"""The label of a token that the loss ignores."""

LabelledTokens = tuple[list[int], list[int]]
"""Token ids and their labels, of equal length."""


def train_demo_policy(
    out: Path,
    /,
    *,
    steps: int = 2000,
    batch: int = 64,
    lr: float = 3e-3,
    seed: int = 0,
    hidden: int = 96,
    layers: int = 4,
    shortest: int = 2,
    longest: int = 6,
    largest: int = 9,
) -> list[float]:
    """Pre-train a policy on solutions that the teacher writes for training problems.

    Args:
        out: Folder to write.
        steps: Optimizer steps.
        batch: Solutions per step.
        lr: Peak learning rate.
        seed: Seed of the weights, the problems and the teacher.
        hidden: Width of the model, a multiple of 32.
        layers: Number of layers.
        shortest: Smallest number of operations in a problem.
        longest: Largest number of operations in a problem.
        largest: Largest operand; the smallest is 2.

    Returns:
        The loss of every step.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    built = build_tokenizer()
    config = Qwen2Config(
        vocab_size=len(built),
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=built.eos_token_id,
        pad_token_id=built.pad_token_id,
    )
    built.save_pretrained(out)
    config.save_pretrained(out)
    tokenizer = load_tokenizer(str(out))  # the way that everything else loads it
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(config)

    def solutions() -> Iterator[LabelledTokens]:
        rng = random.Random(seed)
        for chain in arith.chains("train", seed, (shortest, longest), (2, largest)):
            yield _solution(tokenizer, chain, arith.teach(chain, rng))

    def loss(ids: Tensor, labels: Tensor) -> Tensor:
        return model(input_ids=ids, labels=labels).loss  # type: ignore[no-any-return]

    losses = _fit(model, loss, _batches(solutions(), batch), steps, lr)
    model.save_pretrained(out)
    return losses


def sample_demo_traces(
    out: Path,
    /,
    *,
    policy: str = "arith-policy",
    problems: int = 6000,
    samples: int = 4,
    seed: int = 0,
    max_tokens: int = 256,
) -> None:
    """Sample a policy's solutions of training problems at temperature 1, in a fixed order.

    Args:
        out: JSONL to write.
        policy: Policy to sample from.
        problems: Number of problems.
        samples: Solutions per problem.
        seed: Seed of the problems and the samples.
        max_tokens: New tokens per solution, at most.
    """
    from tts.engines.transformers import TransformersEngine

    engine = TransformersEngine(policy)

    async def sample(i: int, chain: arith.Chain) -> list[str]:
        sampling = Sampling(max_tokens=max_tokens, seed=derive_seed(seed, "traces", i))
        generation = await engine.generate(engine.encode(Problem(str(i), chain.prompt)), samples, sampling)
        return [step.text for step in generation.steps]

    async def sample_all() -> list[list[str]]:
        return await asyncio.gather(*(sample(i, chain) for i, chain in enumerate(arith.take("train", problems, seed))))

    with out.open("w") as file:
        for i, texts in enumerate(asyncio.run(sample_all())):
            file.writelines(json.dumps({"chain": i, "text": text}) + "\n" for text in texts)


def train_demo_prm(
    out: Path,
    traces: Path,
    /,
    *,
    policy: str = "arith-policy",
    over: Part = "all",
    problems: int = 6000,
    steps: int = 2500,
    batch: int = 32,
    lr: float = 2e-3,
    seed: int = 0,
) -> list[float]:
    """Train a PRM on step labels: is the running value correct after this step? It never sees a reference answer.

    Args:
        out: Folder to write.
        traces: JSONL that `traces` wrote, with the same number of problems and the same seed.
        policy: Policy whose body the PRM starts from.
        over: The part of a trajectory that is shown and rated; response makes an ordinary PRM.
        problems: Number of problems.
        steps: Optimizer steps.
        batch: Traces per step; each is read twice, split into steps and as one step.
        lr: Peak learning rate.
        seed: Seed of the weights and of the order of the traces.

    Returns:
        The loss of every step.
    """
    import torch
    from transformers import Qwen2ForCausalLM

    from tts.scorers.modeling import Qwen2ForProcessRewardModel

    torch.manual_seed(seed)
    body = Qwen2ForCausalLM.from_pretrained(locate(policy))
    body.config.score_over = over
    model = Qwen2ForProcessRewardModel(body.config)
    model.model.load_state_dict(body.model.state_dict())
    tokenizer = load_tokenizer(policy)
    pairs = _read_labelled(traces, arith.take("train", problems, seed), formats.Text(tokenizer), over)

    def epochs() -> Iterator[LabelledTokens]:
        rng = random.Random(seed)
        while True:
            rng.shuffle(pairs)
            yield from (sequence for pair in pairs for sequence in pair)

    def loss(ids: Tensor, labels: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), labels.flatten(), ignore_index=IGNORE)

    losses = _fit(model, loss, _batches(epochs(), 2 * batch), steps, lr)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return losses


def _solution(tokenizer: PreTrainedTokenizerBase, chain: arith.Chain, text: str) -> LabelledTokens:
    """Return prompt and solution in the chat template; the loss ignores the prompt."""
    turns = [{"role": "user", "content": chain.prompt}]
    given = tokenizer.encode(str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)))
    written = [*tokenizer.encode(text), tokenizer.eos_token_id]
    return given + written, [IGNORE] * len(given) + written


def _read_labelled(
    traces: Path, chains: list[arith.Chain], text: formats.Text, over: Part
) -> list[tuple[LabelledTokens, LabelledTokens]]:
    """Return each trace twice: split into steps, and as one step, in which the blank lines still carry the step labels."""
    pairs = []
    [blank] = text.tokenizer.encode(BOUNDARY, add_special_tokens=False)
    for line in traces.read_text().splitlines():
        row = json.loads(line)
        chain, trajectory = chains[row["chain"]], parse(row["text"])
        steps = {"all": trajectory.steps, "think": trajectory.thinking, "response": trajectory.response}[over]
        if not steps:
            continue
        labels = arith.check(chain, trajectory)[-len(steps) :]  # the response comes last
        by_step = formats.encode(formats.FORMATS["reasonflux"], text, chain.prompt, steps)
        whole = formats.encode(formats.FORMATS["reasonflux"], text, chain.prompt, [BOUNDARY.join(steps)])
        ends = [i for i, token in enumerate(whole.ids) if token == blank] + whole.positions
        final = int(bool(trajectory.response) and labels[-1])
        split = _label_at(by_step.ids, by_step.positions, labels)
        pairs.append((split, _label_at(whole.ids, ends, [*labels[:-1], final])))
    return pairs


def _label_at(ids: list[int], positions: list[int], labels: list[int]) -> LabelledTokens:
    """Return the ids with these labels at these positions, and IGNORE elsewhere."""
    at = dict(zip(positions, labels, strict=True))
    return ids, [at.get(i, IGNORE) for i in range(len(ids))]


def _batches(sequences: Iterable[LabelledTokens], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield right-padded ids and labels, each [size, longest]."""
    import torch

    sequences = iter(sequences)
    while group := list(islice(sequences, size)):
        longest = max(len(ids) for ids, _ in group)
        ids, labels = torch.zeros(len(group), longest, dtype=torch.long), torch.full((len(group), longest), IGNORE)
        for i, (own_ids, own_labels) in enumerate(group):
            ids[i, : len(own_ids)] = torch.tensor(own_ids)
            labels[i, : len(own_ids)] = torch.tensor(own_labels)
        yield ids, labels


def _fit(
    model: nn.Module,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    batches: Iterator[tuple[Tensor, Tensor]],
    steps: int,
    lr: float,
) -> list[float]:
    """Train with Muon (hidden matrices) and AdamW (the rest) on one-cycle schedules, and return the loss of every step."""
    import torch

    matrices = {id(p): p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name and "score" not in name}
    rest = [p for p in model.parameters() if id(p) not in matrices]
    optimizers: list[Optimizer] = [
        torch.optim.Muon(list(matrices.values()), lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, weight_decay=0.01, betas=(0.9, 0.98)),
    ]
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1, cycle_momentum=False)
        for optimizer in optimizers
    ]
    losses: list[float] = []
    start, tokens = time.monotonic(), 0
    model.train()
    for step, (ids, labels) in enumerate(islice(batches, steps), 1):
        loss = loss_of(ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        tokens += ids.numel()
        if step % 100 == 0 or step == steps:
            recent = sum(losses[-100:]) / len(losses[-100:])
            print(f"step {step}/{steps}  loss {recent:.4f}  {tokens / (time.monotonic() - start):,.0f} tokens/s", flush=True)
    model.eval()
    return losses


if __name__ == "__main__":
    app = App(name="python -m tts.reproduce.demo_training", help=__doc__, version_flags=(), result_action="return_value")
    for name, command in (("policy", train_demo_policy), ("traces", sample_demo_traces), ("prm", train_demo_prm)):
        app.command(command, name=name)
    app()
