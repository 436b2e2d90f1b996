"""A completion read as the paper reads it: the steps of a thinking trajectory, then those of a final response."""

from __future__ import annotations

from typing import NamedTuple

BOUNDARY = "\n\n"
"""Steps end at a blank line, in thinking and response alike (arXiv 2506.18896)."""

OPEN, CLOSE = "<think>", "</think>"


class Trajectory(NamedTuple):
    """Non-empty steps, stripped, without the `<think>` tags."""

    thinking: tuple[str, ...]
    response: tuple[str, ...]

    @property
    def steps(self) -> tuple[str, ...]:
        """Thinking steps, then response steps."""
        return (*self.thinking, *self.response)


def parse(text: str) -> Trajectory:
    """Tell thinking and response apart. A trace that never closes its thinking has no response yet.

    Chat templates that open `<think>` in the prompt leave only `</think>` in the completion; that reads the same.
    """
    thinking, closed, response = text.partition(CLOSE)
    if not closed and OPEN not in text:
        thinking, response = "", text
    return Trajectory(steps(thinking.replace(OPEN, "", 1)), steps(response))


def steps(text: str) -> tuple[str, ...]:
    """The blank-line separated pieces of `text` that hold anything. Windows line ends count as line ends."""
    pieces = text.replace("\r\n", "\n").split(BOUNDARY)
    return tuple(piece for piece in map(str.strip, pieces) if piece)
