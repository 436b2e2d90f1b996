"""The commands of `tts`: the settings and the function of each, as import paths that are followed on use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Command:
    """A command. `work` is called with an instance of `settings` and the `Output`, and returns an exit code.

    A command with `plugins` also takes the options of plug-ins that its options name. `plugins` is called with the options that
    say so, by name, and returns classes by name; `work` then gets all options that were given, as a dict.
    """

    settings: str
    work: str
    heading: str
    plugins: str | None = None

    def load(self, which: str) -> Any:
        """The object at one of the paths."""
        module, _, name = getattr(self, which).partition(":")
        return getattr(import_module(module), name)

    @property
    def about(self) -> str:
        """What the command does, in a sentence."""
        text: Callable[..., Any] = self.load("settings")
        return " ".join((text.__doc__ or "").split("\n\n")[0].split())


RUN, LOOK, TRAIN, LIST = "Solve and score", "Look at results", "Train", "List what there is"

COMMANDS = {
    "run": Command("tts.commands.run:RunCommand", "tts.commands.run:run", RUN, "tts.commands.run:strategies"),
    "sweep": Command("tts.commands.sweep:SweepCommand", "tts.commands.sweep:sweep", RUN, "tts.commands.sweep:strategies"),
    "score": Command("tts.commands.score:ScoreCommand", "tts.commands.score:score", RUN),
    "runs": Command("tts.commands.look:RunsCommand", "tts.commands.look:runs", LOOK),
    "show": Command("tts.commands.look:ShowCommand", "tts.commands.look:show", LOOK),
    "compare": Command("tts.commands.look:CompareCommand", "tts.commands.look:compare", LOOK),
    "verify": Command("tts.commands.verify:VerifyCommand", "tts.commands.verify:verify", LOOK),
    "difficulty": Command("tts.commands.look:DifficultyCommand", "tts.commands.look:difficulty", LOOK),
    "report": Command("tts.commands.look:ReportCommand", "tts.commands.look:report", LOOK),
    "label": Command("tts.train.settings:LabelSettings", "tts.train.label.labeller:label", TRAIN),
    "train-prm": Command("tts.train.settings:TrainPRMSettings", "tts.train.prm.training:train", TRAIN),
    "select": Command("tts.train.settings:SelectSettings", "tts.train.select.pipeline:select", TRAIN),
    "sft": Command("tts.train.settings:SFTSettings", "tts.train.policy.sft:sft", TRAIN),
    "rl": Command("tts.train.settings:RLSettings", "tts.train.policy.rl:rl", TRAIN),
    "strategies": Command("tts.commands.listing:Strategies", "tts.commands.listing:listing", LIST),
    "scorers": Command("tts.commands.listing:Scorers", "tts.commands.listing:listing", LIST),
    "formats": Command("tts.commands.listing:Formats", "tts.commands.listing:listing", LIST),
    "engines": Command("tts.commands.listing:Engines", "tts.commands.listing:listing", LIST),
    "graders": Command("tts.commands.listing:Graders", "tts.commands.listing:listing", LIST),
    "benchmarks": Command("tts.commands.listing:Benchmarks", "tts.commands.listing:listing", LIST),
    "checkers": Command("tts.commands.listing:Checkers", "tts.commands.listing:listing", LIST),
}
