"""Labelled traces as what a PRM in training is shown: token ids, where rewards are read, and what they should be."""

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
from tts.scorers.prm import part_of
from tts.show.console import warn
from tts.trajectory import BOUNDARY

if TYPE_CHECKING:
    from tts.train.settings import TrainPRMSettings

Targets = tuple[float | None, ...]
"""None where nothing is known."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One sequence: a trace step by step, or the whole of it as one step."""

    ids: Tensor
    """Token ids [length], int32."""
    positions: tuple[int, ...]
    """Where rewards are read."""
    targets: Targets
    """What they should be."""
    whole: bool


@dataclass(frozen=True, slots=True)
class Example:
    """A trace: what is read of it, and what its evaluation needs to know."""

    readings: tuple[Reading, ...]
    problem: str
    correct: bool | None

    @property
    def tokens(self) -> int:
        return sum(len(reading.ids) for reading in self.readings)


def format_of(settings: TrainPRMSettings) -> formats.Format:
    """How the head that is trained is shown a trace."""
    return FORMATS["reasonflux-trace" if settings.head == "trace" else "reasonflux"]


def read_examples(path: Path, settings: TrainPRMSettings, text: Text, longest: int, *, train: bool) -> list[Example]:
    """The traces of a file that have targets for what is trained and at most `longest` tokens; a warning counts the others.

    To train on, only readings with targets are kept; to evaluate on, all. Raises InputError for a row that is none, and where
    none is left.
    """
    names = settings.names
    examples: list[Example] = []
    left_out: Counter[str] = Counter()
    for labelled in read_labelled(path, names):
        _check_range(labelled, path)
        readings = _readings(labelled, settings, text)
        useful = tuple(reading for reading in readings if any(target is not None for target in reading.targets))
        kept = useful if train else readings
        if not readings:
            left_out[f"have no steps in what --over {settings.over} rates"] += 1
        elif not useful:
            left_out[f"have no targets for --head {settings.head}"] += 1
        elif any(len(reading.ids) > longest for reading in kept):
            left_out[f"are longer than the {longest} tokens of --max-length"] += 1
        else:
            examples.append(Example(kept, labelled.trace.candidate.problem.prompt, labelled.correct))
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
    total = len(examples) + left_out.total()
    if not total:
        raise InputError(f"{path} is empty; expected labelled traces, one JSON object a line, as tts label writes them")
    if not examples:
        raise InputError(f"none of the {total} traces of {path} can be used: {reasons}")
    if reasons:
        warn(f"{left_out.total()} of {total} traces of {path} are left out: {reasons}")
    return examples


def _check_range(labelled: LabelledTrace, path: Path) -> None:
    for target in (*labelled.steps, labelled.final):
        if target is not None and not 0 <= target <= 1:
            raise InputError(
                f"{path}, trace {labelled.trace.id}: a target of {target:g}; expected 0 to 1, as rewards are. Rescale them, or"
                " label with tts label --normalize unit"
            )


def _readings(labelled: LabelledTrace, settings: TrainPRMSettings, text: Text) -> tuple[Reading, ...]:
    """What PRM would read of the trace, with a target for every reward."""
    candidate = labelled.trace.candidate
    steps = part_of(candidate.trajectory, settings.over)
    if not steps:
        return ()
    prompt, joined = candidate.problem.prompt, BOUNDARY.join(steps)
    final = labelled.final if settings.lambda_final else None
    if settings.head == "trace":
        return (_reading(settings, text, prompt, [candidate.text if settings.over == "all" else joined], (final,), whole=True),)
    # a response's labels come last
    targets = labelled.steps[: len(steps)] if settings.over == "think" else labelled.steps[-len(steps) :]
    targets = targets if settings.lambda_step else (None,) * len(steps)
    return (
        _reading(settings, text, prompt, steps, targets, whole=False),
        _reading(settings, text, prompt, [joined], (final,), whole=True),
    )


def _reading(
    settings: TrainPRMSettings, text: Text, prompt: str, steps: Sequence[str], targets: Targets, *, whole: bool
) -> Reading:
    ids, positions = formats.encode(format_of(settings), text, prompt, steps)
    assert len(positions) == len(steps) == len(targets)
    return Reading(torch.tensor(ids, dtype=torch.int32), tuple(positions), targets, whole)


@dataclass(frozen=True)
class Collator:
    """Makes a batch of examples: what RewardModel.forward takes, and a target and a weight for each reward that it gives.

    The weights hold the whole of the paper's loss but for the mean over traces: lambda_step / (labelled steps of its trace),
    lambda_final, or 0 where there is no target.
    """

    lambda_step: float
    lambda_final: float
    packing: bool
    """All sequences in one row, told apart by positions that begin anew; else one a row, padded on the right."""

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        readings = [reading for example in examples for reading in example.readings]
        lengths = [len(reading.ids) for reading in readings]
        longest = max(lengths)
        # where each sequence begins among the flattened ids
        starts = [sum(lengths[:i]) if self.packing else i * longest for i in range(len(lengths))]
        at = [start + p for start, reading in zip(starts, readings, strict=True) for p in reading.positions]
        targets = [target for reading in readings for target in reading.targets]
        batch: dict[str, Any] = {
            "at": torch.tensor(at),
            "whole": torch.tensor([reading.whole for reading in readings for _ in reading.positions]),
            "targets": torch.tensor([0.0 if target is None else target for target in targets]),
            "weights": torch.tensor([weight for reading in readings for weight in self._weights(reading)]),
            "traces": torch.tensor(len(examples)),
        }
        if self.packing:
            positions = torch.cat([torch.arange(length) for length in lengths])
            return batch | {"input_ids": torch.cat([r.ids for r in readings]).long()[None], "position_ids": positions[None]}
        ids, mask = torch.zeros(2, len(readings), longest, dtype=torch.long)
        for row, reading in enumerate(readings):
            ids[row, : lengths[row]], mask[row, : lengths[row]] = reading.ids, 1
        return batch | {"input_ids": ids, "attention_mask": mask}

    def _weights(self, reading: Reading) -> list[float]:
        known = sum(target is not None for target in reading.targets)
        weight = self.lambda_final if reading.whole else self.lambda_step / max(1, known)
        return [0.0 if target is None else weight for target in reading.targets]
