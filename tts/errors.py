"""The one exception that means: the user can mend this."""


class InputError(ValueError):
    """Bad input. The message is one line that says what was given, what was expected and what to do next.

    The command line prints it without a traceback and exits with code 2.
    """
