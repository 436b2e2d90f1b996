"""Process reward models with a two-class step head, read as a trajectory-aware reward (arXiv 2506.18896)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import torch
from safetensors import safe_open

from tts import chat, models
from tts.batching import Batcher
from tts.errors import InputError
from tts.scorers.modeling import Qwen2ForProcessRewardModel
from tts.trajectory import BOUNDARY, Trajectory
from tts.types import Candidate, Part, Reward

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEPARATOR = "<extra_0>"
SYSTEM = {"Qwen2.5-Math-PRM": "Please reason step by step, and put your final answer within \\boxed{}."}
"""System prompts that belong to a model's input format, by a part of its name."""

COLUMNS = 16


class Encoded(NamedTuple):
    """Token ids, and the positions at which a step's reward is read."""

    ids: list[int]
    positions: list[int]


class StepFormat:
    """How text becomes the model's input: its chat template, with `<extra_0>` after every step of the assistant's turn."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str, context: int) -> None:
        separator = tokenizer.get_vocab().get(SEPARATOR)
        if separator is None:
            raise InputError(f"the tokenizer of {name!r} has no {SEPARATOR} token, which this reward model reads its steps at")
        self.tokenizer, self.name, self.context = tokenizer, name, context
        self.separator: int = separator
        self.system = next((text for part, text in SYSTEM.items() if part in name), None)

    def encode(self, prompt: str, steps: Sequence[str]) -> Encoded:
        """One position for each step. Raises InputError for a trace that is longer than the context."""
        parts = [part for step in steps for part in (step, self.separator)]
        turns = [chat.Turn("user", [prompt]), chat.Turn("assistant", parts)]
        if self.system is not None:
            turns.insert(0, chat.Turn("system", [self.system]))
        ids = chat.encode(self.tokenizer, turns, open_turn=False)
        positions = [i for i, token in enumerate(ids) if token == self.separator]
        if len(positions) != len(steps):
            raise InputError(f"the chat template of {self.name!r} turned {len(steps)} steps into {len(positions)}")
        if len(ids) > self.context:
            raise InputError(f"a trace of {len(ids)} tokens is longer than the {self.context} that {self.name!r} can read")
        return Encoded(ids, positions)


class StepPRM:
    """Scores every step of a candidate in one pass, and the whole candidate as one step in another.

    Input: the model's chat template, the problem as the user, as the assistant every step followed by `<extra_0>`.
    Reward of a step: the softmax of the head's two logits, class 1, at its `<extra_0>`. `final`: the same readout of
    the text as ONE step, which is how a checkpoint without a trajectory head rates a trajectory as a whole.

    `over` says which part of the trajectory is shown to the model and rated; its default is config.json's `score_over`,
    else `all`. Raises InputError where the model cannot be used, or a trace is longer than its context.
    """

    def __init__(self, model: str, *, over: Part | None = None, batch_tokens: int = 16384) -> None:
        config = models.load_config(model)
        _check_head(model, config)
        self.over: Part = over or config.get("score_over", "all")
        if self.over not in get_args(Part):
            raise InputError(
                f"config.json of {model!r} has score_over {self.over!r}; expected one of {', '.join(get_args(Part))}"
            )
        self.model: Any = models.load_weights(Qwen2ForProcessRewardModel, model)
        self.format = StepFormat(models.load_tokenizer(model), model, self.model.config.max_position_embeddings)
        self.batch_tokens = batch_tokens
        self._batcher: Batcher[Encoded, list[float]] = Batcher(self._forward, max_size=4096)

    async def score(self, candidates: Sequence[Candidate]) -> list[Reward]:
        sequences: list[Encoded] = []
        for candidate in candidates:
            trajectory = candidate.trajectory
            steps = part_of(trajectory, self.over)
            if steps:
                sequences.append(self.format.encode(candidate.problem.prompt, steps))
                sequences.append(self.format.encode(candidate.problem.prompt, [BOUNDARY.join(steps)]))
            else:
                sequences += [Encoded([], []), Encoded([], [])]
        rewards = await self._batcher(sequences)
        return [
            Reward(tuple(by_step), whole[0] if whole else 0.0, tokens=len(a.ids) + len(b.ids))
            for by_step, whole, a, b in zip(rewards[::2], rewards[1::2], sequences[::2], sequences[1::2], strict=True)
        ]

    @torch.inference_mode()
    def _forward(self, sequences: list[Encoded]) -> list[list[float]]:
        """Rewards at every position of every sequence.

        Only sequences of the same length (rounded up) share a batch: nothing is wasted on padding, and a sequence's
        arithmetic, to the last bit, is the same whatever it is batched with.
        """
        rewards: list[list[float]] = [[] for _ in sequences]
        by_length: dict[int, list[int]] = {}
        for i, sequence in enumerate(sequences):
            if sequence.ids:
                by_length.setdefault(-(-len(sequence.ids) // COLUMNS) * COLUMNS, []).append(i)
        for length, members in sorted(by_length.items()):
            size = max(1, self.batch_tokens // length)
            for start in range(0, len(members), size):
                batch = members[start : start + size]
                ids = torch.zeros(len(batch), length, dtype=torch.long)
                for row, i in enumerate(batch):
                    ids[row, : len(sequences[i].ids)] = torch.tensor(sequences[i].ids)
                # causal attention: padding on the right is never seen
                right = self.model(ids.to(self.model.device)).float().softmax(-1)[..., 1].cpu()
                for row, i in enumerate(batch):
                    rewards[i] = right[row, sequences[i].positions].tolist()
        return rewards


def part_of(trajectory: Trajectory, over: Part) -> tuple[str, ...]:
    """The steps that a reward model is shown."""
    thinking = trajectory.thinking if over != "response" else ()
    return (*thinking, *(trajectory.response if over != "think" else ()))


def _check_head(name: str, config: dict[str, Any]) -> None:
    """Fail before loading weights that are no two-class step head; an LM loaded as one would "score" its vocabulary."""
    folder = Path(models.locate(name))
    shapes = _head_shapes(folder) if folder.is_dir() else None
    architecture = ", ".join(config.get("architectures") or ["an unnamed architecture"])
    if shapes is not None and "score.2.weight" not in shapes:
        if "score.weight" in shapes:
            raise InputError(
                f"the head of {name!r} is one matrix ({architecture}); that of a step PRM has the layers score.0 and score.2"
            )
        raise InputError(
            f"{name!r} has no reward head ({architecture}): give it as --model, and a process reward model as --scorer"
        )
    if shapes is not None and shapes["score.2.weight"][0] != 2:
        raise InputError(f"the head of {name!r} is {shapes['score.2.weight'][0]} wide; a step PRM's is 2 wide (wrong, right)")
    if not models.is_reward_model(config):
        raise InputError(
            f"{name!r} is {architecture}, not a process reward model; give one such as arith-prm or Gen-Verse/ReasonFlux-PRM-7B"
        )


def _head_shapes(folder: Path) -> dict[str, list[int]]:
    """Names and shapes of a folder's `score.*` tensors, read from the files' headers."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"the model folder {folder} has no *.safetensors weights")
    shapes: dict[str, list[int]] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            shapes |= {key: tensors.get_slice(key).get_shape() for key in tensors.keys() if key.startswith("score.")}  # noqa: SIM118
    return shapes
