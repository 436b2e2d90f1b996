"""Traces: solutions of problems, one JSON object per line, as written by `tts run` and by other programs.

    {"problem": "1 + 1 = ?", "text": "<think>\\none and one\\n</think>\\n\\nIt is \\\\boxed{2}"}
    {"problem": "1 + 1 = ?", "thinking": "one and one", "response": "It is \\\\boxed{2}"}
    {"problem": "1 + 1 = ?", "steps": ["one and one", "It is \\\\boxed{2}"]}

Where `steps` are given, values of steps (rewards, labels) have one entry for each of them, null where there is nothing to rate.
Other fields are kept. A row of a run's results.jsonl stands for one trace per candidate.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from tts.delimiters import DEFAULT, PRESETS, delimiter
from tts.errors import InputError
from tts.trajectory import BOUNDARY, CLOSE, OPEN, parse
from tts.types import Candidate, Finish, Part, Problem, Step, Window

T = TypeVar("T")

FIELDS = ("id", "problem", "instruction", "answer", "text", "thinking", "response", "steps", "step_delimiter")
"""The fields of a trace, each of which may have another name in a file (`--field`)."""

EXPECTED = 'expected {"problem": …} with "text", with "thinking" and "response", or with "steps"'


@dataclass(frozen=True)
class Given:
    """The places of a trajectory's steps in the list of steps that a row gave. The others hold nothing: blanks, a lone tag."""

    count: int
    """Steps in the list."""
    places: tuple[int, ...]
    """For each step of the trajectory, its index in the list, from 0."""


@dataclass(frozen=True)
class Trace:
    """A solution, and all fields of the row it was read from."""

    candidate: Candidate
    row: Mapping[str, Any] = field(default_factory=dict)
    given: Given | None = None
    """None for a trace that was given as text."""

    @property
    def id(self) -> str:
        return self.candidate.problem.id

    def instructed(self, instruction: str | None) -> Trace:
        """The trace under another instruction than its own, where one is given (`Problem.instructed`)."""
        problem = self.candidate.problem.instructed(instruction)
        return replace(self, candidate=replace(self.candidate, problem=problem))

    def divided(self, step_delimiter: str | None) -> Trace:
        """The trace with another delimiter than its own, where one is given; the row names it. Given steps stay as they are."""
        if step_delimiter in (None, self.candidate.problem.step_delimiter) or self.given is not None:
            return self
        problem = self.candidate.problem.divided(step_delimiter)
        row = {**self.row, "step_delimiter": step_delimiter}
        return replace(self, candidate=replace(self.candidate, problem=problem), row=row)

    def by_position(self, values: Sequence[T | None], over: Part = "all") -> list[T | None]:
        """Values of steps as rows hold them: where steps were given, one for each, in their order.

        Args:
            values: One for each step of the part `over` of the trajectory.
            over: The part that has values.

        Returns:
            One value per given step, None where there is nothing to rate or it is not in that part; `values` themselves for a
            trace that was given as text.
        """
        if self.given is None:
            return list(values)
        places = self.given.places
        places = places[len(places) - len(values) :] if over == "response" else places[: len(values)]
        found = dict(zip(places, values, strict=True))
        return [found.get(i) for i in range(self.given.count)]

    def windows_by_position(self, windows: Sequence[Window], over: Part = "all") -> list[Window]:
        """Windows over steps of the part `over`, as ranges of positions in what `by_position` returns for that part."""
        if self.given is None:
            return list(windows)
        places = self.given.places
        skipped = len(places) - len(self.candidate.part(over)) if over == "response" else 0
        return [
            window
            if window.of == "tokens"
            else replace(
                window,
                begin=places[skipped + window.begin],
                rated=places[skipped + window.rated],
                end=places[skipped + window.end - 1] + 1,
            )
            for window in windows
        ]

    def by_step(self, values: Sequence[T]) -> list[T]:
        """The opposite of `by_position`: of values for each given step, those of the trajectory's steps.

        Values of any other number are returned as they are: for the caller, who knows what they should be, to check.
        """
        if self.given is None or len(values) != self.given.count:
            return list(values)
        return [values[place] for place in self.given.places]


class BadRowError(ValueError):
    """A line that is not a trace; the message says why."""


def read_lines(path: Path, *, start: int = 1) -> Iterator[tuple[int, str, int]]:
    """Yield the lines of a file that are not blank: (line number, text, bytes read so far).

    Numbers count from 1; lines before `start` are skipped. Bytes that are not UTF-8 become replacement characters. Raises
    InputError if the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            read = 0
            for number, line in enumerate(file, 1):
                read += len(line)
                if number >= start and line.strip():
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8", "replace"), read
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def parse_json(line: str) -> Any:
    """Parse a line of JSON. Raises BadRowError, also for NaN and infinities and for nesting that is too deep to parse."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a JSON number")

    try:
        return json.loads(line, parse_constant=refuse)
    except ValueError as error:
        raise BadRowError(f"not valid JSON: {error}") from None
    except RecursionError:
        raise BadRowError("not valid JSON: nested too deeply") from None


def parse_line(line: str, number: int, names: Mapping[str, str]) -> list[Trace]:
    """The traces of one line; `names` maps entries of FIELDS to their names in the file. Raises BadRowError.

    A trace without an id gets the line's number as its id.
    """
    row = parse_json(line)
    if not isinstance(row, dict):
        raise BadRowError(f"not a JSON object; {EXPECTED}")
    values = {name: row.get(names.get(name, name)) for name in FIELDS}
    prompt, identifier, answer = values["problem"], values["id"], values["answer"]
    if not isinstance(prompt, str) or not prompt.strip():
        raise BadRowError(f"no string under {names.get('problem', 'problem')!r}; {EXPECTED}")
    if isinstance(identifier, bool | dict | list):
        raise BadRowError(f"the id is {json.dumps(identifier)[:40]}; expected a string or a number")
    identifier = str(number if identifier is None else identifier)
    instruction = values["instruction"] if names.get("problem") != "instruction" else None
    problem = Problem(
        identifier, prompt, str(answer) if isinstance(answer, str | int | float) else None,
        instruction=instruction if isinstance(instruction, str) else "",
    )  # fmt: skip
    given = None
    if values["steps"] is not None:
        text, given = _joined(values["steps"], names.get("steps", "steps"))
    else:
        problem = problem.divided(_delimiter(values["step_delimiter"], names.get("step_delimiter", "step_delimiter")))
        if isinstance(row.get("candidates"), list):
            return _of_run(problem, row)
        text = _text(values, names)
    return [Trace(Candidate(problem, (Step(text, (), _finish(row)),)), row, given)]


def _finish(row: Mapping[str, Any]) -> Finish:
    """How a trace ended, as its row says: complete, unless it was cut off."""
    return "length" if row.get("finish") == "length" else "stop"


def _of_run(problem: Problem, row: dict[str, Any]) -> list[Trace]:
    """The candidates of a run's row, with the problem's id and their index as their ids (`arith-3/0`)."""
    traces = []
    for i, attempt in enumerate(row["candidates"]):
        steps = attempt.get("steps") if isinstance(attempt, dict) else None
        if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
            raise BadRowError(f"candidate {i} has no list of strings under 'steps'")
        own = replace(problem, id=f"{problem.id}/{i}")
        fields = {
            "id": own.id,
            "problem": problem.prompt,
            "answer": problem.answer,
            "text": "".join(steps),
            "correct": attempt.get("correct"),
        }
        fields |= {"instruction": problem.instruction} if problem.instruction else {}
        fields |= {"step_delimiter": problem.step_delimiter} if problem.step_delimiter != DEFAULT else {}
        fields |= {name: attempt[name] for name in ("score", "finish") if name in attempt}
        if attempt.get("rewards") is not None:
            fields |= {"step_rewards": attempt["rewards"], "final": attempt.get("final")}  # the names that tts score uses
            fields |= {name: attempt[name] for name in ("final_missing", "windows") if attempt.get(name)}
        traces.append(Trace(Candidate(own, (Step("".join(steps), (), _finish(attempt)),)), fields))
    return traces


def _delimiter(value: Any, name: str) -> str | None:
    """The name of a trace's own delimiter of steps; None for a trace without one."""
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise BadRowError(f"{name!r} is {json.dumps(value)[:40]}; expected what ends a step: {', '.join(PRESETS)}, or a string")
    return delimiter(value).name


def _text(values: Mapping[str, Any], names: Mapping[str, str]) -> str:
    for name in ("text", "thinking", "response"):
        if values[name] is not None and not isinstance(values[name], str):
            raise BadRowError(f"{names.get(name, name)!r} is {json.dumps(values[name])[:40]}; expected a string")
    text, thinking, response = (values[name] for name in ("text", "thinking", "response"))
    if thinking is not None:
        text = f"{OPEN}\n{thinking}\n{CLOSE}\n\n{response or ''}"
    elif response is not None:
        text = response
    if text is None:
        raise BadRowError(f"the line has no trace; {EXPECTED}")
    if not any(parse(text)):
        raise BadRowError("the trace is empty")
    return str(text)


def _joined(steps: Any, name: str) -> tuple[str, Given]:
    """Steps as one text that is parsed into the same steps again, and their places; a blank line within a step becomes a line
    end."""
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        raise BadRowError(f"{name!r} is {json.dumps(steps)[:40]}; expected a list of strings")
    kept = [re.sub(r"\n[ \t]*(?:\n[ \t]*)+", "\n", step.replace("\r\n", "\n").strip()) for step in steps]
    text = BOUNDARY.join(filter(None, kept))
    counts = [len(parse(step).steps) for step in kept]
    if not any(counts):
        raise BadRowError("the trace is empty")
    if max(counts) > 1 or sum(counts) != len(parse(text).steps):
        raise BadRowError(
            f"the thinking tags in {name!r} would change its steps; split a step at the tag within it, or give the trace as"
            " 'text' instead"
        )
    return text, Given(len(steps), tuple(i for i, count in enumerate(counts) if count))
