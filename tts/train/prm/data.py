"""LabelledTrace traces as training data of a PRM: token ids, the positions at which rewards are read, and their targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tts.data.labelled import LabelledTrace, read_labelled
from tts.errors import InputError
from tts.scorers import formats
from tts.scorers.formats import FORMATS, Text
from tts.show.console import warn
from tts.trajectory import BOUNDARY, with_tags

if TYPE_CHECKING:
    from tts.train.settings import TrainPRMSettings

Targets = tuple[float | None, ...]
"""Targets in [0, 1]; None for a reward without a target, which is not trained."""


@dataclass(frozen=True, slots=True)
class RewardSequence:
    """One forward pass over a trace: split into steps, or as one single step for the reward of the whole."""

    ids: Tensor
    """Token ids [length], int32."""
    positions: tuple[int, ...]
    """Positions at which rewards are read, in order."""
    targets: Targets
    """One per position."""
    whole: bool
    """Whether the one reward is that of the trace as a whole."""


@dataclass(frozen=True, slots=True)
class Example:
    """A trace: its sequences, and what best-of-n evaluation needs to know."""

    sequences: tuple[RewardSequence, ...]
    problem: str
    """The problem's text; traces of equal problems are candidates of each other."""
    correct: bool | None
    """Whether the answer is correct; None if the data does not say."""

    @property
    def tokens(self) -> int:
        """Tokens of all sequences together."""
        return sum(len(sequence.ids) for sequence in self.sequences)


def training_format(settings: TrainPRMSettings) -> formats.Format:
    """Return the format in which the trained heads read a trace."""
    return FORMATS["reasonflux-trace" if settings.head == "trace" else "reasonflux"]


def read_examples(path: Path, settings: TrainPRMSettings, text: Text, longest: int, *, train: bool) -> list[Example]:
    """Read the traces of a file that can be used, and warn about the number of the others.

    A trace is skipped if no reward that is trained has a target, or if one of its sequences has more than `longest` tokens.

    Args:
        path: JSONL of labelled traces, in one of the layouts of `tts.data.labelled`.
        settings: The options of `tts train-prm`.
        text: The tokenizer.
        longest: Tokens per sequence, at most.
        train: Keep only sequences with targets. False keeps all, since an evaluation needs every reward.

    Raises:
        InputError: A row is not a labelled trace, a target is outside [0, 1], or no trace can be used.
    """
    names = settings.names
    examples: list[Example] = []
    skipped: Counter[str] = Counter()
    for labelled in read_labelled(path, names):
        _check_range(labelled, path)
        sequences = _sequences(labelled, settings, text)
        useful = tuple(sequence for sequence in sequences if any(target is not None for target in sequence.targets))
        kept = useful if train else sequences
        if not sequences:
            skipped[f"without steps in the part that --over {settings.over} rates"] += 1
        elif not useful:
            skipped[f"without targets for --head {settings.head}"] += 1
        elif any(len(sequence.ids) > longest for sequence in kept):
            skipped[f"longer than {longest} tokens (--max-length)"] += 1
        else:
            examples.append(Example(kept, labelled.trace.candidate.problem.prompt, labelled.correct))
    reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
    total = len(examples) + skipped.total()
    if not total:
        raise InputError(f"{path} is empty; expected labelled traces, one JSON object per line, as tts label writes them")
    if not examples:
        raise InputError(f"none of the {total} traces of {path} can be used: {reasons}")
    if reasons:
        warn(f"skipped {skipped.total()} of {total} traces of {path}: {reasons}")
    return examples


def _check_range(labelled: LabelledTrace, path: Path) -> None:
    for target in (*labelled.steps, labelled.final):
        if target is not None and not 0 <= target <= 1:
            raise InputError(
                f"{path}, trace {labelled.trace.id}: a target is {target:g}, but targets must be between 0 and 1; rescale them,"
                " or label with tts label --normalize unit"
            )


def _sequences(labelled: LabelledTrace, settings: TrainPRMSettings, text: Text) -> tuple[RewardSequence, ...]:
    """Return the sequences that `tts.scorers.prm.PRM` would read, with a target or None for every reward."""
    candidate = labelled.trace.candidate
    steps = candidate.part(settings.over)
    if not steps:
        return ()
    prompt, joined = candidate.problem.prompt, BOUNDARY.join(steps)
    final = labelled.final if settings.lambda_final else None
    if settings.head == "trace":
        shown = with_tags(candidate.text) if settings.over == "all" else joined
        return (_sequence(settings, text, prompt, [shown], (final,), whole=True),)
    # the labels of a response come last
    targets = labelled.steps[: len(steps)] if settings.over == "think" else labelled.steps[-len(steps) :]
    targets = targets if settings.lambda_step else (None,) * len(steps)
    return (
        _sequence(settings, text, prompt, steps, targets, whole=False),
        _sequence(settings, text, prompt, [joined], (final,), whole=True),
    )


def _sequence(
    settings: TrainPRMSettings, text: Text, prompt: str, steps: Sequence[str], targets: Targets, *, whole: bool
) -> RewardSequence:
    ids, positions = formats.encode(training_format(settings), text, prompt, steps)
    assert len(positions) == len(steps) == len(targets)
    return RewardSequence(torch.tensor(ids, dtype=torch.int32), tuple(positions), targets, whole)


@dataclass(frozen=True)
class PRMCollator:
    """Makes a batch of examples: the arguments of RewardModel.forward, and a target and a weight for each of its rewards.

    The weighted losses of a batch add up to the sum over its traces of the paper's loss. The weight of a step is
    lambda_step / (number of labelled steps in its trace), that of a whole trace is lambda_final; without a target it is 0.
    """

    lambda_step: float
    lambda_final: float
    packing: bool
    """Put all sequences into one row, told apart by positions that restart at 0. False: one per row, padded on the right."""

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        sequences = [sequence for example in examples for sequence in example.sequences]
        lengths = [len(sequence.ids) for sequence in sequences]
        longest = max(lengths)
        # the start of each sequence in the flattened ids
        starts = [sum(lengths[:i]) if self.packing else i * longest for i in range(len(lengths))]
        at = [start + p for start, sequence in zip(starts, sequences, strict=True) for p in sequence.positions]
        targets = [target for sequence in sequences for target in sequence.targets]
        batch: dict[str, Any] = {
            "at": torch.tensor(at),
            "whole": torch.tensor([sequence.whole for sequence in sequences for _ in sequence.positions]),
            "targets": torch.tensor([0.0 if target is None else target for target in targets]),
            "weights": torch.tensor([weight for sequence in sequences for weight in self._weights(sequence)]),
            "traces": torch.tensor(len(examples)),
        }
        if self.packing:
            positions = torch.cat([torch.arange(length) for length in lengths])
            ids = torch.cat([sequence.ids for sequence in sequences]).long()
            return batch | {"input_ids": ids[None], "position_ids": positions[None]}
        ids, mask = torch.zeros(2, len(sequences), longest, dtype=torch.long)
        for row, sequence in enumerate(sequences):
            ids[row, : lengths[row]], mask[row, : lengths[row]] = sequence.ids, 1
        return batch | {"input_ids": ids, "attention_mask": mask}

    def _weights(self, sequence: RewardSequence) -> list[float]:
        known = sum(target is not None for target in sequence.targets)
        weight = self.lambda_final if sequence.whole else self.lambda_step / max(1, known)
        return [0.0 if target is None else weight for target in sequence.targets]
