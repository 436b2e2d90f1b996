"""Formats: how each public process reward model is shown a trace, and where and how its rewards are read.

A format is a row of FORMATS: a function from (problem, steps) to text with a READ mark behind every step, and a readout. To add
one, write that function, choose or write a readout in `tts.scorers.heads`, and say which checkpoints it is for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tts.errors import InputError
from tts.models import chat, checkpoints
from tts.models.chat import Encoded, Mark, Part, Turn
from tts.plugins import Registry
from tts.trajectory import BOUNDARY

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tts.scorers.heads import Load

READ, CUT = Mark.READ, Mark.CUT


@dataclass(frozen=True)
class Format:
    """How one family of reward models reads a trace."""

    about: str
    """The checkpoints that it is for, or what they look like."""
    matches: str
    """A pattern, searched in a checkpoint's name and in `architecture:` followed by its architecture."""
    build: Callable[[Text, str, Sequence[str]], list[Part]]
    """The text of a problem and its steps, a READ behind each."""
    readout: str
    """The function of `tts.scorers.heads` that loads the checkpoint, and its arguments."""
    by_step: bool = True
    """False where it rates a trace as a whole only; `build` then gets the trace as one step."""
    reference: str | None = None
    """The reference model of an implicit reward, which is read from where the answer begins on."""
    vllm: bool = False
    """Whether vLLM computes its readout."""

    def load(self) -> Load:
        """The function that loads a checkpoint with this format's readout."""
        from tts.scorers import heads

        name, _, arguments = self.readout.partition(" ")
        load: Any = getattr(heads, name)
        return load(*arguments.split()) if arguments else load  # type: ignore[no-any-return]


class Text:
    """A checkpoint's tokenizer, as formats use it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self._vocabulary = tokenizer, tokenizer.get_vocab()

    def chat(self, *turns: tuple[str, Sequence[Part]]) -> list[Part]:
        """Turns in the model's own chat template."""
        return chat.render(self.tokenizer, [Turn(*turn) for turn in turns], open_turn=False)

    def token(self, text: str) -> int:
        """The id of a control token. Raises InputError where the tokenizer lacks it."""
        token = self._vocabulary.get(text)
        if token is None:
            raise InputError(
                f"the tokenizer of {self.tokenizer.name_or_path!r} has no {text} token, which this reward model reads steps at"
            )
        return int(token)

    @property
    def bos(self) -> list[Part]:
        """The token that begins a text, if there is one."""
        return [] if self.tokenizer.bos_token_id is None else [int(self.tokenizer.bos_token_id)]

    @property
    def opening(self) -> list[Part]:
        """What the tokenizer itself puts before a text."""
        begun = self.tokenizer("")["input_ids"]
        return [*self.bos, CUT] if begun and begun[0] == self.tokenizer.bos_token_id else []


def extra_0(text: Text, problem: str, steps: Sequence[str]) -> list[Part]:
    """The problem as the user, as the assistant every step followed by `<extra_0>`."""
    separator = text.token("<extra_0>")
    return text.chat(("user", [problem]), ("assistant", [part for step in steps for part in (step, separator, READ)]))


def extra_0_with_system(text: Text, problem: str, steps: Sequence[str]) -> list[Part]:
    """The same behind the system prompt of Qwen's mathematics models."""
    system = "Please reason step by step, and put your final answer within \\boxed{}."
    separator = text.token("<extra_0>")
    answer = [part for step in steps for part in (step, separator, READ)]
    return text.chat(("system", [system]), ("user", [problem]), ("assistant", answer))


def problem_and_completion(text: Text, problem: str, steps: Sequence[str]) -> list[Part]:
    """Both as they are, one behind the other."""
    return [*text.opening, problem + "".join(steps), READ]  # one text: no token may come about where two meet


def math_shepherd(text: Text, problem: str, steps: Sequence[str]) -> list[Part]:
    """`Step 1: … ки`, a line each."""
    parts: list[Part] = [*text.opening, problem]
    for i, step in enumerate(steps, 1):
        label = "" if re.match(r"Step \d+:", step) else f"Step {i}: "
        parts += [" " if i == 1 else "", f"{label}{step}", " ки", READ, "\n"]
    return parts


def rlhflow(text: Text, problem: str, steps: Sequence[str]) -> list[Part]:
    """Every step a user's turn that the assistant answers with `+`; read where that is to come."""
    turns: list[tuple[str, list[Part]]] = []
    for i, step in enumerate(steps):
        turns += [("user", [step if i else f"{problem} {step}".strip()]), ("assistant", [READ, "+"])]
    return text.chat(*turns)


def skywork(text: Text, problem: str, steps: Sequence[str]) -> list[Part]:
    """The problem and every step on a line of its own; steps and their line ends tokenised apart."""
    parts: list[Part] = [*text.bos, f"{problem}\n"]
    for step in steps:
        parts += [CUT, " ".join(step.split("\n")), CUT, "\n", READ]
    return parts


def eurus(text: Text, problem: str, steps: Sequence[str]) -> list[Part]:
    """A conversation; read where the answer begins, and at the end of every step."""
    parts: list[Part] = [READ]
    for i, step in enumerate(steps):
        parts += [BOUNDARY if i else "", step, READ]
    return text.chat(("user", [problem]), ("assistant", parts))


def versa(text: Text, problem: str, steps: Sequence[str]) -> list[Part]:
    """Steps parted by ` \\n\\n\\n\\n`, which is one token."""
    parts: list[Part] = [*text.opening, f"{problem} \n\n"]
    for step in steps:
        parts += [step, " \n\n\n\n", READ]
    return parts


def trl(text: Text, problem: str, steps: Sequence[str], separator: str = BOUNDARY) -> list[Part]:
    """The problem, every step and every separator tokenised apart, as TRL's PRMTrainer does."""
    parts: list[Part] = [*text.bos, CUT, problem]
    for step in steps:
        parts += [CUT, step, CUT, separator, READ]
    return parts


def trl_lines(text: Text, problem: str, steps: Sequence[str]) -> list[Part]:
    """The same with line ends as separators."""
    return trl(text, problem, steps, "\n")


_BUILTIN = {
    "qwen-math": Format(
        "Qwen/Qwen2.5-Math-PRM-7B and -72B",
        r"Qwen2\.5-Math-(7B-)?PRM",
        extra_0_with_system,
        "two_classes",
        vllm=True,
    ),
    "reasonflux": Format(
        "Gen-Verse/ReasonFlux-PRM-7B; any checkpoint with a two-class step head",
        r"architecture:Qwen2ForProcessRewardModel",
        extra_0,
        "two_classes",
        vllm=True,
    ),
    "reasonflux-trace": Format(
        "Gen-Verse/ReasonFlux-PRM-1.5B: one reward for a trace, by reward_head.pt",
        r"ReasonFlux-PRM-1\.5B|file:reward_head\.pt",
        problem_and_completion,
        "trace_head",
        by_step=False,
    ),
    "math-shepherd": Format(
        "peiyi9979/math-shepherd-mistral-7b-prm", r"math-shepherd", math_shepherd, "two_tokens + -"
    ),
    "rlhflow": Format(
        "RLHFlow/Llama3.1-8B-PRM-Deepseek-Data and -Mistral-Data",
        r"RLHFlow|PRM-(Deepseek|Mistral)-Data",
        rlhflow,
        "two_tokens + -",
    ),
    "skywork": Format(
        "Skywork/Skywork-o1-Open-PRM-Qwen-2.5-1.5B and -7B",
        r"Skywork.*PRM|architecture:Qwen2ForPrmModel",
        skywork,
        "value_head",
    ),
    "eurus": Format(
        "PRIME-RL/EurusPRM-Stage1 and -Stage2: implicit, beside a reference model",
        r"EurusPRM",
        eurus,
        "implicit",
        reference="Qwen/Qwen2.5-Math-7B-Instruct",
    ),
    "versa": Format("UW-Madison-Lee-Lab/VersaPRM", r"VersaPRM", versa, "two_tokens + -"),
    "trl": Format(
        "token classification, steps parted by a blank line (TRL's PRMTrainer, HuggingFaceH4/…-PRM-0.2)",
        r"architecture:\w+ForTokenClassification",
        trl,
        "token_classes",
        vllm=True,
    ),
    "trl-lines": Format("the same, steps parted by a line end", r"$^", trl_lines, "token_classes", vllm=True),
}  # fmt: skip
"""In the order in which a checkpoint is compared with them."""

FORMATS: Registry[Format] = Registry(
    "format",
    _BUILTIN,
    accept=lambda found: found if isinstance(found, Format) else None,
    expected="a tts.scorers.formats.Format",
)


def format_of(name: str, chosen: str | None = None) -> Format:
    """The format of a checkpoint, by its name, its config.json or its files; `chosen` overrides. Raises InputError."""
    if chosen is not None:
        return FORMATS.get(chosen)
    config = checkpoints.load_config(name)
    architectures = config.get("architectures") or []
    own = name if checkpoints.locate(name) == name and name.count("/") == 1 else name.rstrip("/").rpartition("/")[2]
    signs = [own, *(f"architecture:{architecture}" for architecture in architectures)]
    signs += [f"file:{file.name}" for file in checkpoints.files(name) if file.name == "reward_head.pt"]
    for format in FORMATS.all().values():
        if any(re.search(format.matches, sign) for sign in signs):
            return format
    kind = ", ".join(architectures) or "an unnamed architecture"
    raise InputError(
        f"{name!r} has no reward head that I know ({kind}): a language model is given as --model, and a process reward model"
        f" such as arith-prm or Gen-Verse/ReasonFlux-PRM-7B as --scorer; if it is one, say how it reads a trace by"
        f" --scorer-format, one of {', '.join(FORMATS)}"
    )


def encode(format: Format, text: Text, problem: str, steps: Sequence[str]) -> Encoded:
    """Token ids, and the position at which each step's reward is read."""
    return chat.encode(text.tokenizer, format.build(text, problem, steps))
