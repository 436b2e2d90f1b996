r"""Formats: how each public process reward model is shown a trace, and how its rewards are read.

A format has a function from (text, problem, steps) to the fragments that the model is shown, with READ after every step, and a
readout, which says how a reward is computed from the hidden state there. A checkpoint's format is recognised by `matches`, or
named. A file mine.py with a format of your own, used by `--scorer-format mine.py:MINE`, looks like this (it is VersaPRM's):

    from tts.scorers.formats import READ, Format, TwoTokens


    def build(text, problem, steps):
        fragments = [*text.opening, f"{problem} \n\n"]
        for step in steps:
            fragments += [step, " \n\n\n\n", READ]
        return fragments


    MINE = Format(about="steps followed by four line ends", build=build, readout=TwoTokens("+", "-"))

Everything that such a file needs can be imported from here: `Format`, `Text`, the fragments `READ` and `CUT`, the readouts
`TwoClasses`, `TokenClasses`, `TwoTokens`, `ValueHead`, `TraceHead` and `Implicit`, and `HeadReadout` for a readout of your own.
Importing this module does not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tts.errors import InputError
from tts.models import chat, checkpoints
from tts.models.chat import Encoded, Fragment, Mark, Turn
from tts.plugins import Registry
from tts.scorers.readouts import (
    TRACE_HEAD,
    HeadReadout,
    Implicit,
    Readout,
    TokenClasses,
    TraceHead,
    TwoClasses,
    TwoTokens,
    ValueHead,
)
from tts.trajectory import BOUNDARY

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "CUT",
    "FORMATS",
    "READ",
    "Format",
    "Fragment",
    "HeadReadout",
    "Implicit",
    "Readout",
    "Text",
    "TokenClasses",
    "TraceHead",
    "TwoClasses",
    "TwoTokens",
    "ValueHead",
    "encode",
    "format_of",
]

READ, CUT = Mark.READ, Mark.CUT

NEVER = r"(?!)"
"""A pattern that matches nothing."""


@dataclass(frozen=True)
class Format:
    """How one family of reward models is shown a trace, and how its rewards are read."""

    about: str
    """The checkpoints that use it, for the list of formats."""
    build: Callable[[Text, str, Sequence[str]], Sequence[Fragment]]
    """(text, problem, steps) to what the model is shown, with a READ after each step."""
    readout: Readout
    """How a reward is computed at a READ."""
    matches: str = NEVER
    """A regular expression that recognises a checkpoint.

    It is searched for in the checkpoint's own name, in `architecture:` followed by the architecture of its config.json, and in
    `file:reward_head.pt` if there is such a file. By default the format is used only when it is named.
    """
    by_step: bool = True
    """False for a model that rates only whole traces; `build` then gets the trace as one step."""


class Text:
    """A checkpoint's tokenizer, as formats use it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self._vocabulary = tokenizer, tokenizer.get_vocab()

    def chat(self, *turns: tuple[str, Sequence[Fragment]]) -> list[Fragment]:
        """Put turns, (role, fragments) each, into the model's own chat template."""
        return chat.render(self.tokenizer, [Turn(*turn) for turn in turns], open_turn=False)

    def token(self, text: str) -> int:
        """Return the id of a control token. Raises InputError if the tokenizer lacks it."""
        token = self._vocabulary.get(text)
        if token is None:
            raise InputError(
                f"the tokenizer of {self.tokenizer.name_or_path!r} has no {text} token, at which this format reads rewards"
            )
        return int(token)

    @property
    def bos(self) -> list[Fragment]:
        """The token that begins a text, or nothing if the tokenizer has none."""
        return [] if self.tokenizer.bos_token_id is None else [int(self.tokenizer.bos_token_id)]

    @property
    def opening(self) -> list[Fragment]:
        """What the tokenizer itself puts at the beginning of a text."""
        begun = self.tokenizer("")["input_ids"]
        return [*self.bos, CUT] if begun and begun[0] == self.tokenizer.bos_token_id else []


def extra_0(text: Text, problem: str, steps: Sequence[str]) -> list[Fragment]:
    """The problem as the user's turn; as the assistant's, the steps, each followed by `<extra_0>`."""
    separator = text.token("<extra_0>")
    return text.chat(("user", [problem]), ("assistant", [fragment for step in steps for fragment in (step, separator, READ)]))


def extra_0_with_system(text: Text, problem: str, steps: Sequence[str]) -> list[Fragment]:
    """The format of `extra_0` after the system prompt of Qwen's mathematics models."""
    system = "Please reason step by step, and put your final answer within \\boxed{}."
    separator = text.token("<extra_0>")
    answer = [fragment for step in steps for fragment in (step, separator, READ)]
    return text.chat(("system", [system]), ("user", [problem]), ("assistant", answer))


def problem_and_completion(text: Text, problem: str, steps: Sequence[str]) -> list[Fragment]:
    """The problem followed by the trace, without anything in between."""
    return [
        *text.opening,
        problem + "".join(steps),
        READ,
    ]  # one text, so that no control token is formed where two texts meet


def math_shepherd(text: Text, problem: str, steps: Sequence[str]) -> list[Fragment]:
    """The problem, then a line `Step 1: … ки` for each step."""
    fragments: list[Fragment] = [*text.opening, problem]
    for i, step in enumerate(steps, 1):
        label = "" if re.match(r"Step \d+:", step) else f"Step {i}: "
        fragments += [" " if i == 1 else "", f"{label}{step}", " ки", READ, "\n"]
    return fragments


def rlhflow(text: Text, problem: str, steps: Sequence[str]) -> list[Fragment]:
    """Each step as a user's turn that the assistant answers with `+`; a reward is read just before that token."""
    turns: list[tuple[str, list[Fragment]]] = []
    for i, step in enumerate(steps):
        turns += [("user", [step if i else f"{problem} {step}".strip()]), ("assistant", [READ, "+"])]
    return text.chat(*turns)


def skywork(text: Text, problem: str, steps: Sequence[str]) -> list[Fragment]:
    """The problem and each step on its own line, with steps and line ends tokenised separately."""
    fragments: list[Fragment] = [*text.bos, f"{problem}\n"]
    for step in steps:
        fragments += [CUT, " ".join(step.split("\n")), CUT, "\n", READ]
    return fragments


def eurus(text: Text, problem: str, steps: Sequence[str]) -> list[Fragment]:
    """A conversation, with positions where the answer begins and at the end of each step."""
    fragments: list[Fragment] = [READ]
    for i, step in enumerate(steps):
        fragments += [BOUNDARY if i else "", step, READ]
    return text.chat(("user", [problem]), ("assistant", fragments))


def versa(text: Text, problem: str, steps: Sequence[str]) -> list[Fragment]:
    """The problem and the steps, each step followed by ` \\n\\n\\n\\n`, which is one token."""
    fragments: list[Fragment] = [*text.opening, f"{problem} \n\n"]
    for step in steps:
        fragments += [step, " \n\n\n\n", READ]
    return fragments


def trl(text: Text, problem: str, steps: Sequence[str], separator: str = BOUNDARY) -> list[Fragment]:
    """The problem, the steps and the separators, each tokenised separately as by TRL's PRMTrainer."""
    fragments: list[Fragment] = [*text.bos, CUT, problem]
    for step in steps:
        fragments += [CUT, step, CUT, separator, READ]
    return fragments


def trl_lines(text: Text, problem: str, steps: Sequence[str]) -> list[Fragment]:
    """The format of `trl` with line ends as separators."""
    return trl(text, problem, steps, "\n")


_BUILTIN = {
    "qwen-math": Format(
        about="Qwen/Qwen2.5-Math-PRM-7B and -72B",
        matches=r"Qwen2\.5-Math-(7B-)?PRM",
        build=extra_0_with_system,
        readout=TwoClasses(),
    ),
    "reasonflux": Format(
        about="Gen-Verse/ReasonFlux-PRM-7B, and any checkpoint with a two-class step head",
        matches=r"architecture:Qwen2ForProcessRewardModel",
        build=extra_0,
        readout=TwoClasses(),
    ),
    "reasonflux-trace": Format(
        about="Gen-Verse/ReasonFlux-PRM-1.5B: one reward for a trace, from reward_head.pt",
        matches=r"ReasonFlux-PRM-1\.5B|file:reward_head\.pt",
        build=problem_and_completion,
        readout=TraceHead(),
        by_step=False,
    ),
    "math-shepherd": Format(
        about="peiyi9979/math-shepherd-mistral-7b-prm",
        matches=r"math-shepherd",
        build=math_shepherd,
        readout=TwoTokens("+", "-"),
    ),
    "rlhflow": Format(
        about="RLHFlow/Llama3.1-8B-PRM-Deepseek-Data and -Mistral-Data",
        matches=r"RLHFlow|PRM-(Deepseek|Mistral)-Data",
        build=rlhflow,
        readout=TwoTokens("+", "-"),
    ),
    "skywork": Format(
        about="Skywork/Skywork-o1-Open-PRM-Qwen-2.5-1.5B and -7B",
        matches=r"Skywork.*PRM|architecture:Qwen2ForPrmModel",
        build=skywork,
        readout=ValueHead(),
    ),
    "eurus": Format(
        about="PRIME-RL/EurusPRM-Stage1 and -Stage2: implicit rewards, relative to a reference model",
        matches=r"EurusPRM",
        build=eurus,
        readout=Implicit("Qwen/Qwen2.5-Math-7B-Instruct"),
    ),
    "versa": Format(
        about="UW-Madison-Lee-Lab/VersaPRM",
        matches=r"VersaPRM",
        build=versa,
        readout=TwoTokens("+", "-"),
    ),
    "trl": Format(
        about="token classification, steps separated by blank lines (TRL's PRMTrainer, HuggingFaceH4/…-PRM-0.2)",
        matches=r"architecture:\w+ForTokenClassification",
        build=trl,
        readout=TokenClasses(),
    ),
    "trl-lines": Format(
        about="token classification, steps separated by line ends",
        build=trl_lines,
        readout=TokenClasses(),
    ),
}
"""The built-in formats by name, in the order in which a checkpoint is compared with them."""

FORMATS: Registry[Format] = Registry(
    "format",
    _BUILTIN,
    accept=lambda found: found if isinstance(found, Format) else None,
    expected="a tts.scorers.formats.Format",
)


def format_of(name: str, chosen: str | None = None) -> Format:
    """Return the format of a checkpoint.

    Args:
        name: A bundled model's name, a folder or a hub id. Its name, its config.json and its files are compared with FORMATS.
        chosen: The format, which overrides the comparison: a name of FORMATS, or `file.py:NAME`.

    Raises:
        InputError: There is no such format, or none matches.
    """
    if chosen is not None:
        return FORMATS.get(chosen)
    config = checkpoints.load_config(name)
    architectures = config.get("architectures") or []
    own = name if checkpoints.locate(name) == name and name.count("/") == 1 else name.rstrip("/").rpartition("/")[2]
    signs = [own, *(f"architecture:{architecture}" for architecture in architectures)]
    signs += [f"file:{file.name}" for file in checkpoints.files(name) if file.name == TRACE_HEAD]
    for format in FORMATS.all().values():
        if any(re.search(format.matches, sign) for sign in signs):
            return format
    kind = ", ".join(architectures) or "unknown architecture"
    raise InputError(
        f"{name!r} ({kind}) is not recognised as a process reward model. Pass a language model as --model, and a process reward"
        f" model such as arith-prm or Gen-Verse/ReasonFlux-PRM-7B as --scorer. If it is one, name its format with"
        f" --scorer-format: {', '.join(FORMATS)}"
    )


def encode(format: Format, text: Text, problem: str, steps: Sequence[str]) -> Encoded:
    """Return the token ids that a model is shown, and the position at which each step's reward is read."""
    return chat.encode(text.tokenizer, format.build(text, problem, steps))
