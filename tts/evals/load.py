"""Reading run folders: settings, rows and summary as Python objects, or candidates as a data frame."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tts.data.records import Record
from tts.data.store import RunStore
from tts.errors import InputError


@dataclass(frozen=True)
class SavedRun:
    """The content of a run folder."""

    folder: Path
    settings: dict[str, Any]
    """Settings of the run, as in run.json."""
    started: str
    """When the run was started, as an ISO 8601 time; empty if that was not recorded."""
    summary: dict[str, Any] | None
    """The content of summary.json; None while the run is not finished."""
    records: tuple[Record, ...]
    """One record per problem, in the order in which they were solved."""

    def rows(self) -> list[dict[str, Any]]:
        """One flat dictionary per candidate, with its problem, answer, score, rewards and text."""
        return [
            {
                "problem": record.id,
                "candidate": i,
                "chosen": i == record.choice,
                "correct": attempt.correct,
                "answer": attempt.answer,
                "group": attempt.group,
                "score": attempt.score,
                "reward_mean": attempt.reward().aggregate("mean") if attempt.reward().known else None,
                "reward_min": min(attempt.reward().known, default=None),
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
        """`rows` as a data frame of `library`, pandas (default) or polars. Raises InputError if it is not installed."""
        if library not in ("pandas", "polars"):
            raise InputError(f"no data frames of {library!r}; expected pandas or polars")
        try:
            return import_module(library).DataFrame(self.rows())
        except ImportError:
            raise InputError(f"{library} is not installed; install it with: pip install {library}") from None


def load_run(folder: str | Path) -> SavedRun:
    """Read a run folder, with all of its rows. Raises InputError if it is not a run folder, or if a row cannot be read."""
    folder = Path(folder)
    store = open_run(folder)
    started = read_json(folder / "run.json").get("started", "")
    return SavedRun(folder, store.settings, started, read_summary(folder), tuple(store.stream()))


def open_run(folder: Path) -> RunStore:
    """Open a run folder. Raises InputError if it is not a run folder, or if its settings cannot be read."""
    if not (folder / "run.json").is_file():
        what = "no run.json in it" if folder.is_dir() else "no such folder"
        raise InputError(f"{folder} is not a run folder ({what}); give a folder created by tts run, as listed by tts runs")
    store = RunStore.open(folder)
    if not isinstance(read_json(folder / "run.json").get("settings"), dict):
        raise InputError(f"{folder / 'run.json'} has no settings; was it written by tts run?")
    return store


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises InputError if the file cannot be read or contains something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return value


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The content of summary.json; None while the run is not finished. Raises InputError if it cannot be read."""
    path = folder / "summary.json"
    return read_json(path) if path.is_file() else None
