"""Graders: how an answer is read from a response, and which answers are equivalent.

A grader is one of `math`, `letter`, `numeric` and `exact`, or your own, given as file.py:name or package.module:name: a
function `(answer, reference) -> bool`, or a class with a method `right` like it. Either may take the whole response as a third
parameter. A class may also define `same(answer, other) -> bool`, for votes, and `read(response) -> str | None`.
"""

from __future__ import annotations

import inspect
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from tts.grading import algebra, letters
from tts.grading.boxes import boxed
from tts.grading.numerals import unseparated
from tts.plugins import Registry

TOLERANCE = 1e-6
"""Largest difference between a `numeric` answer and the reference, as a share of the reference."""


@dataclass(frozen=True, slots=True)
class Rules:
    """A grader. Its functions process untrusted text, so they are called in a process that can be killed.

    An answer may be any object, for example a parsed expression. Its `str()` is what people see.
    """

    read: Callable[[str, bool], Any]
    """Reads the answer from a text, which is the content of a box (True) or a response without one (False); None without an
    answer."""
    right: Callable[[Any, str], bool]
    """Whether an answer (first argument) agrees with the reference (second)."""
    same: Callable[[Any, Any], bool]
    """Whether two answers are equivalent, so that they count as votes for the same answer."""
    about: str = ""
    """What it does, in a line."""
    whole: bool = False
    """Whether `read` is given the whole response, as the model wrote it, even if there is a box (then False)."""


def get_grader(name: str) -> Rules:
    """Look up a grader: `letter`, `path/to/file.py:function`, `package.module:function`. Raises InputError."""
    return GRADERS.get(name)


# numeric: numbers within a tolerance; thousands separators, percent signs and units are ignored

_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
_NUMBER = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?)(?: ?/ ?(\d+\.?\d*))?")


def _numbers(text: str) -> list[re.Match[str]]:
    return list(_NUMBER.finditer(_FRACTION.sub(r"\1/\2", _COMMA.sub("", unseparated(text)))))


def _number_text(text: str, boxed: bool) -> str | None:
    if not (numbers := _numbers(text)):
        return None
    return text.strip() if boxed else numbers[-1][0]


def _number(text: str) -> float:
    """The first number after the last equals sign, so that `x = 5 \\text{ cm}^2` is 5; NaN without a number."""
    for number in _numbers(text.rpartition("=")[2]):
        divisor = float(number[2] or 1)
        return float(number[1]) / divisor if divisor else float("nan")
    return float("nan")


def _close(answer: str, reference: str) -> bool:
    x, y = _number(answer), _number(reference)
    return abs(x - y) <= TOLERANCE * abs(y) < float("inf")


# exact: the same text, apart from white space


def _last_line(text: str, boxed: bool) -> str | None:
    lines = text.strip().splitlines()
    if not lines:
        return None
    return text.strip() if boxed else lines[-1].strip()


def _same_text(answer: str, reference: str) -> bool:
    return answer.split() == reference.split()


class _Attempt(NamedTuple):
    """An answer with the response that it was read from."""

    answer: str
    response: str

    def __str__(self) -> str:
        return self.answer


def _accept(found: Any) -> Rules | None:
    """Rules, a function (answer, reference[, response]) -> bool, or a class that has such a function as its method `right`."""
    if isinstance(found, Rules):
        return found
    own = found() if isinstance(found, type) and hasattr(found, "right") else found
    right = getattr(own, "right", own)
    if isinstance(own, type) or not callable(right):
        return None
    same, read = getattr(own, "same", operator.eq), getattr(own, "read", None)
    about = (found.__doc__ or "").strip().partition("\n")[0].rstrip(".")
    takes_response = _takes_response(right)
    if read is None and not takes_response:
        return Rules(_last_line, right, same, about)

    def attempt(response: str, _: bool) -> _Attempt | None:
        box = boxed(response)
        answer = read(response) if read is not None else _last_line(response, False) if box is None else box
        return None if answer is None else _Attempt(str(answer), response)

    def is_right(attempt: _Attempt, reference: str) -> bool:
        return bool(right(attempt.answer, reference, *([attempt.response] if takes_response else [])))

    return Rules(attempt, is_right, lambda a, b: bool(same(a.answer, b.answer)), about, whole=True)


def _takes_response(function: Callable[..., Any]) -> bool:
    """Whether a function has a third parameter without a default."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some functions written in C do not tell
        return False
    return len(parameters) > 2 and parameters[2].default is inspect.Parameter.empty and parameters[2].kind in _POSITIONAL


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


GRADERS: Registry[Rules] = Registry(
    "grader",
    {
        "math": Rules(
            algebra.read, algebra.right, algebra.same, "math-verify: 1/2, 0.5 and \\frac12 are the same; sets in any order"
        ),
        "letter": Rules(letters.read, letters.right, operator.eq, "the letter of a choice, boxed or stated"),
        "numeric": Rules(
            _number_text, _close, _close, f"numbers within a relative tolerance of {TOLERANCE:g}; units are dropped"
        ),
        "exact": Rules(_last_line, _same_text, _same_text, "the same text, but for white space"),
    },
    accept=_accept,
    expected="a function (answer, reference) -> bool, or a class that defines right(answer, reference)",
)
