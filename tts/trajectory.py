"""Completions as thinking and response steps, the form in which a trajectory-aware reward model rates them.

Models mark their thinking with different tags. TAGS has all that are recognised, and only this module looks for them: whatever
the tags were, a parsed trajectory is the same.
"""

from __future__ import annotations

from typing import NamedTuple

from tts.delimiters import DEFAULT, Delimiter, delimiter

BOUNDARY = "\n\n"
"""What is put between two steps where steps become one text: a blank line, which also ends a step unless another delimiter is
chosen (`tts.delimiters`)."""

BLANK_LINE = delimiter(DEFAULT)

BEGINNING = 4096
"""Characters of a text in which `is_one_step` looks first."""


class Tags(NamedTuple):
    """The tags around a thinking part."""

    open: str
    close: str


TAGS = (
    Tags("<think>", "</think>"),  # DeepSeek-R1, Qwen3 and most others
    Tags("[THINK]", "[/THINK]"),  # Magistral
    Tags("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1, OpenThoughts
    Tags("<thinking>", "</thinking>"),
    Tags("<seed:think>", "</seed:think>"),  # Seed-OSS
    Tags("<thought>", "</thought>"),  # EXAONE Deep
    Tags("◁think▷", "◁/think▷"),  # Kimi
    Tags("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A Reasoning
)
"""The pairs of tags that mark thinking. The first is the normal form, in which `tts` writes thinking itself."""

OPEN, CLOSE = TAGS[0]

WRAPPERS = ("<|begin_of_solution|>", "<|end_of_solution|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>")
"""Tags that some of these models write around the response; they are not part of it."""


class Trajectory(NamedTuple):
    """The steps of a completion: stripped, not empty, and without tags."""

    thinking: tuple[str, ...]
    response: tuple[str, ...]

    @property
    def steps(self) -> tuple[str, ...]:
        """The thinking steps, then the response steps."""
        return (*self.thinking, *self.response)


def tags_in(text: str) -> Tags | None:
    """The tags that mark the thinking of `text`: the pair whose tag comes first. None if there is no tag."""
    first, end = None, len(text)
    for tags in TAGS:
        for tag in tags:
            if (at := text.find(tag, 0, end)) >= 0:  # searching only before what was found keeps this fast for long texts
                first, end = tags, at
    return first


def is_thinking(text: str) -> bool:
    """Whether `text` has opened its thinking and not closed it, so that more thinking would follow."""
    tags = tags_in(text)
    return tags is not None and tags.close not in text


def response_of(text: str) -> str:
    """What follows the thinking: all of `text` if it has no thinking, nothing if it does not close it."""
    return split(text)[1]


def with_tags(text: str, tags: Tags = TAGS[0]) -> str:
    """`text` with other tags around its thinking, by default those of the normal form."""
    own = tags_in(text)
    if own is None or own == tags:
        return text
    thinking, closed, response = text.partition(own.close)
    return f"{thinking.replace(own.open, tags.open, 1)}{tags.close if closed else ''}{response}"


def from_step(text: str, first: int, by: Delimiter = BLANK_LINE) -> str:
    """The end of `text` from its step number `first` (from 0) on, with the normal tags around what that has of its thinking."""
    thinking, response = parse(text, by)
    answer = BOUNDARY.join(response[max(0, first - len(thinking)) :])
    if first >= len(thinking):
        return answer
    closed = "" if is_thinking(text) else f"\n{CLOSE}\n\n{answer}"
    return f"{OPEN}\n{BOUNDARY.join(thinking[first:])}{closed}"


def parse(text: str, by: Delimiter = BLANK_LINE, *, in_progress: bool = False) -> Trajectory:
    """The thinking steps and the response steps of a completion, as `split` tells them apart.

    Args:
        text: The completion.
        by: What ends a step. Default: a blank line.
        in_progress: Whether more text will follow, so that its last step may not have ended yet.
    """
    thinking, response = split(text, by.stops[0])
    open_thinking = in_progress and is_thinking(text)
    return Trajectory(
        by.split(thinking, in_progress=open_thinking), by.split(response, in_progress=in_progress and not open_thinking)
    )


def is_one_step(text: str, by: Delimiter = BLANK_LINE) -> bool:
    """Whether a completion has a single step. Most texts show in their beginning that they have more."""
    return len(parse(text[:BEGINNING], by).steps) < 3 and len(parse(text, by).steps) == 1


def split(text: str, boundary: str = BOUNDARY) -> tuple[str, str]:
    """The thinking and the response of a completion, each as it was written, with `boundary` in place of a tag.

    Text before `</think>` is thinking, also without a `<think>` tag, as chat templates may write that in the prompt. A
    completion that opens its thinking but does not close it has no response; one without either tag has only a response. The
    same holds for the other TAGS.
    """
    thinking, response = "", text
    if (tags := tags_in(text)) is not None:
        thinking, _, response = text.partition(tags.close)
        thinking = thinking.replace(tags.open, boundary, 1)
    for tag in WRAPPERS:
        response = response.replace(tag, boundary)
    return thinking, response


def steps(text: str) -> tuple[str, ...]:
    """The parts of `text` between blank lines, stripped, without empty ones."""
    return BLANK_LINE.split(text)
