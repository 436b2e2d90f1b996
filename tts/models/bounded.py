"""Code that others wrote and that has to be run (chat templates, patterns): in a child process, with bounds on what it uses.

A template can loop for ever, or ask for more memory than there is in a single operation that Python cannot interrupt, as
{{ 'a' * 10**10 }} does. Only a process can be stopped there. A fork takes a few hundredths of a second, and renders as the
parent would.
"""

from __future__ import annotations

import gc
import os
import resource
import select
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from tts import interrupts
from tts.models.untrusted import reason

SECONDS = 5
"""Time that a computation may take, in seconds of a processor."""
WALL = 60.0
"""Time after which it is given up on a machine that is busy with other things, in seconds."""
MEMORY = 512 * 2**20
"""Memory that it may take beyond that of this process, in bytes."""
CHARACTERS = 2**20
"""Length of its result, in characters."""


class BoundError(ValueError):
    """A computation failed, or needed more than it may."""


def bounded(compute: Callable[[], str]) -> str:
    """Return the text that `compute` returns, computed in a child process.

    Raises:
        BoundError: It took more than SECONDS, MEMORY or CHARACTERS, or it raised; the message is the cause, in one line.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads; the child runs only Python, and ends
        pid = os.fork()
    if pid == 0:
        _answer(compute, writer)
    os.close(writer)
    interrupts.adopt(pid)
    try:
        data = _read(reader)
    finally:
        os.close(reader)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        interrupts.release(pid)
    if data[:1] == b"+":
        return data[1:].decode("utf-8", "surrogatepass")
    if data[:1] == b"-":
        raise BoundError(data[1:].decode("utf-8", "surrogatepass"))
    crashed = os.WIFSIGNALED(status) and os.WTERMSIG(status) not in (signal.SIGXCPU, signal.SIGKILL)
    raise BoundError("it ends the process" if crashed else f"it takes more than {SECONDS} seconds")


def _read(reader: int) -> bytes:
    """Return what the child writes until it ends, or until the time is over."""
    data, deadline = b"", time.monotonic() + WALL
    while select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
        part = os.read(reader, 2**16)
        if not part:
            return data
        data += part
    return b""


def _answer(compute: Callable[[], str], writer: int) -> NoReturn:
    """Be the child: write the result, or what went wrong, and end without anything that the parent's end is for."""
    try:
        gc.disable()  # objects of the parent are not this process's to finish
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in {0, 1, 2} - {writer}:
            os.dup2(nothing, stream)
        with suppress(ValueError, OSError):  # some systems lack one of these limits
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
        with suppress(ValueError, OSError):
            own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (own + MEMORY, own + MEMORY))
        try:
            text = compute()
            said = b"+" + text.encode("utf-8", "surrogatepass")
            if len(text) > CHARACTERS:
                said = f"-it makes a text of {len(text):,} characters; expected at most {CHARACTERS:,}".encode()
        except MemoryError:
            said = f"-it takes more than {MEMORY // 2**20} MiB of memory".encode()
        except BaseException as error:
            said = b"-" + reason(error).encode("utf-8", "surrogatepass")
        while said:
            said = said[os.write(writer, said) :]
    finally:
        os._exit(0)
