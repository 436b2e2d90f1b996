"""Files that survive a crash: replaced in one step, appended to line by line, and repaired when work is resumed."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from tts.errors import InputError

ESCAPE = "backslashreplace"
"""Error handler for writing files: half a surrogate pair, which UTF-8 lacks, becomes its JSON escape."""

BLOCK = 1 << 22
"""Bytes that are read at a time."""

PART = ".part"
"""End of the name of a file that is to replace another one."""

BLANK = b" \t\r\n\0"
"""What may surround a row: a crash can leave NULs, and an editor CRLF."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk, a quota or a file that is full."""

TORN_BY_TORCH = ("PytorchStreamWriter failed", "unexpected pos ", "No space left on device")
"""What errors of torch.save hold when the disk is full; they are plain RuntimeErrors."""


def write_whole(path: Path, text: str) -> None:
    """Replace a file in one step, so that a reader never finds half of it, not even after a crash. Raises OSError."""
    with replacing(path) as file:
        file.write(text.encode("utf-8", ESCAPE))


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when it is complete; after an error, `path` is as before. Raises OSError."""
    part = part_of(path)
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)  # on a full disk, its room is needed
        raise


def part_of(path: Path) -> Path:
    """Where a file is written before it replaces `path`."""
    return path.with_name(path.name + PART)


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Append lines. After an error, such as a full disk, the file ends with the last line that fitted. Raises OSError."""
    data, written = "".join(line + "\n" for line in lines).encode("utf-8", ESCAPE), 0
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            while written < len(data):
                written += file.write(memoryview(data)[written:])
        except OSError:
            file.truncate(before + data.rfind(b"\n", 0, written) + 1)
            raise


def whole_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines that are not blank, without their ends. A last line without one was torn by a crash and is left out."""
    if not path.exists():
        return
    with path.open("rb", buffering=BLOCK) as file:
        for line in file:
            if line.endswith(b"\n") and (content := line.strip(BLANK)):
                yield content


def parse_row(line: bytes) -> dict[str, Any] | None:
    """The JSON object on a line, or None where the line is torn, overwritten or something else."""
    try:
        row = json.loads(line.strip(BLANK).decode())
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def repair(path: Path, keep: Callable[[bytes], bool]) -> int:
    """Reduce a JSONL file to the rows that `keep` accepts, each on a line of its own.

    The file is read line by line. A bad end is cut off in place; the file is rewritten only where something before its last
    good row has to go.

    Args:
        path: The file. Nothing happens if there is none.
        keep: Is called with each line that is not blank, in order. A ValueError says that the line is damaged.

    Returns:
        The number of damaged lines that were dropped. A torn last line and rows that `keep` refuses do not count.

    Raises:
        OSError: The file cannot be read or written. It is as before then.
    """
    if not path.exists():
        return 0
    damaged, sound, same = 0, 0, True
    copy: IO[bytes] | None = None
    with path.open("rb", buffering=BLOCK) as file, ExitStack() as stack:
        for line in file:
            content, kept = line.strip(BLANK), False
            try:
                kept = bool(content) and keep(content)
            except (ValueError, RecursionError):
                damaged += line.endswith(b"\n")
            same = same and kept and line == content + b"\n"
            if same:
                sound += len(line)
            elif kept:
                if copy is None:
                    copy = stack.enter_context(replacing(path))
                    _copy_start(path, sound, copy)
                copy.write(content + b"\n")
    if copy is None and not same:
        os.truncate(path, sound)
    return damaged


def without_carriage_returns(path: Path) -> None:
    """Turn CRLF, which an editor or git may have made of line ends, into LF. Raises OSError."""
    if not path.exists():
        return
    with path.open("rb") as file:
        if file.readline().endswith(b"\r\n"):
            file.seek(0)
            with replacing(path) as copy:
                copy.writelines(line[:-2] + b"\n" if line.endswith(b"\r\n") else line for line in file)


def _copy_start(path: Path, size: int, target: IO[bytes]) -> None:
    with path.open("rb") as file:
        while size and (block := file.read(min(size, BLOCK))):
            target.write(block)
            size -= len(block)


@contextmanager
def writing(place: Path | None, then: str) -> Iterator[None]:
    """Turn what goes wrong when files are written, such as a full disk, into an InputError that ends with the advice `then`.

    Errors of libraries that write files in their own code (SQLite, safetensors, torch) are recognised as well. Errors of
    connections are not touched.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError) or (found := unwritten(error)) is None:
            raise
        file, reason = found
        raise InputError(f"cannot write to {file or place}: {reason}; {then}") from error


def unwritten(error: BaseException) -> tuple[str | None, str] | None:
    """The file, if that is known, and the reason, if an error says that something cannot be written; else None.

    Of a group of errors, the first such one counts.
    """
    match error:
        case BaseExceptionGroup():
            return next(filter(None, map(unwritten, error.exceptions)), None)
        case ConnectionError() | TimeoutError():
            return None
        case OSError():
            file = error.filename2 or error.filename
            return (str(file).removesuffix(PART) if file else None), error.strerror or str(error)
        case sqlite3.OperationalError():
            return None, str(error)
    text = str(error)
    if type(error).__name__ == "SafetensorError" and "I/O error" in text:
        return None, text.partition("I/O error: ")[2]
    return (None, "the disk is full") if any(sign in text for sign in TORN_BY_TORCH) else None
