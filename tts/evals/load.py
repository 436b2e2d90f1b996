"""Runs read back: settings, rows and summary as Python objects, or as a data frame."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tts.data.store import Record, RunStore
from tts.errors import InputError


@dataclass(frozen=True)
class SavedRun:
    """A run folder, read."""

    folder: Path
    settings: dict[str, Any]
    started: str
    summary: dict[str, Any] | None
    """None while the run is not finished."""
    records: tuple[Record, ...]
    """A row for each problem, in order of completion."""

    def rows(self) -> list[dict[str, Any]]:
        """A flat row for every candidate."""
        return [
            {
                "problem": record.id,
                "candidate": i,
                "chosen": i == record.choice,
                "correct": attempt.correct,
                "answer": attempt.answer,
                "group": attempt.group,
                "score": attempt.score,
                "reward_mean": sum(attempt.rewards) / len(attempt.rewards) if attempt.rewards else None,
                "reward_min": min(attempt.rewards) if attempt.rewards else None,
                "reward_final": attempt.final,
                "steps": len(attempt.steps),
                "tokens": sum(attempt.tokens),
                "finish": attempt.finish,
                "text": attempt.text,
            }
            for record in self.records
            for i, attempt in enumerate(record.candidates)
        ]

    def frame(self, library: str = "pandas") -> Any:
        """`rows` as a data frame of pandas or polars. Raises InputError where that is not installed."""
        if library not in ("pandas", "polars"):
            raise InputError(f"frame({library!r}): expected pandas or polars")
        try:
            return import_module(library).DataFrame(self.rows())
        except ImportError:
            raise InputError(f"{library} is not installed; install it with: pip install {library}") from None


def load_run(folder: str | Path) -> SavedRun:
    """Everything in a run folder. Raises InputError where it is none, or where a row cannot be read."""
    folder = Path(folder)
    store = open_run(folder)
    try:
        records = tuple(store.records())
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{store.results} has a row that is no result ({reason}); mend that row or take it out") from error
    return SavedRun(folder, store.settings, read_json(folder / "run.json").get("started", ""), read_summary(folder), records)


def open_run(folder: Path) -> RunStore:
    """A run folder whose settings can be read. Raises InputError."""
    if not (folder / "run.json").is_file():
        what = "no run.json in it" if folder.is_dir() else "no such folder"
        raise InputError(f"{folder} is not a run folder ({what}); give a folder that tts run made; tts runs lists them")
    store = RunStore.open(folder)
    if not isinstance(read_json(folder / "run.json").get("settings"), dict):
        raise InputError(f"{folder / 'run.json'} holds no settings; it is not as tts run wrote it")
    return store


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises InputError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return value


def read_summary(folder: Path) -> dict[str, Any] | None:
    """summary.json; None while the run is not finished."""
    path = folder / "summary.json"
    return read_json(path) if path.is_file() else None
