"""Where rows lie, and how one of them becomes a problem."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tts.errors import InputError
from tts.evals.benchmarks.rows import Row
from tts.grading.pool import boxed
from tts.types import Problem

Read = Callable[[Any], str | None]
"""Takes a reference answer from a field's value; None where there is none. ValueError where it is not of the kind expected."""


def plain(value: Any) -> str | None:
    """A text or a number as it is."""
    if isinstance(value, bool | dict | list):
        raise ValueError("a text or a number")
    return None if value is None or value == "" else str(value)


def whole(value: Any) -> str | None:
    """A number without a decimal point or leading zeros where it is whole: 27.0 and "027" are 27."""
    text = plain(value)
    try:
        return str(int(float(text or ""))) if float(text or "").is_integer() else text
    except ValueError:
        return text


def in_box(value: Any) -> str:
    """What a worked solution boxes last."""
    answer = boxed(value) if isinstance(value, str) else None
    if not answer:
        raise ValueError("a solution with a \\boxed{} answer")
    return answer


def behind_hashes(value: Any) -> str:
    """What follows #### at the end of a worked solution, without thousands separators."""
    answer = value.rpartition("####") if isinstance(value, str) else ("", "", "")
    if not answer[1] or not answer[2].strip():
        raise ValueError("a solution that ends in #### and the answer")
    return str(answer[2].strip().replace(",", ""))


def listed(value: Any) -> str | None:
    """The answers of a list, dollar signs left out, with commas between them."""
    if not isinstance(value, list) or not all(isinstance(answer, str) for answer in value):
        raise ValueError("a list of texts")
    return ", ".join(answer.strip(" $") for answer in value) or None


@dataclass(frozen=True, slots=True)
class Source:
    """A data set and what its fields are called. Of several names the first that a row has is taken."""

    hub: str = ""
    """Id on the Hugging Face hub, as owner/name."""
    config: str | None = None
    split: str = "test"
    revision: str = "main"
    """A commit, so that the problems stay the same."""
    question: tuple[str, ...] = ("problem",)
    answer: Mapping[str, Read] = field(default_factory=lambda: {"answer": plain})
    id: tuple[str, ...] = ("id",)
    numbered: bool = True
    """Whether a row without an id gets its number for one."""
    wrong: tuple[str, ...] = ()
    """Fields of the wrong choices; then `answer` is the right choice, and the reference becomes its letter."""
    only: Mapping[str, str] = field(default_factory=dict)
    """What these fields have to be, in a row that has them; other rows are passed over."""
    grader: str = "math"
    strict: bool = False
    """Whether every row must have the field of the answer; else one without it is solved but not graded."""

    @property
    def about(self) -> str:
        """Where its rows are, in a line."""
        return f"{self.hub}{f':{self.config}' if self.config else ''}, split {self.split}, grader {self.grader}"

    def with_fields(self, *, question: str | None, answer: str | None, id: str | None) -> Source:
        """The same with fields that a user named, each of which then has to be in every row."""
        return replace(
            self,
            question=(question,) if question else self.question,
            answer={answer: self.answer.get(answer, next(iter(self.answer.values())))} if answer else self.answer,
            strict=self.strict or answer is not None,
            id=(id,) if id else self.id,
            numbered=self.numbered and id is None,
        )

    def takes(self, row: Row) -> bool:
        """Whether a row belongs to the benchmark; what is no row at all is for `problem` to complain about."""
        fields = row.fields if isinstance(row.fields, dict) else {}
        return all(fields.get(name, value) == value for name, value in self.only.items())

    def problem(self, row: Row, seed: int) -> Problem:
        """The row's problem; InputError, with the row's place, where it has none. `seed` places the choices."""
        prompt = row.text(self.question, "--question-field")
        identifier = self._id(row)
        answer = self._answer(row)
        if self.wrong and answer is not None:
            choices = [answer.strip(), *(row.text((name,), None).strip() for name in self.wrong)]
            order = list(range(len(choices)))
            random.Random(f"{seed}/{identifier}").shuffle(order)
            letters = "ABCDEFGHIJ"[: len(choices)]
            lines = [f"{letter}) {choices[i]}" for letter, i in zip(letters, order, strict=True)]
            prompt = "\n".join([prompt.strip(), "", *lines, "", "Answer with the letter of the right choice in \\boxed{}."])
            answer = letters[order.index(0)]
        return Problem(identifier, prompt, answer, self.grader)

    def _answer(self, row: Row) -> str | None:
        name = next((name for name in self.answer if name in row.fields), None)
        if name is None:
            if self.strict:
                raise row.lacks(tuple(self.answer), "--answer-field")
            return None
        try:
            return self.answer[name](row.fields[name])
        except ValueError as expected:
            given = json.dumps(row.fields[name], default=str)[:40]
            raise InputError(f"{row.where}: the answer is {given}; expected {expected}") from None

    def _id(self, row: Row) -> str:
        name = next((name for name in self.id if name in row.fields), None)
        if name is None and not self.numbered:
            raise row.lacks(self.id, "--id-field")
        identifier = row.number if name is None else row.fields[name]
        if isinstance(identifier, bool | dict | list) or identifier is None:
            raise InputError(f"{row.where}: the id is {json.dumps(identifier)[:40]}; expected a text or a number")
        return str(identifier)
