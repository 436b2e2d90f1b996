"""The one exception that means that the user can fix this, and the exit codes of the commands."""

from __future__ import annotations

from enum import IntEnum


class InputError(ValueError):
    """Bad input. The message is one line that says what was given, what was expected and what to do next.

    The command line prints it without a traceback and exits with code 2.
    """


class UnsupportedError(InputError):
    """An engine or a scorer cannot do what a strategy asks of it, whatever the problem: it ends a run."""


class Exit(IntEnum):
    """Exit codes of `tts`, beside 128 + n for a command that a signal n ended."""

    OK = 0
    FAILURES = 1
    INPUT = 2


EXIT_CODES = {
    "0": "Success.",
    "1": "The command finished, but some problems or traces failed; a line on standard error says where they are.",
    "2": "Bad input or a full disk: an option, a file or a model cannot be used; one line on standard error says what to do.",
    "129, 130, 143": "Ended by SIGHUP, SIGINT (Ctrl-C) or SIGTERM. What was finished is kept; a line says how to resume.",
}
"""What each exit code means, for the reference."""
