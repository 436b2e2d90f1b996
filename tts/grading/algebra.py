"""The `math` grader: math-verify decides.

For it 1/2, 0.5 and \\frac12 are equal, sets have no order, and units do not count. What it parsed is kept with an answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from tts.grading.boxes import boxed
from tts.grading.numerals import unseparated

_RATIONAL = re.compile(
    r"(?P<sign>-?)(?:\\[dt]?frac\{(?P<top>[0-9]{1,30})\}\{(?P<bottom>[1-9][0-9]{0,29})\}"
    r"|(?P<a>[0-9]{1,30})(?: ?/ ?(?P<b>[1-9][0-9]{0,29}))?)"
)
_DECIMAL = re.compile(r"-?[0-9]{1,15}\.[0-9]{1,15}")
_BOUNDED = re.compile(r"(\\\{|[(\[])(?!.*,\d{3}(?!\d))([-0-9/, ]+)(\\\}|[)\]])")  # {1,000} is left to the parser
_IN_TEXT = re.compile(r"\\boxed|\$[^$]+\$|\\\(.+?\\\)|\\\[.+?\\\]", re.DOTALL)
_DECIMAL_COMMA = re.compile(r"-?\d+,\d+")

_STYLED = re.compile(
    r"\\(?:(?P<plain>text|mathrm)|textbf|mathbf|boldsymbol|bm)\s*"
    r"\{(?P<content>(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"
)
_UPRIGHT = re.compile(r"\\(?:mathrm|operatorname)\s*\{([ei])\}|\{\\rm ([ei])\}|(?<=\d)(i)(?![a-zA-Z])")
_NUMBER_FIRST = re.compile(r"\s*[-+([]*[\d\\.$]")
_BOLD = re.compile(r"(?<![\w)*])\*\*(?=[^\s*])([^*\n]+?)(?<=[^\s*])\*\*(?![\w(*])")
_FULL_STOP = re.compile(r"(?<=[\d})\]])\.(?=\s*\n|\s*$|\*\*)|(?<![.\s])\.(?=\s*(?:\$|\\\)|\\\]))")
_LAST_STOP = re.compile(r"(?<![.,;])[.,;]$")
_DELIMITED = re.compile(r"\\\((.*)\\\)|\\\[(.*)\\\]|\$+([^$]*)\$+", re.DOTALL)
_BRACKET = re.compile(r"[(\[]|\\\{")
_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
_STATED = re.compile(r"\banswer(?: is|:):? +(?P<answer>(?:[^$\n]|\\\$){1,300}?)\.?\s*$", re.IGNORECASE)
_PROSE = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}|\\[(\[]")


@dataclass(frozen=True, slots=True)
class Parsed:
    """An answer with what math-verify makes of it. As a string, it is what people see."""

    shown: str
    text: str
    """What was parsed."""
    boxed: bool
    values: list[Any] = field(compare=False)

    def __str__(self) -> str:
        return self.shown


@lru_cache(maxsize=4096)
def read(text: str, in_box: bool) -> Parsed | None:
    """The content of a box, or the expression that a text without one ends in; None without an answer.

    Without a box, that is what follows `the answer is` at the end, or else the last expression that math-verify finds.
    """
    if in_box:
        return Parsed(text, text.strip(), True, _values(text, True)) if text.strip() else None
    text = _clean(text)
    if (stated := _STATED.search(text)) and not _PROSE.search(stated["answer"]):
        values = _values(stated["answer"], True)
        if values and not isinstance(values[0], str):
            return Parsed(stated["answer"], stated["answer"], True, values)
    values = _values(text, False)
    return Parsed(_shown(values), text, False, values) if values else None


def right(answer: Parsed, reference: str) -> bool:
    """Whether an answer is equivalent to the reference."""
    return any(_equivalent(answer, gold) for gold in _readings(reference.strip()))


def same(answer: Parsed, other: Parsed) -> bool:
    """Whether two answers are equivalent, whichever of them is given first."""
    return _equivalent(answer, other) or (_relates(answer, other) and _equivalent(other, answer))


@lru_cache(maxsize=1024)
def _readings(reference: str) -> list[Parsed]:
    """What a reference may mean. It is an expression, or a text with expressions between $…$ or in boxes."""
    text = boxed(reference) or reference
    in_box = text != reference or not _IN_TEXT.search(reference)
    kinds = [True, False] if _DECIMAL_COMMA.fullmatch(text) else [in_box]  # 1,22 may be two numbers or one
    return [Parsed(text, text, kind, _values(text, kind)) for kind in kinds]


def _values(text: str, in_box: bool) -> list[Any]:
    """What math-verify parses: an expression and the text it was read from; either may be missing."""
    from math_verify import parse

    text = _clean(text)
    if not in_box:
        return list(parse(text, parsing_timeout=None))
    if delimited := _DELIMITED.fullmatch(text):
        text = "".join(filter(None, delimited.groups())).strip()
    # an upright e or i would be dropped as a unit, and 3i has another i than 3 i
    text = _UPRIGHT.sub(lambda letter: f" {letter[1] or letter[2] or letter[3]}", _LAST_STOP.sub("", text)).strip()
    if not _BRACKET.search(text):
        text = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)
    value = _read_simple(text)
    return [value, text] if value is not None else list(parse(f"\\boxed{{{text}}}", parsing_timeout=None))


def _clean(text: str) -> str:
    """The text in a form that math-verify reads: without separators of thousands, bold type, and full stops after numbers."""
    text = _STYLED.sub(_unstyled, _BOLD.sub(r"\1", text.strip()))
    return _FULL_STOP.sub("", unseparated(text)).strip()


def _unstyled(styled: re.Match[str]) -> str:
    """The content of `\\mathbf{5}` and the like. Words stay as they are, and so do letters in bold, which may be vectors."""
    content = styled["content"]
    if styled["plain"]:
        return content if _NUMBER_FIRST.match(content) else styled[0]
    return content if re.search(r"\d", content) else f"\\mathbf{{{content}}}"


def _shown(values: list[Any]) -> str:
    """The text of an expression that was found in a sentence."""
    from sympy import Integer

    value, text = values[0], values[-1]
    return str(value) if isinstance(value, Integer) else str(text).strip(" .*")


def _read_simple(answer: str) -> Any:
    """What the parser makes of a number, a fraction, or a set or interval of them, without taking its 10 ms; otherwise None."""
    from latex2sympy2_extended.sets import FiniteSet
    from sympy import Float, Interval, Rational

    if ratio := _RATIONAL.fullmatch(answer):
        top, bottom = ratio["top"] or ratio["a"], ratio["bottom"] or ratio["b"] or "1"
        return Rational(int(ratio["sign"] + top), int(bottom))
    if _DECIMAL.fullmatch(answer):
        return Rational(answer) if answer == "0.5" else Float(answer)  # whole numbers are fractions
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


@lru_cache(maxsize=16384)
def _equivalent(answer: Parsed, gold: Parsed) -> bool:
    from math_verify import verify

    if answer.boxed and answer.text == gold.text:
        return True
    x, y = answer.values, gold.values
    if x and y and (quick := _compare(x[0], y[0])) is not None:
        return quick
    return bool(verify(y, x, timeout_seconds=None))


def _relates(x: Parsed, y: Parsed) -> bool:
    """Whether either is an equation or an inequality, which math-verify compares differently in either order."""
    from latex2sympy2_extended.logic import And
    from sympy.core.relational import Relational

    return any(isinstance(value, Relational | And) for value in (*x.values[:1], *y.values[:1]))


def _compare(x: Any, y: Any) -> bool | None:
    """Whether two values are equal, if that can be told without computer algebra, which takes 100 times as long; else None."""
    from sympy import Expr, FiniteSet, Interval, Rational, UnevaluatedExpr

    def exact(value: Any) -> bool:
        parts = (value.start, value.end) if isinstance(value, Interval) else value.args or (value,)
        return all(isinstance(part, Rational) or part.is_infinite for part in parts)

    if any(isinstance(x, kind) and isinstance(y, kind) for kind in (Rational, FiniteSet, Interval)) and exact(x) and exact(y):
        return bool(x == y)
    if isinstance(x, Expr) and isinstance(y, Expr) and x.is_number and y.is_number:
        if x.has(UnevaluatedExpr) or y.has(UnevaluatedExpr):  # a percentage, which also equals its number
            return None
        try:
            a, b = complex(x), complex(y)
        except (TypeError, ValueError, OverflowError):
            return None
        if abs(a - b) > 1e-4 * max(1.0, abs(a), abs(b)):
            return False
    return None
