"""Completions as thinking and response steps, the form in which a trajectory-aware reward model rates them."""

from __future__ import annotations

from typing import NamedTuple

BOUNDARY = "\n\n"
"""String that ends a step, in the thinking and the response alike: a blank line (arXiv 2506.18896)."""

OPEN, CLOSE = "<think>", "</think>"
"""Tags around the thinking."""


class Trajectory(NamedTuple):
    """The steps of a completion: stripped, not empty, and without the `<think>` tags."""

    thinking: tuple[str, ...]
    response: tuple[str, ...]

    @property
    def steps(self) -> tuple[str, ...]:
        """The thinking steps, then the response steps."""
        return (*self.thinking, *self.response)


def parse(text: str) -> Trajectory:
    """The thinking steps and the response steps of a completion, as `split` tells them apart."""
    thinking, response = split(text)
    return Trajectory(steps(thinking), steps(response))


def split(text: str) -> tuple[str, str]:
    """The thinking and the response of a completion, each as it was written.

    Text before `</think>` is thinking, also without a `<think>` tag, as chat templates may write that in the prompt. A
    completion that opens its thinking but does not close it has no response; one without either tag has only a response.
    """
    thinking, closed, response = text.partition(CLOSE)
    if not closed and OPEN not in text:
        thinking, response = "", text
    return thinking.replace(OPEN, "", 1), response


def is_thinking(text: str) -> bool:
    """Whether `text` has opened its thinking and not closed it, so that more thinking would follow."""
    return OPEN in text and CLOSE not in text


def response_of(text: str) -> str:
    """What follows the thinking: all of `text` if it has no thinking, nothing if it does not close it."""
    return "" if is_thinking(text) else text.partition(CLOSE)[2] if CLOSE in text else text


def steps(text: str) -> tuple[str, ...]:
    """The steps of `text`: its parts between blank lines, stripped, without empty ones. Windows line ends are recognised."""
    parts = text.replace("\r\n", "\n").split(BOUNDARY)
    return tuple(step for step in map(str.strip, parts) if step)
