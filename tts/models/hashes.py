"""Hashes of files and folders, remembered for large files: the weights of a model are read for this once."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

WHOLE = 8 * 2**30
"""Bytes up to which a file is hashed whole. Of a larger one, SAMPLES blocks at equal distances are."""
SAMPLES, BLOCK = 1024, 2**20
REMEMBERED = 64 * 2**20
"""Bytes from which on a file's hash is remembered."""
RECENT = 3.0
"""Seconds: a file that was changed so recently may change again without a new modification time."""


def hash_of_file(path: Path, size: int | None = None) -> str:
    """Return the SHA-256 of a file in hexadecimal, or that of its first `size` bytes. Raises OSError."""
    if size is not None:
        return _digest(path, size)
    about = path.stat()
    if about.st_size < REMEMBERED:
        return _digest(path, about.st_size)
    stamp = f"{path.resolve()} {about.st_size} {about.st_mtime_ns} {WHOLE}"
    memory = _folder() / hashlib.sha256(stamp.encode("utf-8", "surrogateescape")).hexdigest()
    with suppress(OSError):
        if len(found := memory.read_text()) == 64:
            return found
    found = _digest(path, about.st_size) if about.st_size <= WHOLE else _sampled(path, about.st_size)
    if time.time() - about.st_mtime > RECENT and path.stat().st_mtime_ns == about.st_mtime_ns:
        with suppress(OSError):  # a cache that cannot be written is none
            memory.parent.mkdir(parents=True, exist_ok=True)
            part = memory.with_suffix(f".{os.getpid()}")
            part.write_text(found)
            part.replace(memory)
    return found


def hash_of_files(paths: Iterable[Path], folder: Path) -> str:
    """Return the SHA-256 of files with their names relative to `folder`, whatever their order. Raises OSError."""
    named = sorted((path.relative_to(folder).as_posix(), path) for path in paths)
    digest = hashlib.sha256()
    with ThreadPoolExecutor(8) as pool:
        for (name, path), found in zip(named, pool.map(lambda item: hash_of_file(item[1]), named), strict=True):
            digest.update(f"{name}\0{path.stat().st_size}\0{found}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _digest(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (block := file.read(min(size, BLOCK))):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest()


def _sampled(path: Path, size: int) -> str:
    digest = hashlib.sha256(f"{size}".encode())
    with path.open("rb") as file:
        for i in range(SAMPLES):
            file.seek(i * (size - BLOCK) // (SAMPLES - 1))  # the first and the last block are among them
            digest.update(file.read(BLOCK))
    return digest.hexdigest()


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tts" / "hashes"
