"""Traces with target rewards for training a PRM: rows of `tts label`, and public data sets of step labels as published.

tts label       {"problem": …, "text": …, "step_targets": [0.8, …], "final_target": 1.0}
TRL             {"prompt": …, "completions": ["step", …], "labels": [true, …]}
Math-Shepherd   {"input": "problem Step 1: … ки\\nStep 2: … ки", "label": "problem Step 1: … +\\nStep 2: … -"}
PRM800K         {"question": {"problem": …}, "label": {"steps": [{"completions": [{"text": …, "rating": 1}], …}]}}
ProcessBench    {"problem": …, "steps": ["step", …], "label": 3}
PRMBench        {"modified_question": …, "modified_process": ["step", …], "error_steps": [5, 6]}

Labels belong to positions in the list of steps that a row gives. A step in which there is nothing to rate, such as a blank one,
keeps its position, and its label is not used.
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
    """One target per thinking step, then one per response step; None for a step without a label, which is not trained on.
    `trace.by_position` returns one per given step."""
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
        return [_labelled(trace, targets, _target(row.get("final_target"), "final_target"))]
    if "completions" in row and "labels" in row:
        return [_of_steps(row.get("prompt"), row["completions"], _targets(row["labels"], "labels"), row, number)]
    if isinstance(row.get("input"), str) and isinstance(row.get("label"), str):
        return [_math_shepherd(row, number)]
    if isinstance(row.get("question"), dict) and isinstance(row.get("label"), dict):
        return _prm800k(row, number)
    if "error_steps" in row and "modified_process" in row:
        return [_prmbench(row, number)]
    if "label" in row and "steps" in row:
        return [_process_bench(row, number)]
    raise BadRowError(
        "the line has no targets; expected the columns of `tts label` (step_targets, final_target), TRL (prompt, completions,"
        " labels), Math-Shepherd (input, label), PRM800K (question, label), ProcessBench (problem, steps, label) or PRMBench"
        " (modified_question, modified_process, error_steps)"
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


def _labelled(trace: Trace, targets: Sequence[float | None], final: float | None = None) -> LabelledTrace:
    """The trace with targets for each given step, or for each step of its trajectory. Raises BadRowError for another number."""
    expected, of = len(trace.candidate.trajectory.steps), "every thinking step and every response step"
    if trace.given is not None:
        expected, of = trace.given.count, "each of the given steps"
    if len(targets) != expected:
        raise BadRowError(f"{len(targets)} labels for {expected} steps; expected one for {of}")
    return LabelledTrace(trace, tuple(trace.by_step(targets)), final)


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
    """A trace from steps, and a label for each of them."""
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        raise BadRowError(f"the steps are {json.dumps(steps)[:40]}; expected a list of strings")
    if len(steps) != len(targets):
        raise BadRowError(f"{len(targets)} labels for {len(steps)} steps; expected one for every step")
    beside = {name: row[name] for name in ("id", "answer", "correct") if name in row}
    [trace] = parse_line(json.dumps({"problem": problem, "steps": steps, **beside}), number, {})
    return _labelled(trace, targets)


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


def _process_bench(row: dict[str, Any], number: int) -> LabelledTrace:
    """Steps before the first wrong one, which `label` counts from 0, are right; later ones have no label. -1: all are right."""
    steps, first = row["steps"], row["label"]
    if not isinstance(steps, list) or isinstance(first, bool) or not isinstance(first, int) or not -1 <= first < len(steps):
        raise BadRowError(f"'label' is {json.dumps(first)[:40]}; expected the index of a step, from 0, or -1 if all are right")
    right = len(steps) if first < 0 else first
    targets = [1.0 if i < right else 0.0 if i == right else None for i in range(len(steps))]
    return _of_steps(row.get("problem"), steps, targets, {**row, "correct": row.get("final_answer_correct")}, number)


def _prmbench(row: dict[str, Any], number: int) -> LabelledTrace:
    """Steps that `error_steps` counts, from 1, are wrong; all others are right.

    The published file also has numbers beyond the last step, which count nothing.
    """
    steps, wrong = row["modified_process"], row["error_steps"]
    if not isinstance(steps, list) or not isinstance(wrong, list) or not all(isinstance(i, int) and i >= 1 for i in wrong):
        raise BadRowError(f"'error_steps' is {json.dumps(wrong)[:40]}; expected a list of numbers of steps, from 1")
    targets = [float(i not in wrong) for i in range(1, len(steps) + 1)]
    return _of_steps(row.get("modified_question"), steps, targets, {"id": row.get("idx")}, number)
