"""Answers that cost something (a judge's rating, rollouts), kept on disk by what was asked: nothing is paid for twice."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tts.errors import InputError


class Cache:
    """A table of keys and JSON values, in a file that survives kill -9. Raises InputError where the file is no such table."""

    def __init__(self, path: Path | None, *about: object) -> None:
        """`about` is what all answers depend on: models, settings, seed."""
        self._about = [str(part) for part in about]
        self._under_way: dict[bytes, asyncio.Task[Any]] = {}
        try:
            self._table = sqlite3.connect(path or ":memory:", isolation_level=None)  # every statement is a transaction
            self._table.execute("PRAGMA journal_mode=WAL")
            self._table.execute("PRAGMA synchronous=NORMAL")
            self._table.execute("CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, value TEXT)")
        except sqlite3.Error as error:
            raise InputError(f"cannot use {path} as a cache: {error}; name another with --cache") from error

    async def get(self, compute: Callable[[], Awaitable[Any]], *asked: object) -> Any:
        """The kept answer to what was asked, else a computed one, which is kept; asked again meanwhile, it is computed once."""
        key = hashlib.blake2b(json.dumps([*self._about, *map(str, asked)]).encode(), digest_size=16).digest()
        if (row := self._table.execute("SELECT value FROM answers WHERE key = ?", (key,)).fetchone()) is not None:
            return json.loads(row[0])
        if key not in self._under_way:
            self._under_way[key] = asyncio.ensure_future(self._compute(key, compute))
        return await asyncio.shield(self._under_way[key])

    async def _compute(self, key: bytes, compute: Callable[[], Awaitable[Any]]) -> Any:
        try:
            value = await compute()
            self._table.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, json.dumps(value)))
            return value
        finally:
            del self._under_way[key]

    def close(self) -> None:
        self._table.close()
