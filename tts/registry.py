"""Names to strategies: built in, installed, or a class in a file you point at."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import TypeVar

from tts.errors import InputError
from tts.plugins import load_module
from tts.types import Strategy

S = TypeVar("S", bound=type[Strategy])
_strategies: dict[str, type[Strategy]] = {}


def strategy(name: str) -> Callable[[S], S]:
    """Register a strategy class under `name`, the word after `tts run --strategy`."""

    def register(cls: S) -> S:
        taken = _strategies.setdefault(name, cls)
        if taken is not cls:
            raise ValueError(f"strategy {name!r} is already {taken.__module__}.{taken.__qualname__}")
        return cls

    return register


def known_strategies() -> dict[str, type[Strategy]]:
    """All strategies that have a name: the built-in ones, and those of installed packages (group `tts.strategies`)."""
    importlib.import_module("tts.strategies")
    for entry in entry_points(group="tts.strategies"):
        _strategies.setdefault(entry.name, entry.load())
    return dict(sorted(_strategies.items()))


def get_strategy(name: str) -> type[Strategy]:
    """Look up `bon`, `package.module:Class` or `path/to/file.py:Class`; InputError where there is no such strategy."""
    if ":" in name:
        return _load(*name.rsplit(":", 1))
    known = known_strategies()
    if name not in known:
        close = get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise InputError(f"no strategy named {name!r}.{hint} Known: {', '.join(known)}. For your own, give file.py:Class.")
    return known[name]


def strategy_name(cls: type[Strategy]) -> str:
    """The registered name, else the class's."""
    return next((name for name, known in _strategies.items() if known is cls), cls.__name__)


def _load(source: str, attribute: str) -> type[Strategy]:
    module = load_module(source, f"strategy {attribute}")
    cls = getattr(module, attribute, None)
    if not (isinstance(cls, type) and issubclass(cls, Strategy)):
        found = [n for n, v in vars(module).items() if isinstance(v, type) and issubclass(v, Strategy) and v is not Strategy]
        raise InputError(f"{source} has no strategy class {attribute!r}; it has: {', '.join(found) or 'none'}")
    return cls
