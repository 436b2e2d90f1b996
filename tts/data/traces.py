"""Traces: problems with solutions to them, one JSON object a line, as `tts run` writes them and other programs do.

    {"problem": "1 + 1 = ?", "text": "<think>\\none and one\\n</think>\\n\\nIt is \\\\boxed{2}"}
    {"problem": "1 + 1 = ?", "thinking": "one and one", "response": "It is \\\\boxed{2}"}
    {"problem": "1 + 1 = ?", "steps": ["one and one", "It is \\\\boxed{2}"]}

Other fields are kept. A row of a run's results.jsonl is as many traces as it has candidates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tts.errors import InputError
from tts.trajectory import BOUNDARY, CLOSE, OPEN, parse
from tts.types import Candidate, Problem, Step

FIELDS = ("id", "problem", "answer", "text", "thinking", "response", "steps")
"""What can be called by another name in a file."""

EXPECTED = 'expected {"problem": …} with "text", with "thinking" and "response", or with "steps"'


@dataclass(frozen=True)
class Trace:
    """A solution, and the fields of its row beside it."""

    candidate: Candidate
    row: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return self.candidate.problem.id


class BadRowError(ValueError):
    """A line that is no trace; says why."""


def read_lines(path: Path, *, start: int = 1) -> Iterator[tuple[int, str, int]]:
    """The lines of a file that hold anything, from line `start` on: number, text, bytes read so far. Raises InputError."""
    try:
        with path.open("rb") as file:
            read = 0
            for number, line in enumerate(file, 1):
                read += len(line)
                if number >= start and line.strip():
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8", "replace"), read
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def read_json(line: str) -> Any:
    """A line's JSON. NaN and infinities are none, and neither is what is nested too deeply to be read. Raises BadRowError."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number of JSON's")

    try:
        return json.loads(line, parse_constant=refuse)
    except ValueError as error:
        raise BadRowError(f"not valid JSON: {error}") from None
    except RecursionError:
        raise BadRowError("not valid JSON: nested too deeply") from None


def parse_line(line: str, number: int, names: Mapping[str, str]) -> list[Trace]:
    """The traces of one line; `names` maps FIELDS to what the file calls them. Raises BadRowError."""
    row = read_json(line)
    if not isinstance(row, dict):
        raise BadRowError(f"not a JSON object; {EXPECTED}")
    values = {name: row.get(names.get(name, name)) for name in FIELDS}
    prompt, identifier, answer = values["problem"], values["id"], values["answer"]
    if not isinstance(prompt, str) or not prompt.strip():
        raise BadRowError(f"no text under {names.get('problem', 'problem')!r}; {EXPECTED}")
    if isinstance(identifier, bool | dict | list):
        raise BadRowError(f"the id is {json.dumps(identifier)[:40]}; expected a text or a number")
    identifier = str(number if identifier is None else identifier)
    problem = Problem(identifier, prompt, str(answer) if isinstance(answer, str | int | float) else None)
    if isinstance(row.get("candidates"), list):
        return _of_run(problem, row)
    text = _text(values, names)
    return [Trace(Candidate(problem, (Step(text, (), "stop"),)), row)]


def _of_run(problem: Problem, row: dict[str, Any]) -> list[Trace]:
    """A row of a run: each candidate has an id of its own, the problem's and its number."""
    traces = []
    for i, attempt in enumerate(row["candidates"]):
        steps = attempt.get("steps") if isinstance(attempt, dict) else None
        if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
            raise BadRowError(f"candidate {i} has no list of texts under 'steps'")
        own = Problem(f"{problem.id}/{i}", problem.prompt, problem.answer)
        beside = {
            "id": own.id,
            "problem": problem.prompt,
            "answer": problem.answer,
            "text": "".join(steps),
            "correct": attempt.get("correct"),
        }
        beside |= {name: attempt[name] for name in ("score", "finish") if name in attempt}
        if attempt.get("rewards") is not None:
            beside |= {"step_rewards": attempt["rewards"], "final": attempt.get("final")}  # as tts score names them
        traces.append(Trace(Candidate(own, (Step("".join(steps), (), "stop"),)), beside))
    return traces


def _text(values: Mapping[str, Any], names: Mapping[str, str]) -> str:
    for name in ("text", "thinking", "response"):
        if values[name] is not None and not isinstance(values[name], str):
            raise BadRowError(f"{names.get(name, name)!r} is {json.dumps(values[name])[:40]}; expected a text")
    text, thinking, response, steps = (values[name] for name in ("text", "thinking", "response", "steps"))
    if steps is not None:
        return _joined(steps, names.get("steps", "steps"))
    if thinking is not None:
        text = f"{OPEN}\n{thinking}\n{CLOSE}\n\n{response or ''}"
    elif response is not None:
        text = response
    if text is None:
        raise BadRowError(f"nothing to score in it; {EXPECTED}")
    if not any(parse(text)):
        raise BadRowError("the trace is empty")
    return str(text)


def _joined(steps: Any, name: str) -> str:
    """Steps as a text that reads as exactly these steps again; blank lines inside one become line ends."""
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        raise BadRowError(f"{name!r} is {json.dumps(steps)[:40]}; expected a list of texts")
    kept = [re.sub(r"\n[ \t]*(?:\n[ \t]*)+", "\n", step.replace("\r\n", "\n").strip()) for step in steps if step.strip()]
    text = BOUNDARY.join(kept)
    trajectory = parse(text)
    if not kept:
        raise BadRowError("the trace is empty")
    if len(trajectory.thinking) + len(trajectory.response) != len(kept):
        raise BadRowError(f"{name!r} holds a {OPEN} or {CLOSE} tag as a step of its own; give the whole as 'text' instead")
    return text
