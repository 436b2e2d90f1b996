"""A strategy's fields as its options: `--width 4` becomes `cls(width=4)`, checked against the field's type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, get_type_hints

from tts.errors import InputError
from tts.types import Strategy


def strategy_fields(cls: type[Strategy]) -> tuple[Field[Any], ...]:
    """The fields that are options; InputError where the class is no dataclass."""
    if not is_dataclass(cls):
        raise InputError(f"the strategy {cls.__name__} is not a dataclass; put @dataclass(frozen=True) above it")
    return tuple(field for field in fields(cls) if field.init)


def parse_arguments(cls: type[Strategy], arguments: Sequence[str], also: Sequence[str] = ()) -> dict[str, str]:
    """`--n 4 --flag --name=x` as {"n": "4", "flag": "true", "name": "x"}.

    `also` names other options of the command, to suggest where one was misspelt. Raises InputError.
    """
    takes = [_flag(field.name) for field in strategy_fields(cls)]
    flags = {_flag(name) for name, hint in get_type_hints(cls).items() if hint is bool}
    values, rest = {}, list(arguments)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if not option.startswith("--"):
            raise InputError(f"unexpected argument {option!r}; options look like --n 16")
        if option not in takes:
            close = get_close_matches(option, [*takes, *also], n=1, cutoff=0.75)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise InputError(f"{cls.__name__} has no option {option}.{hint} It takes: {', '.join(takes) or 'none'}.")
        if not equals:
            if option in flags and (not rest or rest[0].startswith("--")):
                value = "true"
            elif not rest:
                raise InputError(f"{option} needs a value, as in {option} {_example(cls, option)}")
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


def describe(cls: type[Strategy]) -> str:
    """`--n 16 --width 4`: the options with their defaults."""
    return " ".join(f"{_flag(f.name)} {f.default if f.default is not MISSING else '…'}" for f in strategy_fields(cls))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _example(cls: type[Strategy], option: str) -> str:
    default = next(field.default for field in strategy_fields(cls) if _flag(field.name) == option)
    return "…" if default is MISSING else str(default)
