"""How a command ends on Ctrl-C, SIGTERM and SIGHUP: soon, with one line that says how to resume, and with exit code 128 + n.

By default a command leaves at once: every file it writes survives `kill -9`. Inside `stopping` it first stops what is under
way, as an event loop cancels its task, or a training saves a checkpoint. No exception is ever raised at an arbitrary place of
somebody else's code, where it may be swallowed, printed or turned into another one.

This module imports little, since it has to be in place before anything slow is imported.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import inf
from time import monotonic
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 2.5
"""Seconds after which a command that does not stop is made to leave."""
SAME = 1.0
"""Seconds within which a second signal counts as the first: launchers pass on a Ctrl-C that a terminal has sent already."""
DEFAULT = "interrupted; nothing was written"


class Interrupted(KeyboardInterrupt):
    """Raised at the end of `stopping` after a signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclass
class _State:
    """What became of the command that `guard` runs."""

    number: int | None = None
    """The first signal that came."""
    since: float = inf
    deadline: float = inf
    patient: bool = False
    """Whether what is under way may take its time."""
    ending: int | None = None
    """Exit code of a command that is done."""
    messages: list[Callable[[], str]] = field(default_factory=list)
    final: str | None = None
    """What was to be said when the interrupt left its innermost block."""
    stops: list[Callable[[], object]] = field(default_factory=list)
    children: set[int] = field(default_factory=set)
    said: threading.Lock = field(default_factory=threading.Lock)


_installed = False
_pipe: int | None = None
"""Where the interpreter writes the number of every signal that comes, and `_watch` reads it; made once in a process."""
_state = _State()


def guard(command: Callable[[], int | None]) -> int:
    """Run `command` as all that this process does, and return its exit code. Must be called in the main thread.

    Where a signal stops it, say so in a line, and return 128 + the signal's number; whatever else goes wrong then is not shown.
    """
    _install()
    code = 1
    try:
        code = command() or 0
    except SystemExit as exit:  # as rich raises where nobody reads its output
        code = exit.code if isinstance(exit.code, int) else 0 if exit.code is None else 1
        if _state.number is None:
            raise
    except BaseException as error:
        if _state.number is None and not isinstance(error, KeyboardInterrupt):
            raise
        _state.number = _state.number or signal.SIGINT
    finally:
        if _state.number is not None:
            _say(lambda text: print(f"tts: {text}", file=sys.stderr))
            _end_children()
            code = 128 + _state.number
        _state.ending = code  # from here on a signal cannot change how it ends, only when
    return code


@contextmanager
def on_interrupt(message: Callable[[], str]) -> Iterator[None]:
    """Have `message` make the line that says what is kept and how to resume, should a signal come; the innermost block's holds.

    It may be called in another thread, in the midst of anything that the block does.
    """
    before = list(_state.messages)
    _state.messages.append(message)
    try:
        yield
    except KeyboardInterrupt:
        _state.final = _state.final or message()
        raise
    finally:
        if before or sys.exc_info()[0]:
            _state.messages[:] = before  # the outermost block's stays true after its end


@contextmanager
def stopping(stop: Callable[[], object], *, patience: str | None = None) -> Iterator[None]:
    """Have the first signal call `stop`, in the main thread, and raise Interrupted when the block has ended.

    After GRACE seconds, or at a second signal, the process leaves without waiting for the end. With `patience` it waits for
    the end, however long it takes, or the second signal; the text says on stderr what it waits for.

    Where this process is not under `guard`, only Ctrl-C is handled, and a second one raises KeyboardInterrupt.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    guest = not _installed and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if guest:
        _state.number = None
        signal.signal(signal.SIGINT, _on_signal)
    elif _state.number is not None:
        raise Interrupted(_state.number)

    def stop_and_say() -> None:
        if patience is not None and os.environ.get("RANK", "0") == "0":
            _write(patience)
        stop()

    was_patient, _state.patient = _state.patient, patience is not None
    _state.stops.append(stop_and_say)
    try:
        try:
            yield
        finally:
            _state.stops.pop()  # a signal that comes later finds another to stop, or leaves
            _state.patient = was_patient
            _state.deadline = monotonic() + GRACE
            if guest:
                signal.signal(signal.SIGINT, signal.default_int_handler)
    except BaseException:
        if _state.number is None:
            raise
        raise Interrupted(_state.number) from None
    if _state.number is not None:
        raise Interrupted(_state.number)


def run(main: Coroutine[Any, Any, T]) -> T:
    """asyncio.run, whose task a signal cancels. Raises Interrupted when it has ended."""
    import asyncio

    if not _installed or threading.current_thread() is not threading.main_thread():
        return asyncio.run(main)
    tasks: list[asyncio.Task[Any]] = []

    async def cancellable() -> T:
        tasks.extend(filter(None, [asyncio.current_task()]))
        if _state.number is not None:
            main.close()
            raise asyncio.CancelledError
        return await main

    def complain(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if _state.number is None:  # what breaks while things are stopped is of no interest
            loop.default_exception_handler(context)

    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        loop.set_exception_handler(complain)
        with stopping(lambda: loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])):
            return runner.run(cancellable())


def adopt(pid: int) -> None:
    """Have a child process killed where this one has to leave without waiting."""
    _state.children.add(pid)


def release(pid: int) -> None:
    """Forget a child process that has ended."""
    _state.children.discard(pid)


def uninstall() -> None:
    """Handle signals as before `guard`. It is for tests, whose process goes on after a command."""
    global _installed, _state
    _installed, _state = False, _State()
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        if signal.getsignal(number) is _on_signal:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def _install() -> None:
    global _installed, _state, _pipe, _forks
    _installed, _state = True, _State()
    if _pipe is None:
        reader, _pipe = os.pipe()
        os.set_blocking(_pipe, False)
        threading.Thread(target=_watch, args=(reader,), name="tts-signals", daemon=True).start()
        atexit.register(_end)
        threading.excepthook = _unless_interrupted(threading.excepthook)
        sys.unraisablehook = _unless_interrupted(sys.unraisablehook)
    if not _forks:
        _forks = True
        os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_forget)
    signal.set_wakeup_fd(_pipe, warn_on_full_buffer=False)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _on_signal)


_forks = False
"""Whether forks are taken care of, which children inherit."""
_masks = threading.local()


def _block() -> None:
    """A child that got a signal before `_forget` would write it into the pipe that it shares with its parent."""
    _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


def _forget() -> None:
    """A forked child is as if nothing had been installed."""
    global _pipe
    uninstall()
    _pipe = None
    _unblock()


def _unless_interrupted(hook: Callable[[Any], object]) -> Callable[[Any], None]:
    def report(unhandled: Any) -> None:
        if _state.number is None:
            hook(unhandled)

    return report


def _on_signal(number: int, frame: object) -> None:
    """Runs in the main thread, between any two instructions of it."""
    now = monotonic()
    if _state.number is None:
        _state.number, _state.since, _state.deadline = number, now, now + GRACE
        if _state.stops and _state.ending is None:
            _state.stops[-1]()
            return
    elif not _installed:
        raise Interrupted(number)
    elif now < _state.since + SAME and _state.ending is None:
        return
    _leave(number)


def _watch(reader: int) -> None:
    """Runs in a thread of its own: the main one may be deep in a library, where no Python handler is called."""
    came: list[tuple[int, float, _State]] = []
    while True:
        ready, _, _ = select.select([reader], [], [], 0.1 if came else None)
        now = monotonic()
        for number in os.read(reader, 64) if ready else b"":
            if _installed and number in SIGNALS:
                came.append((number, now, _state))
                _state.deadline = min(_state.deadline, now + GRACE)
        came = [entry for entry in came if entry[2] is _state]  # of the command that runs now
        if came and (came[-1][1] >= came[0][1] + SAME or (now > _state.deadline and not _state.patient)):
            _leave(came[0][0])


def _leave(number: int) -> NoReturn:
    """End this process and its children now."""
    if _state.ending is None:
        _state.number = _state.number or number
        _say(_write)
    _end_children()
    if threading.current_thread() is threading.main_thread():
        with suppress(Exception):  # the signal may have come in the midst of a write
            sys.stdout.flush()
    os._exit(128 + number if _state.ending is None else _state.ending)


def _end() -> None:
    """The last thing that Python does: what is registered later is called earlier.

    The rest of its end frees memory for long, and may be aborted by threads of libraries; signals are not handled any more.
    """
    if _state.ending is not None:
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except (OSError, ValueError):
            return  # Python complains of what could not be written
        os._exit(_state.ending)


def _end_children() -> None:
    for pid in list(_state.children):
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    if multiprocessing := sys.modules.get("multiprocessing"):
        for process in multiprocessing.active_children():
            process.terminate()


def _say(write: Callable[[str], object]) -> None:
    """Say once how to resume; of the processes of a distributed training, the first one speaks."""
    if os.environ.get("RANK", "0") != "0" or not _state.said.acquire(blocking=False):
        return
    text = _state.final
    if text is None:
        try:
            text = _state.messages[-1]() if _state.messages else DEFAULT
        except Exception:
            text = "interrupted"
    write(text)


def _write(text: str) -> None:
    """A line on stderr, where the signal may have come in the midst of another; a live view has hidden the cursor."""
    with suppress(OSError):
        os.write(2, f"{chr(27)}[?25h\rtts: {text}\n".encode() if os.isatty(2) else f"tts: {text}\n".encode())
