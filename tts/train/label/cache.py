"""A persistent cache of expensive results (judge ratings, rollouts), keyed by everything that they depend on."""

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
    """An SQLite table of hashed keys and JSON values. Every result is committed at once, so that kill -9 loses none."""

    def __init__(self, path: Path | None, *context: object) -> None:
        """Open or create the table.

        Args:
            path: The file; None keeps the table in memory.
            context: What all results of this cache depend on, such as the models. It is part of every key.

        Raises:
            InputError: `path` exists and is not such a table, or cannot be written.
        """
        self._context = [str(part) for part in context]
        self._in_progress: dict[bytes, asyncio.Task[Any]] = {}
        try:
            self._table = sqlite3.connect(path or ":memory:", isolation_level=None)  # every statement is a transaction
            self._table.execute("PRAGMA journal_mode=WAL")
            self._table.execute("PRAGMA synchronous=NORMAL")
            self._table.execute("CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, value TEXT)")
        except sqlite3.Error as error:
            raise InputError(f"cannot use {path} as a cache: {error}; choose another file with --cache") from error

    async def get(self, compute: Callable[[], Awaitable[Any]], *key_parts: object) -> Any:
        """Return the cached value for a key, or await `compute()` and cache its result.

        Concurrent calls with the same key share one computation. Values must be JSON-serialisable.
        """
        key = hashlib.blake2b(json.dumps([*self._context, *map(str, key_parts)]).encode(), digest_size=16).digest()
        if (row := self._table.execute("SELECT value FROM answers WHERE key = ?", (key,)).fetchone()) is not None:
            return json.loads(row[0])
        if key not in self._in_progress:
            self._in_progress[key] = asyncio.ensure_future(self._compute(key, compute))
        return await asyncio.shield(self._in_progress[key])  # one waiter's cancellation must not cancel the others

    async def _compute(self, key: bytes, compute: Callable[[], Awaitable[Any]]) -> Any:
        try:
            value = await compute()
            self._table.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, json.dumps(value)))
            return value
        finally:
            del self._in_progress[key]

    def close(self) -> None:
        """Close the file."""
        self._table.close()
