"""Helpers shared by the commands: parsing key=value options, showing progress, printing warnings and tables."""

from __future__ import annotations

import json
import sys
from typing import Any

from tts.errors import InputError


def key_values(option: str, pairs: list[str]) -> dict[str, Any]:
    """Parse `["a=1", "b=x"]` into {"a": 1, "b": "x"}. A value is parsed as JSON if it is JSON, otherwise it is a string.

    Raises InputError, which names `option`, for an entry of another form.
    """
    values = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"{option} is {pair!r}; expected key=value, as in dtype=bfloat16")
        try:
            values[name] = json.loads({"True": "true", "False": "false", "None": "null"}.get(value, value))
        except ValueError:
            values[name] = value
    return values


def field_names(pairs: list[str]) -> dict[str, str]:
    """Parse the values of --field, as in problem=question. Raises InputError if a key is not a field of a trace."""
    from tts.data.traces import FIELDS

    names = {name: str(value) for name, value in key_values("--field", pairs).items()}
    if unknown := [name for name in names if name not in FIELDS]:
        raise InputError(f"--field {unknown[0]} is not a field of a trace; the fields are: {', '.join(FIELDS)}")
    return names


def watched(solve: Any, view: Any, *, hidden: bool) -> Any:
    """Call `solve`, with a live view if standard error is a terminal and the view is not hidden."""
    if hidden or not sys.stderr.isatty():
        return solve()
    from rich.console import Console

    with view(Console(stderr=True)):
        return solve()


def warn(message: str) -> None:
    """Print one line to standard error."""
    print(f"tts: {message}", file=sys.stderr)


def print_rich(what: Any) -> None:
    """Print a table, a text or a tree of rich to standard output."""
    from rich.console import Console

    Console(highlight=False).print(what)
