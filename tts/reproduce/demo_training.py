"""How the bundled models were made; commands, seeds and times: docs/lab/bundled-models.md."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tts.demo import arith
from tts.demo.tokenizer import build_tokenizer
from tts.models.checkpoints import load_tokenizer, locate
from tts.scorers import formats
from tts.scorers.prm import part_of
from tts.solving.generator import derive_seed
from tts.trajectory import BOUNDARY, parse
from tts.types import Part, Problem, Sampling

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from transformers import PreTrainedTokenizerBase

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
IGNORE = -100
"""The label that cross entropy leaves out."""

Row = tuple[list[int], list[int]]
"""Token ids and their labels, of the same length."""


@app.command("policy")
def _policy(
    out: Path,
    steps: int = 2000,
    batch: int = 64,
    lr: float = 3e-3,
    seed: int = 0,
    hidden: int = 96,
    layers: int = 4,
    shortest: Annotated[int, typer.Option(help="Fewest operations of a problem.")] = 2,
    longest: Annotated[int, typer.Option(help="Most of them.")] = 6,
    largest: Annotated[int, typer.Option(help="Largest operand; the smallest is 2.")] = 9,
) -> None:
    """Pre-train the policy on solutions that the teacher writes for training problems."""
    train_policy(
        out, steps=steps, batch=batch, lr=lr, seed=seed, hidden=hidden, layers=layers, lengths=(shortest, longest),
        operands=(2, largest),
    )  # fmt: skip


@app.command("traces")
def _traces(out: Path, policy: str = "arith-policy", problems: int = 6000, samples: int = 4, seed: int = 0) -> None:
    """Sample the policy's solutions of training problems at temperature 1, as JSONL."""
    sample_traces(out, policy=policy, problems=problems, samples=samples, seed=seed)


@app.command("prm")
def _prm(
    out: Path,
    traces: Annotated[Path, typer.Argument(help="What the traces command wrote, from the same problems and seed.")],
    policy: Annotated[str, typer.Option(help="Whose body to start from.")] = "arith-policy",
    response_only: Annotated[bool, typer.Option(help="Show it responses alone: the ordinary kind of PRM.")] = False,
    problems: int = 6000,
    steps: int = 2500,
    batch: Annotated[int, typer.Option(help="Traces a step; each is read twice, by steps and as one.")] = 32,
    lr: float = 2e-3,
    seed: int = 0,
) -> None:
    """Train a PRM on step labels: is the running value right after this step? It is shown no answer."""
    over: Part = "response" if response_only else "all"
    train_prm(out, traces, policy=policy, over=over, problems=problems, steps=steps, batch=batch, lr=lr, seed=seed)


def train_policy(
    out: Path,
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    hidden: int = 96,
    layers: int = 4,
    lengths: tuple[int, int] = (2, 6),
    operands: tuple[int, int] = (2, 9),
) -> list[float]:
    """Write a policy's folder; return the loss of every step. `lengths` and `operands` are those of the problems."""
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
    tokenizer = load_tokenizer(str(out))  # as everybody else will load it
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(config)

    def solutions() -> Iterator[Row]:
        rng = random.Random(seed)
        for chain in arith.chains("train", seed, lengths, operands):
            yield _solution(tokenizer, chain, arith.teach(chain, rng))

    def loss(ids: Tensor, labels: Tensor) -> Tensor:
        return model(input_ids=ids, labels=labels).loss  # type: ignore[no-any-return]

    losses = _fit(model, loss, _batches(solutions(), batch), steps, lr)
    model.save_pretrained(out)
    return losses


def sample_traces(out: Path, *, policy: str, problems: int, samples: int, seed: int = 0, max_tokens: int = 256) -> None:
    """Write `samples` solutions of each of the first training problems of a seed, in a fixed order."""
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


def train_prm(
    out: Path, traces: Path, *, policy: str, problems: int, steps: int, batch: int, lr: float, over: Part = "all", seed: int = 0
) -> list[float]:
    """Write a PRM's folder; return the loss of every step."""
    import torch
    from transformers import Qwen2ForCausalLM

    from tts.scorers.modeling import Qwen2ForProcessRewardModel

    torch.manual_seed(seed)
    body = Qwen2ForCausalLM.from_pretrained(locate(policy))
    body.config.score_over = over
    model = Qwen2ForProcessRewardModel(body.config)
    model.model.load_state_dict(body.model.state_dict())
    tokenizer = load_tokenizer(policy)
    rows = _labelled(traces, arith.take("train", problems, seed), formats.Text(tokenizer), over)

    def epochs() -> Iterator[Row]:
        rng = random.Random(seed)
        while True:
            rng.shuffle(rows)
            yield from (form for row in rows for form in row)

    def loss(ids: Tensor, labels: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), labels.flatten(), ignore_index=IGNORE)

    losses = _fit(model, loss, _batches(epochs(), 2 * batch), steps, lr)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return losses


def _solution(tokenizer: PreTrainedTokenizerBase, chain: arith.Chain, text: str) -> Row:
    """Prompt and solution in the chat template; the prompt carries no loss."""
    turns = [{"role": "user", "content": chain.prompt}]
    given = tokenizer.encode(str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)))
    written = [*tokenizer.encode(text), tokenizer.eos_token_id]
    return given + written, [IGNORE] * len(given) + written


def _labelled(traces: Path, chains: list[arith.Chain], text: formats.Text, over: Part) -> list[tuple[Row, Row]]:
    """Each trace twice: step by step, and as one step, where blank lines carry the step labels all the same."""
    rows = []
    [blank] = text.tokenizer.encode(BOUNDARY, add_special_tokens=False)
    for line in traces.read_text().splitlines():
        row = json.loads(line)
        chain, trajectory = chains[row["chain"]], parse(row["text"])
        steps = part_of(trajectory, over)
        if not steps:
            continue
        labels = arith.check(chain, trajectory)[-len(steps) :]  # a response comes last
        by_step = formats.encode(formats.FORMATS["reasonflux"], text, chain.prompt, steps)
        whole = formats.encode(formats.FORMATS["reasonflux"], text, chain.prompt, [BOUNDARY.join(steps)])
        ends = [i for i, token in enumerate(whole.ids) if token == blank] + whole.positions
        final = int(bool(trajectory.response) and labels[-1])
        rows.append((_at(by_step.ids, by_step.positions, labels), _at(whole.ids, ends, [*labels[:-1], final])))
    return rows


def _at(ids: list[int], positions: list[int], labels: list[int]) -> Row:
    row = [IGNORE] * len(ids)
    for position, label in zip(positions, labels, strict=True):
        row[position] = label
    return ids, row


def _batches(rows: Iterable[Row], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Right-padded ids and labels, each [size, longest]."""
    import torch

    rows = iter(rows)
    while group := list(islice(rows, size)):
        longest = max(len(ids) for ids, _ in group)
        ids, labels = torch.zeros(len(group), longest, dtype=torch.long), torch.full((len(group), longest), IGNORE)
        for i, (row_ids, row_labels) in enumerate(group):
            ids[i, : len(row_ids)] = torch.tensor(row_ids)
            labels[i, : len(row_ids)] = torch.tensor(row_labels)
        yield ids, labels


def _fit(
    model: nn.Module,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    batches: Iterator[tuple[Tensor, Tensor]],
    steps: int,
    lr: float,
) -> list[float]:
    """Train by Muon (hidden matrices) and AdamW (the rest) on one-cycle schedules; return the loss of every step."""
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
            typer.echo(f"step {step}/{steps}  loss {recent:.4f}  {tokens / (time.monotonic() - start):,.0f} tokens/s")
    model.eval()
    return losses


if __name__ == "__main__":
    app()
