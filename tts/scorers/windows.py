"""Windows: how a trace that is longer than a model's context is read, the problem and a part of the trace at a time.

Every window begins with the whole problem, followed by consecutive parts of the trace: steps for a reward model, tokens for the
policy's own probabilities. A part is rated once, in the first window that shows it. That is the window in which most of what
comes before the part can be seen; what comes after it does not matter to a model that reads from left to right. The next window
starts so that what it repeats fills at most half of the room, but repeats at least one step if there is room for it. So nothing
depends on what follows: a trace that continues keeps the rewards of its steps.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from tts.errors import InputError

Fits = Callable[[int, int], bool]
"""Whether parts from an index up to another one, which is excluded, fit into a window. Fewer parts fit where more do."""


class Span(NamedTuple):
    """The parts in a window, as half-open ranges of indices from 0."""

    begin: int
    """The first part shown."""
    rated: int
    """The first part that is rated; those before are its context."""
    end: int
    """The end of both ranges."""


def spans(sizes: Sequence[int], room: int, fits: Fits) -> Iterator[Span]:
    """Yield the windows over all parts of a trace, from left to right.

    Args:
        sizes: The approximate number of tokens of each part.
        room: The number of tokens that parts may take in a window.
        fits: Decides what is in a window. A part that does not fit alone has a window of its own.
    """
    ends = [0, *accumulate(sizes)]
    begin = rated = 0
    while rated < len(sizes):
        while begin < rated and not fits(begin, rated + 1):
            begin += 1
        guess = bisect_right(ends, ends[begin] + room) - 1
        end = min(max(guess, rated + 1), len(sizes))
        while end > rated + 1 and not fits(begin, end):
            end -= 1
        while end < len(sizes) and fits(begin, end + 1):
            end += 1
        yield Span(begin, rated, end)
        rated = end
        begin = min(bisect_left(ends, ends[end] - room // 2), end - 1)


def tail(sizes: Sequence[int], room: int, fits: Fits) -> int:
    """Return the index of the first part of the longest end of a trace that fits; the last part if that does not fit alone."""
    ends = [0, *accumulate(sizes)]
    last = len(sizes) - 1
    begin = min(bisect_left(ends, ends[-1] - room), last)
    while begin < last and not fits(begin, last + 1):
        begin += 1
    while begin > 0 and fits(begin - 1, last + 1):
        begin -= 1
    return begin


def shorten(text: str, starts: Callable[[], Sequence[int]], excess: Callable[[str], int]) -> tuple[str, int]:
    """Cut the beginning off a text that does not fit into a window alone.

    The end stays, as rewards are read there.

    Args:
        text: The text.
        starts: Returns the index in it at which each of its tokens begins.
        excess: Returns by how many tokens a text is too long.

    Returns:
        The rest of the text, and how many of its tokens were cut off.

    Raises:
        ValueError: Not one token fits.
    """
    rest, omitted = text, 0
    places: Sequence[int] = ()
    while (more := excess(rest)) > 0:
        places, omitted = places or starts(), omitted + more
        if omitted >= len(places):
            raise ValueError("not one token fits")
        rest = text[places[omitted] :]
    return rest, omitted


def length_of(window: bool | int, context: int) -> int:
    """Return how many tokens a model reads at once.

    Args:
        window: The option of scorers: a number of tokens, or a truth value for the model's context.
        context: The model's context in tokens.

    Raises:
        InputError: The option is something else, or longer than the context.
    """
    if isinstance(window, bool):
        return context
    if not isinstance(window, int) or not 1 <= window <= context:
        raise InputError(
            f"--scorer-arg window is {window!r}; it should be true, false, or a number of tokens up to the model's {context}"
        )
    return window


def too_long(tokens: int, length: int, name: str) -> InputError:
    """The error for a trace that is not to be read in windows, and does not fit."""
    return InputError(
        f"a trace of {tokens} tokens is longer than the {length} that {name!r} can read; omit --scorer-arg window=false to read"
        " it in windows"
    )


def no_room(tokens: int, length: int, name: str) -> InputError:
    """The error for a problem that leaves no room for its solution."""
    return InputError(
        f"the problem takes {tokens} of the {length} tokens that {name!r} reads at once, which leaves no room for a solution"
    )
