"""What ends a step: names to rules that generation and the parsing of finished text share."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from tts.errors import InputError

DEFAULT = "blank-line"
"""Name of the delimiter that ends steps unless another one is chosen (arXiv 2506.18896)."""

_MARKER = re.compile(r"\W*(\d{1,3}|[A-Za-z])[.)]")


@dataclass(frozen=True)
class Delimiter:
    """A rule for where steps end.

    Text is cut by `pattern`, which can look around; generation can only stop at strings. So `stops` are strings one of which is
    in every cut, and possibly elsewhere: there, a search continues until the text has a new step.
    """

    name: str
    """As --step-delimiter names it."""
    stops: tuple[str, ...]
    """Strings at which generation stops."""
    pattern: re.Pattern[str]
    """What lies between two steps; it belongs to neither."""
    looks_ahead: bool = False
    """Whether a cut depends on what follows it. Then a text in progress has only steps that have been cut off: the token that
    completes a stop string often holds the beginning of the next step as well (` The`)."""

    def split(self, text: str, *, in_progress: bool = False) -> tuple[str, ...]:
        """The steps of `text`: stripped, without empty ones. Windows line ends are recognised.

        `in_progress` says that more text will follow.
        """
        text = text.replace("\r\n", "\n")
        parts, start = [], 0
        for cut in self.pattern.finditer(text):
            part = text[start : cut.start()]
            if self.looks_ahead and "\n" not in cut[0] and _MARKER.fullmatch(part.strip()):
                continue  # the number of a list item is not a sentence
            parts.append(part)
            start = cut.end()
        if not (in_progress and self.looks_ahead):
            parts.append(text[start:])
        return tuple(step for step in map(str.strip, parts) if step)


PRESETS = {
    DEFAULT: Delimiter(DEFAULT, ("\n\n",), re.compile("\n\n")),
    "line": Delimiter("line", ("\n",), re.compile("\n")),
    # A sentence ends at a line end, at a full-width stop, and after one of .!? and a space. Not so before a small letter, after
    # "e.g." and "i.e.", and, for the sake of factorials, between an exclamation mark and an operator ("5! = 120").
    "sentence": Delimiter(
        "sentence",
        ("\n", ". ", "! ", "? ", "。", "！", "？"),
        re.compile(
            r"\n+|(?<=[.?])(?<!e\.g\.)(?<!i\.e\.)[ \t]+(?=[^\sa-z])|(?<=!)[ \t]+(?=[^\sa-z=+\-*/<>^,;:)])|(?<=[。！？])"
        ),
        looks_ahead=True,
    ),
}
"""Delimiters by name."""

ALIASES = {"reasonflux": DEFAULT}
"""Other names of presets: the paper and the code of ReasonFlux-PRM split traces at blank lines."""


@lru_cache
def delimiter(given: str) -> Delimiter:
    """The delimiter that `given` names, or the one that it is: a string of the user's own, in which \\n stands for a line end.

    Raises InputError for an empty string.
    """
    if preset := PRESETS.get(ALIASES.get(given, given)):
        return preset
    text = given.replace("\\n", "\n")
    if not text:
        raise InputError(
            f"a step delimiter must not be empty; choose {', '.join((*PRESETS, *ALIASES))}, or a string of your own"
        )
    for preset in PRESETS.values():
        if preset.stops == (text,):
            return preset
    return Delimiter(text, (text,), re.compile(re.escape(text)))
