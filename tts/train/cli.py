"""The training commands: `tts label`, `train-prm`, `select`, `sft` and `rl`; `tts.train.settings` holds their options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from tts.train.settings import command

COMMANDS: dict[str, tuple[type[Any], Callable[[Any], None]]] = {}
"""A command's name to its settings, and the function that works on them. What that needs is imported where it runs."""


def add_to(app: typer.Typer) -> None:
    """Make these commands part of `tts`."""
    for name, (settings, work) in COMMANDS.items():
        app.command(name)(command(settings, work))
