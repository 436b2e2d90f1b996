"""The training commands: `tts label`, `train-prm`, `select`, `sft` and `rl`; `tts.train.settings` holds their options."""

from __future__ import annotations

from typing import Any

import typer

from tts.train.options import command
from tts.train.settings import RL, SFT, Label, Select, TrainPRM

COMMANDS: dict[str, tuple[type[Any], str]] = {
    "label": (Label, "tts.train.label.labeller:label"),
    "train-prm": (TrainPRM, "tts.train.prm.training:main"),
    "select": (Select, "tts.train.select.pipeline:select"),
    "sft": (SFT, "tts.train.policy.sft:sft"),
    "rl": (RL, "tts.train.policy.rl:rl"),
}
"""A command's name to its settings, whose docstring is its help, and the function that works on them, imported when called."""


def add_to(app: typer.Typer) -> None:
    """Make these commands part of `tts`."""
    for name, (settings, work) in COMMANDS.items():
        app.command(name)(command(settings, work))
