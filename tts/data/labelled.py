"""Traces with target rewards for training a PRM: rows of `tts label`, and public data sets of step labels as published.

tts label       {"problem": …, "text": …, "step_targets": [0.8, …], "final_target": 1.0}
TRL             {"prompt": …, "completions": ["step", …], "labels": [true, …]}
Math-Shepherd   {"input": "problem Step 1: … ки\\nStep 2: … ки", "label": "problem Step 1: … +\\nStep 2: … -"}
PRM800K         {"question": {"problem": …}, "label": {"steps": [{"completions": [{"text": …, "rating": 1}], …}]}}
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tts.data.traces import BadRowError, Trace, parse_json, parse_line, read_lines
from tts.errors import InputError

_SHEPHERD_STEP = re.compile(r"(?=Step \d+:)")


@dataclass(frozen=True)
class LabelledTrace:
    """A trace with its target rewards."""

    trace: Trace
    steps: tuple[float | None, ...]
    """One target per thinking step, then one per response step; None for a step without a label, which is not trained on."""
    final: float | None = None
    """Target for the trace as a whole; None without a label."""

    @property
    def correct(self) -> bool | None:
        """Whether its answer is right; None if the row does not say."""
        correct = self.trace.row.get("correct")
        return correct if isinstance(correct, bool) else None


def read_labelled(path: Path, names: Mapping[str, str] | None = None) -> Iterator[LabelledTrace]:
    """Yield every labelled trace of a JSONL file, in order.

    `names` maps fields of `tts.data.traces.FIELDS` to their names in the file. Raises InputError with the line number if a line
    is not a labelled trace.
    """
    for number, line, _ in read_lines(path):
        try:
            yield from parse_labelled(line, number, names or {})
        except BadRowError as error:
            raise InputError(f"{path}, line {number}: {error}") from None


def parse_labelled(line: str, number: int, names: Mapping[str, str]) -> list[LabelledTrace]:
    """The labelled traces of one line, whose layout is recognised by its columns. Raises BadRowError."""
    row = parse_json(line)
    if not isinstance(row, dict):
        raise BadRowError("not a JSON object")
    if "step_targets" in row or "final_target" in row:
        [trace] = parse_line(line, number, names)
        steps = row.get("step_targets")
        targets = _targets(steps, "step_targets") if steps is not None else (None,) * len(trace.candidate.trajectory.steps)
        return [_checked(LabelledTrace(trace, targets, _target(row.get("final_target"), "final_target")))]
    if "completions" in row and "labels" in row:
        return [_of_steps(row.get("prompt"), row["completions"], _targets(row["labels"], "labels"), row, number)]
    if isinstance(row.get("input"), str) and isinstance(row.get("label"), str):
        return [_math_shepherd(row, number)]
    if isinstance(row.get("question"), dict) and isinstance(row.get("label"), dict):
        return _prm800k(row, number)
    raise BadRowError(
        "the line has no targets; expected the columns of `tts label` (step_targets, final_target), TRL (prompt, completions,"
        " labels), Math-Shepherd (input, label) or PRM800K (question, label)"
    )


def trl_row(labelled: LabelledTrace, threshold: float = 0.5) -> dict[str, Any]:
    """The trace in TRL's columns, with labels that are true from `threshold` up; steps without a target are omitted."""
    pairs = [
        (step, target)
        for step, target in zip(labelled.trace.candidate.trajectory.steps, labelled.steps, strict=True)
        if target is not None
    ]
    return {
        "prompt": labelled.trace.candidate.problem.prompt,
        "completions": [step for step, _ in pairs],
        "labels": [target >= threshold for _, target in pairs],
    }


def _checked(labelled: LabelledTrace) -> LabelledTrace:
    steps, targets = len(labelled.trace.candidate.trajectory.steps), len(labelled.steps)
    if steps != targets:
        raise BadRowError(f"{targets} labels for {steps} steps; expected one for every thinking step and every response step")
    return labelled


def _target(value: Any, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRowError(f"{name!r} holds {json.dumps(value)[:40]}; expected a number, true, false or null")
    return float(value)


def _targets(values: Any, name: str) -> tuple[float | None, ...]:
    if not isinstance(values, list):
        raise BadRowError(f"{name!r} is {json.dumps(values)[:40]}; expected a list with one label per step")
    return tuple(_target(value, name) for value in values)


def _of_steps(problem: Any, steps: Any, targets: Sequence[float | None], row: Mapping[str, Any], number: int) -> LabelledTrace:
    """A trace from steps and labels, without blank steps."""
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        raise BadRowError(f"the steps are {json.dumps(steps)[:40]}; expected a list of strings")
    if len(steps) != len(targets):
        raise BadRowError(f"{len(targets)} labels for {len(steps)} steps; expected one for every step")
    kept = [(step, target) for step, target in zip(steps, targets, strict=True) if step.strip()]
    beside = {name: row[name] for name in ("id", "answer") if name in row}
    line = json.dumps({"problem": problem, "steps": [step for step, _ in kept], **beside})
    [trace] = parse_line(line, number, {})
    trace = Trace(trace.candidate, {**trace.row, **{name: row[name] for name in ("correct",) if name in row}})
    return _checked(LabelledTrace(trace, tuple(target for _, target in kept)))


def _math_shepherd(row: dict[str, Any], number: int) -> LabelledTrace:
    """Steps that start with `Step n:` and end with `ки` in one column and with the label, + or -, in the other."""
    problem, *steps = _SHEPHERD_STEP.split(row["input"])
    _, *labels = _SHEPHERD_STEP.split(row["label"])
    signs = [label.rstrip()[-1:] for label in labels]
    if unknown := [sign for sign in signs if sign not in ("+", "-")]:
        raise BadRowError(f"a step's label is {unknown[0]!r}; expected + or -")
    return _of_steps(
        problem.strip(), [step.replace("ки", "").strip() for step in steps], [float(sign == "+") for sign in signs], row, number
    )


def _prm800k(row: dict[str, Any], number: int) -> list[LabelledTrace]:
    """The chosen path with all of its labels, and for every other completion the path to it with the label of its last step.

    A neutral rating (0) counts as right, as in the paper of the data set (arXiv 2305.20050).
    """
    problem, steps = row["question"].get("problem"), row["label"].get("steps")
    if not isinstance(steps, list):
        raise BadRowError("label.steps is not a list")
    found: list[tuple[list[str], list[float | None]]] = []
    path: list[str] = []
    labels: list[float | None] = []
    for step in steps:
        completions = step.get("completions") if isinstance(step, dict) else None
        if not isinstance(completions, list) or not all(
            isinstance(c, dict) and isinstance(c.get("text"), str) for c in completions
        ):
            raise BadRowError("a step of label.steps has no list of completions with a string under 'text'")
        chosen = step.get("chosen_completion")
        for i, completion in enumerate(completions):
            if i != chosen and (rating := _target(completion.get("rating"), "rating")) is not None:
                found.append(([*path, completion["text"]], [*(None for _ in path), float(rating >= 0)]))
        by_hand = step.get("human_completion")
        if isinstance(chosen, int) and 0 <= chosen < len(completions):
            rating = _target(completions[chosen].get("rating"), "rating")
            path.append(completions[chosen]["text"])
            labels.append(None if rating is None else float(rating >= 0))
        elif isinstance(by_hand, dict) and isinstance(by_hand.get("text"), str):
            path.append(by_hand["text"])
            labels.append(1.0)
        else:
            break
    if path:
        found.insert(0, (path, labels))
    return [_of_steps(problem, texts, targets, row, number) for texts, targets in found]
