"""A strategy's fields as its options: `--width 4` becomes `cls(width=4)`, checked against the field's type."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from difflib import get_close_matches
from itertools import pairwise
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from tts.errors import InputError
from tts.types import Strategy


def strategy_fields(cls: type[Strategy]) -> tuple[Field[Any], ...]:
    """The fields that are options; InputError where the class is no dataclass."""
    if not is_dataclass(cls):
        raise InputError(f"the strategy {cls.__name__} is not a dataclass; put @dataclass(frozen=True) above it")
    return tuple(field for field in fields(cls) if field.init)


def parse_arguments(
    strategies: type[Strategy] | Sequence[type[Strategy]], arguments: Sequence[str], also: Sequence[str] = ()
) -> dict[str, str]:
    """`--n 4 --flag --name=x` as {"n": "4", "flag": "true", "name": "x"}; each is an option of at least one of the strategies.

    `also` names other options of the command, to suggest where one was misspelt. Raises InputError.
    """
    classes = [strategies] if isinstance(strategies, type) else list(strategies)
    owners = {_flag(field.name): cls for cls in classes for field in strategy_fields(cls)}
    takes = list(owners)
    flags = {_flag(name) for cls in classes for name, hint in get_type_hints(cls).items() if hint is bool}
    values, rest = {}, list(arguments)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if not option.startswith("--"):
            raise InputError(f"unexpected argument {option!r}; options look like --n 16")
        if option not in takes:
            close = get_close_matches(option, [*takes, *also], n=1, cutoff=0.75)
            hint = f" Did you mean {close[0]}?" if close else ""
            names = " or ".join(cls.__name__ for cls in classes)
            raise InputError(f"{names} has no option {option}.{hint} It takes: {', '.join(takes) or 'none'}.")
        if not equals:
            if option in flags and (not rest or rest[0].startswith("--")):
                value = "true"
            elif not rest:
                raise InputError(f"{option} needs a value, as in {option} {_example(owners[option], option)}")
            else:
                value = rest.pop(0)
        values[option.removeprefix("--").replace("-", "_")] = value
    return values


def build(cls: type[Strategy], options: Mapping[str, Any]) -> Strategy:
    """An instance with these options, each validated by its field's type. Raises InputError."""
    from pydantic import TypeAdapter, ValidationError

    names = [field.name for field in strategy_fields(cls)]
    if unknown := [name for name in options if name not in names]:
        raise InputError(f"{cls.__name__} has no option {unknown[0]!r}. It takes: {', '.join(names) or 'none'}.")
    hints = get_type_hints(cls, include_extras=True)
    values = {}
    for name, value in options.items():
        try:
            values[name] = TypeAdapter(hints[name]).validate_python(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Input should be ")
            raise InputError(f"{_flag(name)} is {value!r}; it should be {reason}") from error
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise InputError(f"{cls.__name__}: {error}") from error


@dataclass(frozen=True)
class Option:
    """A strategy's option as it is shown."""

    flag: str
    type: str
    default: str
    help: str


def options_of(cls: type[Strategy]) -> list[Option]:
    """Every option with its type, default and help, which is the text under the field."""
    hints, helps = get_type_hints(cls, include_extras=True), _texts_under_fields(cls)
    return [
        Option(
            _flag(field.name),
            _type_name(hints[field.name]),
            "…" if field.default is MISSING else str(field.default).replace("\n", "\\n"),
            helps.get(field.name, ""),
        )
        for field in strategy_fields(cls)
    ]


def _texts_under_fields(cls: type[Strategy]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):  # a class that was typed into an interpreter
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for field, text in pairwise(body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str() as words)):
                    texts[name] = " ".join(words.split())
    return texts


def _type_name(hint: Any) -> str:
    """`int ≥ 1`, `all | think | response`: what may be written behind the option."""
    if get_origin(hint) is Annotated:
        base, *limits = get_args(hint)
        signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
        bounds = [f"{sign} {getattr(limit, name)}" for limit in limits for name, sign in signs.items() if hasattr(limit, name)]
        return f"{_type_name(base)} {' and '.join(bounds)}".strip()
    if get_origin(hint) is Literal:
        return " | ".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        return " | ".join(_type_name(part) for part in get_args(hint) if part is not type(None))
    return {str: "text", int: "whole number", float: "number", bool: "flag"}.get(hint, getattr(hint, "__name__", str(hint)))


def paper(cls: type[Strategy]) -> str:
    """The first address in the docstring of the class or of its module."""
    for text in (cls.__doc__, sys.modules[cls.__module__].__doc__):
        if found := re.search(r"https?://[^\s)]+", text or ""):
            return found.group().rstrip(".,")
    return ""


def describe(cls: type[Strategy]) -> str:
    """`--n 16 --width 4`: the options with their defaults; a flag that is off in brackets."""
    return " ".join(
        f"[{option.flag}]" if option.default == "False" else f"{option.flag} {option.default}" for option in options_of(cls)
    )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _example(cls: type[Strategy], option: str) -> str:
    default = next(field.default for field in strategy_fields(cls) if _flag(field.name) == option)
    return "…" if default is MISSING else str(default)
