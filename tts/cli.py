"""The `tts` command.

Only the standard library is imported before signals are handled, so that Ctrl-C never meets an import.
"""

from __future__ import annotations

import sys

from tts.interrupts import guard


def entry() -> None:
    """The console script. A user's mistake is one line on standard error and exit code 2."""
    sys.exit(guard(lambda: main(sys.argv[1:])))


def main(arguments: list[str]) -> int:
    """Run a command line, without the program's name, and return its exit code (`tts.errors.Exit`)."""
    from tts.commands.line import Line
    from tts.data.files import FULL
    from tts.errors import Exit, InputError
    from tts.show.console import warn

    line = Line(arguments)
    try:
        code = line.run()
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except InputError as error:
        if line.verbose:
            import traceback

            traceback.print_exc()
        warn(" ".join(str(error).split()))
        return Exit.INPUT
    except BrokenPipeError:  # as in `tts runs | head`: whoever read has seen enough
        sys.stdout = None  # nothing is flushed into it at exit
        return Exit.OK
    except OSError as error:
        if error.errno not in FULL:
            raise
        warn(f"cannot write to {error.filename or 'standard output'}: {error.strerror}; make room, then give the command again")
        return Exit.INPUT


if __name__ == "__main__":
    entry()
