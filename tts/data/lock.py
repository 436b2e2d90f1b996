"""One writer: a lock on a folder or file that is written, which names the process that holds it and disappears with it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakSet

from tts.errors import InputError

LOCK = ".lock"
"""Name of a folder's lock; a file has one beside it, with this at the end of its name."""

UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""Errors of file systems that cannot lock. There, nothing keeps a second writer away."""


class Lock:
    """The right to write to a folder or file, held until `release` or the end of the process, be it by kill -9.

    It is an flock on a file, which the kernel lets go of with the process. Readers do not ask for it.

    Args:
        place: The folder, which has to exist, or the file.

    Raises:
        InputError: Another process holds it. The message names the process.
        OSError: The lock's file cannot be written.
    """

    def __init__(self, place: Path) -> None:
        self.place, self.path, self._file = place, lock_of(place), -1
        while True:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            _held.add(self)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _read(self._file)
                self._close()
                raise InputError(f"{place} is being written by {holder}; wait for it to end, or end it") from None
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    self._close()
                    raise
            if self._is_current():
                break
            self._close()  # its last holder has just removed it
        about = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with suppress(OSError):  # a full disk
            os.truncate(self._file, 0)
            os.pwrite(self._file, json.dumps(about).encode() + b"\n", 0)

    def release(self) -> None:
        """Let another process write; a second call does nothing."""
        if self._file >= 0:
            with suppress(OSError):
                self.path.unlink()  # while it is held: whoever has opened it will find that it is gone
            self._close()

    def _is_current(self) -> bool:
        """Whether the locked file is still the one under the name."""
        try:
            here = os.stat(self.path)
        except FileNotFoundError:
            return False
        mine = os.fstat(self._file)
        return (here.st_dev, here.st_ino) == (mine.st_dev, mine.st_ino)

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        self._close()


def lock_of(place: Path) -> Path:
    """The file that is locked for a folder or file."""
    return place / LOCK if place.is_dir() else place.with_name(place.name + LOCK)


def _read(file: int) -> str:
    """The holder in words, with the machine where it is not this one: over NFS a lock is held across machines."""
    try:
        about: Any = json.loads(os.pread(file, 4096, 0))
        host = "" if about["host"] == socket.gethostname() else f" on {about['host']}, which is another machine"
        return f"process {about['pid']}{host} (since {about['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


_held: WeakSet[Lock] = WeakSet()


def _let_go_in_child() -> None:
    """A forked child would keep the lock alive after its parent has been killed."""
    for lock in list(_held):
        lock._close()


os.register_at_fork(after_in_child=_let_go_in_child)
