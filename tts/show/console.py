"""What all commands share when they report: one JSON object, one line for scripts, or a table for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Output:
    """How a command reports. Complaints and live views go to standard error in every mode."""

    as_json: bool = False
    quiet: bool = False

    @property
    def live(self) -> bool:
        """Whether a live view is wanted."""
        return not (self.as_json or self.quiet)

    def result(self, *, table: Callable[[], Any], data: Callable[[], Any], brief: object = None) -> None:
        """Print the result of a command.

        Args:
            table: Makes what people see, a rich renderable or a text.
            data: Makes the JSON value.
            brief: What --quiet prints, such as a path; None prints nothing.
        """
        if self.as_json:
            print(json.dumps(data(), ensure_ascii=False))
        elif self.quiet:
            if brief is not None:
                print(brief)
        else:
            print_rich(table())

    def watched(self, work: Callable[[], T], view: Callable[[Any], Any]) -> T:
        """Call `work`, with a live view on standard error where that is a terminal."""
        if not self.live or not sys.stderr.isatty():
            return work()
        from rich.console import Console

        with view(Console(stderr=True)):
            return work()


def warn(message: str) -> None:
    """Print one line to standard error."""
    print(f"tts: {message}", file=sys.stderr)


def print_rich(what: Any) -> None:
    """Print a table, a text or a tree on standard output. A plain string is printed as it is, so that paths stay whole."""
    from rich.console import Console

    Console(highlight=False).print(what, markup=False, soft_wrap=isinstance(what, str))
