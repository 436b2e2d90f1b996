"""What the commands share: reading key=value options, showing progress, saying what is wrong."""

from __future__ import annotations

import json
import sys
from typing import Any

from tts.errors import InputError


def key_values(option: str, pairs: list[str]) -> dict[str, Any]:
    """`["a=1", "b=x"]` as {"a": 1, "b": "x"}: a value is JSON where it can be."""
    values = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"{option} is {pair!r}; it should look like dtype=bfloat16")
        try:
            values[name] = json.loads({"True": "true", "False": "false", "None": "null"}.get(value, value))
        except ValueError:
            values[name] = value
    return values


def field_names(pairs: list[str]) -> dict[str, str]:
    """--field problem=question as {"problem": "question"}. Raises InputError for what is no field of a trace."""
    from tts.data.traces import FIELDS

    names = {name: str(value) for name, value in key_values("--field", pairs).items()}
    if unknown := [name for name in names if name not in FIELDS]:
        raise InputError(f"--field {unknown[0]} is no field of a trace; these are: {', '.join(FIELDS)}")
    return names


def watched(solve: Any, view: Any, *, hidden: bool) -> Any:
    """Call `solve`, with a live view where a person is looking."""
    if hidden or not sys.stderr.isatty():
        return solve()
    from rich.console import Console

    with view(Console(stderr=True)):
        return solve()


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"tts: {message}", file=sys.stderr)


def print_rich(what: Any) -> None:
    """A table, a text or a tree on standard output."""
    from rich.console import Console

    Console(highlight=False).print(what)
