"""Graders: how an answer is read from a response, and which answers are equivalent.

A grader is one of `math`, `letter`, `numeric` and `exact`, or a function `(answer: str, reference: str) -> bool` of your
own, given as file.py:function or package.module:function.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tts.plugins import Registry

TOLERANCE = 1e-6
"""Largest difference between a `numeric` answer and the reference, as a share of the reference."""


@dataclass(frozen=True, slots=True)
class Rules:
    """A grader. Its functions process untrusted text, so they are called in a process that can be killed."""

    read: Callable[[str, bool], str | None]
    """Reads the answer from a text, which is the content of a box (True) or a response without one (False); None without an
    answer."""
    right: Callable[[str, str], bool]
    """Whether an answer (first argument) agrees with the reference (second)."""
    same: Callable[[str, str], bool]
    """Whether two answers are equivalent, so that they count as votes for the same answer."""
    about: str = ""
    """What it does, in a line."""


def get_grader(name: str) -> Rules:
    """Look up a grader: `letter`, `path/to/file.py:function`, `package.module:function`. Raises InputError."""
    return GRADERS.get(name)


# math: math-verify decides; for it 1/2, 0.5 and \frac12 are equal, sets have no order, and units do not count


def _last_expression(text: str, boxed: bool) -> str | None:
    if not boxed:
        from math_verify import parse

        found = parse(text, parsing_timeout=None)
        text = str(found[-1]) if found else ""
    return text or None


_RATIONAL = re.compile(
    r"(?P<sign>-?)(?:\\[dt]?frac\{(?P<top>[0-9]{1,30})\}\{(?P<bottom>[1-9][0-9]{0,29})\}"
    r"|(?P<a>[0-9]{1,30})(?: ?/ ?(?P<b>[1-9][0-9]{0,29}))?)"
)
_BOUNDED = re.compile(r"(\\\{|[(\[])(?!.*,\d{3}(?!\d))([-0-9/, ]+)(\\\}|[)\]])")  # {1,000} is left to the parser


@lru_cache(maxsize=4096)
def _parsed(answer: str) -> list[Any]:
    """The answer as math-verify parses it; empty if it cannot."""
    from math_verify import parse

    value = _read_simple(answer.strip())
    return [value, answer] if value is not None else list(parse(f"\\boxed{{{answer}}}", parsing_timeout=None))


def _read_simple(answer: str) -> Any:
    """The value of an integer, a fraction, or a set or interval of them, without the parser, which takes 10 ms; else None."""
    from latex2sympy2_extended.sets import FiniteSet
    from sympy import Interval, Rational

    if ratio := _RATIONAL.fullmatch(answer):
        top, bottom = ratio["top"] or ratio["a"], ratio["bottom"] or ratio["b"] or "1"
        return Rational(int(ratio["sign"] + top), int(bottom))
    if bounded := _BOUNDED.fullmatch(answer):
        left, inside, right = bounded.groups()
        parts = [_read_simple(part.strip()) for part in inside.split(",")]
        if None in parts:
            return None
        if left == "\\{" and right == "\\}":
            return FiniteSet(*parts)
        if left in "([" and right in ")]" and len(parts) == 2 and parts[0] < parts[1]:
            return Interval(*parts, left == "(", right == ")")
    return None


@lru_cache(maxsize=65536)
def _equivalent(answer: str, reference: str) -> bool:
    from math_verify import verify

    if answer.strip() == reference.strip():
        return True
    x, y = _parsed(answer), _parsed(reference)
    if x and y and "%" not in answer + reference and (quick := _compare(x[0], y[0])) is not None:
        return quick
    return bool(verify(y, x, timeout_seconds=None))


def _compare(x: Any, y: Any) -> bool | None:
    """Whether two values are equal, if that can be told without computer algebra, which takes 100 times as long; else None."""
    from sympy import Expr, FiniteSet, Interval, Rational

    def exact(value: Any) -> bool:
        parts = (value.start, value.end) if isinstance(value, Interval) else value.args or (value,)
        return all(isinstance(part, Rational) or part.is_infinite for part in parts)

    if any(isinstance(x, kind) and isinstance(y, kind) for kind in (Rational, FiniteSet, Interval)) and exact(x) and exact(y):
        return bool(x == y)
    if isinstance(x, Expr) and isinstance(y, Expr) and x.is_number and y.is_number:
        try:
            a, b = complex(x), complex(y)
        except (TypeError, ValueError, OverflowError):
            return None
        if abs(a - b) > 1e-4 * max(1.0, abs(a), abs(b)):
            return False
    return None


# letter: the letter of a choice, as in \boxed{B}, "the answer is B", "(B)", or a line that only has B

_IN_BOX = re.compile(r"(?:\\\w+\{|[\s($*{])*([A-Za-z])(?![A-Za-z])")
_STATED = re.compile(
    r"\b(?:[Aa]nswer|ANSWER|(?:correct|right|best) (?:option|choice))(?:\s+is)?[\s:*$(]*(?:\\\w+\{)?"
    r"([A-J])\b(?!')(?!(?<=I)\s+[a-z])"  # "the answer is I think …" does not name the choice I
)
_IN_PARENTHESES = re.compile(r"\(([A-J])\)")
_ALONE = re.compile(r"^[ *$]*([A-J])[ *$.]*$", re.MULTILINE)


def _letter(text: str, boxed: bool) -> str | None:
    """The letter in a box; in a response without one, the last letter called the answer, else in parentheses, else alone."""
    if boxed:
        found = _IN_BOX.match(text)
        return found[1].upper() if found else None
    letters = _STATED.findall(text) or _IN_PARENTHESES.findall(text) or _ALONE.findall(text)
    return letters[-1] if letters else None


def _same_letter(answer: str, reference: str) -> bool:
    return answer == _letter(reference, True)


# numeric: numbers within a tolerance; thousands separators, percent signs and units are ignored

_SEPARATOR = re.compile(r"\{,\}|\\[,!;]|(?<=\d),(?=\d{3}(?!\d))")
_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
_NUMBER = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?)(?: ?/ ?(\d+\.?\d*))?")


def _numbers(text: str) -> list[re.Match[str]]:
    return list(_NUMBER.finditer(_FRACTION.sub(r"\1/\2", _SEPARATOR.sub("", text))))


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


def _accept(found: Any) -> Rules | None:
    """Rules, or a function (answer, reference) -> bool, which is given what is boxed or else the last line."""
    if isinstance(found, Rules):
        return found
    if not callable(found) or isinstance(found, type):
        return None
    return Rules(_last_line, found, operator.eq, (found.__doc__ or "").strip().partition("\n")[0].rstrip("."))


GRADERS: Registry[Rules] = Registry(
    "grader",
    {
        "math": Rules(
            _last_expression, _equivalent, _equivalent, "math-verify: 1/2, 0.5 and \\frac12 are the same; sets in any order"
        ),
        "letter": Rules(_letter, _same_letter, operator.eq, "the letter of a choice, boxed or stated"),
        "numeric": Rules(
            _number_text, _close, _close, f"numbers within a relative tolerance of {TOLERANCE:g}; units are dropped"
        ),
        "exact": Rules(_last_line, _same_text, _same_text, "the same text, but for white space"),
    },
    accept=_accept,
    expected="a function (answer, reference) -> bool, or Rules",
)
