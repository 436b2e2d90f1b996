"""Sources of benchmarks: where the rows of a data set are, and how a row becomes a problem."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tts.errors import InputError
from tts.evals.benchmarks.rows import DataRow
from tts.grading.boxes import boxed
from tts.types import Problem

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
"""The customary instruction for problems whose answer is a number or an expression."""

LETTER = "Please reason step by step, and put the letter of the right choice within \\boxed{}."
"""The instruction for multiple choice."""

AnswerReader = Callable[[Any], str | None]
"""Reads the reference answer from the value of a field; None without an answer. Raises ValueError with what it expected."""


def verbatim(value: Any) -> str | None:
    """A string or a number as it is."""
    if isinstance(value, bool | dict | list):
        raise ValueError("a string or a number")
    return None if value is None or value == "" else str(value)


def whole_number(value: Any) -> str | None:
    """A whole number without a decimal point or leading zeros, so that 27.0 and "027" are 27; other values as they are."""
    text = verbatim(value)
    try:
        return str(int(float(text or ""))) if float(text or "").is_integer() else text
    except ValueError:
        return text


def boxed_answer(value: Any) -> str:
    """The last boxed expression of a worked solution."""
    answer = boxed(value) if isinstance(value, str) else None
    if not answer:
        raise ValueError("a solution with a \\boxed{} answer")
    return answer


def after_hashes(value: Any) -> str:
    """The text after the last #### of a worked solution, without thousands separators."""
    answer = value.rpartition("####") if isinstance(value, str) else ("", "", "")
    if not answer[1] or not answer[2].strip():
        raise ValueError("a solution that ends in #### and the answer")
    return str(answer[2].strip().replace(",", ""))


def joined(value: Any) -> str | None:
    """The answers of a list, without dollar signs around them, joined by commas."""
    if not isinstance(value, list) or not all(isinstance(answer, str) for answer in value):
        raise ValueError("a list of strings")
    return ", ".join(answer.strip(" $") for answer in value) or None


def id_of(question: str) -> str:
    """The id of a problem that has none: a hash of its text, so that it is the same in whatever file the problem stands."""
    return hashlib.sha256(question.strip().encode("utf-8", "surrogatepass")).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Source:
    """A data set and the names of its fields. Of several names, the first that a row has is used."""

    hub: str = ""
    """Id on the Hugging Face hub, as owner/name; empty for data that is not on the hub."""
    config: str | None = None
    """Configuration of the data set; None for its default."""
    split: str = "test"
    revision: str = "main"
    """A commit, so that the problems stay the same, or a branch or tag."""
    question: tuple[str, ...] = ("problem",)
    """Fields with the problem's text."""
    answer: Mapping[str, AnswerReader] = field(default_factory=lambda: {"answer": verbatim})
    """Fields with the reference answer, and how to read it."""
    id: tuple[str, ...] = ("id",)
    """Fields with the problem's id."""
    needs_id: bool = False
    """Whether a row without an id is an error; if not, it gets one from the text of its question."""
    wrong: tuple[str, ...] = ()
    """Fields with the wrong choices. The answer is then the right choice, and the reference answer becomes its letter."""
    only: Mapping[str, str] = field(default_factory=dict)
    """Values that these fields must have in rows that have the fields; other rows are skipped."""
    grader: str = "math"
    """Grader of the problems."""
    strict: bool = False
    """Whether every row must have a field with an answer; if not, a problem without one is solved but not graded."""
    instruction: str = ""
    """How the policy is to answer, unless --instruction says otherwise; empty for LETTER with choices, else for none."""

    @property
    def told(self) -> str:
        """The instruction of its problems; empty for none."""
        return self.instruction or (LETTER if self.wrong else "")

    @property
    def about(self) -> str:
        """Where its rows are, in a line."""
        return f"{self.hub}{f':{self.config}' if self.config else ''}, split {self.split}, grader {self.grader}"

    def with_fields(self, *, question: str | None, answer: str | None, id: str | None) -> Source:
        """The same source with fields that a user has named; each of them must then be in every row."""
        return replace(
            self,
            question=(question,) if question else self.question,
            answer={answer: self.answer.get(answer, next(iter(self.answer.values())))} if answer else self.answer,
            strict=self.strict or answer is not None,
            id=(id,) if id else self.id,
            needs_id=self.needs_id or id is not None,
        )

    def takes(self, row: DataRow) -> bool:
        """Whether a row belongs to the benchmark. Rows that are not dictionaries do; `problem` raises the error for them."""
        fields = row.fields if isinstance(row.fields, dict) else {}
        return all(fields.get(name, value) == value for name, value in self.only.items())

    def problem(self, row: DataRow, seed: int) -> Problem:
        """The problem of a row. `seed` shuffles the choices of a multiple-choice problem.

        Raises InputError, with the place of the row, if a field is missing or has an unexpected value.
        """
        prompt = row.text(self.question, "--question-field")
        identifier = self._id(row, prompt)
        answer = self._answer(row)
        if self.wrong and answer is not None:
            choices = [answer.strip(), *(row.text((name,), None).strip() for name in self.wrong)]
            order = list(range(len(choices)))
            random.Random(f"{seed}/{identifier}").shuffle(order)
            letters = "ABCDEFGHIJ"[: len(choices)]
            lines = [f"{letter}) {choices[i]}" for letter, i in zip(letters, order, strict=True)]
            prompt = "\n".join([prompt.strip(), "", *lines])
            answer = letters[order.index(0)]
        return Problem(identifier, prompt, answer, self.grader, self.told)

    def _answer(self, row: DataRow) -> str | None:
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

    def has_id(self, row: DataRow) -> bool:
        """Whether a row has an id of its own."""
        return isinstance(row.fields, dict) and any(name in row.fields for name in self.id)

    def _id(self, row: DataRow, question: str) -> str:
        name = next((name for name in self.id if name in row.fields), None)
        if name is None and self.needs_id:
            raise row.lacks(self.id, "--id-field")
        if name is None:
            return id_of(question)
        identifier = row.fields[name]
        if isinstance(identifier, bool | dict | list) or identifier is None:
            raise InputError(f"{row.where}: the id is {json.dumps(identifier)[:40]}; expected a string or a number")
        return str(identifier)
