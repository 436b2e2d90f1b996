"""The run folder: settings, one flushed row per solved problem, and a summary. It survives kill -9 at any moment."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from tts.errors import InputError
from tts.grading.pool import Verdict
from tts.types import Branch, Finish, Problem, Result, Reward, Usage

SCHEMA = 1
"""Version of the run folder's layout."""

ESCAPE = "backslashreplace"
"""Half a surrogate pair has no UTF-8, but a JSON escape, which this happens to write."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One candidate as it is kept. `rewards` pairs with the thinking steps and then the response steps of the text."""

    steps: tuple[str, ...]
    tokens: tuple[int, ...]
    """Generated tokens of each step."""
    finish: Finish
    score: float
    """The strategy's."""
    rewards: tuple[float, ...] | None
    final: float | None
    answer: str | None
    group: int | None
    """Equal for equivalent answers to one problem."""
    correct: bool | None

    @property
    def text(self) -> str:
        return "".join(self.steps)


@dataclass(frozen=True, slots=True)
class Record:
    """One problem's row in results.jsonl. A problem that failed has an error and no candidates."""

    id: str
    problem: str
    answer: str | None
    candidates: tuple[Attempt, ...]
    choice: int | None
    correct: bool | None
    usage: Usage
    """All but `cached`, which depends on what else ran and so stands among the timings."""
    error: str | None = None
    tree: tuple[Branch, ...] = ()
    """How a search came to its candidates."""

    @classmethod
    def solved(cls, problem: Problem, result: Result, verdicts: Sequence[Verdict], usage: Usage) -> Record:
        rewards: Sequence[Reward | None] = result.rewards or [None] * len(result.candidates)
        attempts = tuple(
            Attempt(
                steps=tuple(step.text for step in candidate.steps),
                tokens=tuple(len(step.token_ids) for step in candidate.steps),
                finish=candidate.finish,
                score=score,
                rewards=reward.steps if reward else None,
                final=reward.final if reward else None,
                answer=verdict.answer,
                group=verdict.group,
                correct=verdict.correct,
            )
            for candidate, reward, score, verdict in zip(result.candidates, rewards, result.scores, verdicts, strict=True)
        )
        return cls(
            problem.id,
            problem.prompt,
            problem.answer,
            attempts,
            result.choice,
            verdicts[result.choice].correct,
            replace(usage, cached=0),
            tree=tuple(result.tree),
        )

    @classmethod
    def failed(cls, problem: Problem, error: Exception, usage: Usage) -> Record:
        message = f"{type(error).__name__}: {error}".strip()
        return cls(problem.id, problem.prompt, problem.answer, (), None, None, replace(usage, cached=0), message)

    @classmethod
    def from_json(cls, line: str) -> Record:
        return _records().validate_python(json.loads(line))

    def to_json(self) -> str:
        row = _records().dump_python(self)
        del row["usage"]["cached"]
        if not self.tree:
            del row["tree"]
        return json.dumps(row, ensure_ascii=False, allow_nan=False)


@cache
def _records() -> TypeAdapter[Record]:
    return TypeAdapter(Record)


class RunStore:
    """A run folder. Rows are appended and flushed one by one; a torn last line is dropped when the run goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results, self.timings = folder / "results.jsonl", folder / "timings.jsonl"

    @classmethod
    def create(cls, folder: Path, settings: dict[str, Any], facts: dict[str, Any]) -> RunStore:
        """Make the folder; `facts` (versions, hardware) are kept beside the settings but need not be met on resuming."""
        check_creatable(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            run = {"schema": SCHEMA, "settings": settings, **facts}
            _write_whole(folder / "run.json", json.dumps(run, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise InputError(f"cannot write to {folder}: {error.strerror}; choose another folder with --out") from error
        return cls(folder)

    @classmethod
    def open(cls, folder: Path) -> RunStore:
        """An existing run folder; InputError where it is none."""
        if not (folder / "run.json").is_file():
            what = "no run.json in it" if folder.is_dir() else "no such folder"
            raise InputError(f"{folder} is not a run folder ({what}); give --resume a folder that tts run made")
        store = cls(folder)
        schema = store._read_run().get("schema")
        if schema != SCHEMA:
            raise InputError(f"{folder} has the run layout {schema}; this version of tts reads layout {SCHEMA}")
        return store

    @property
    def settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = self._read_run()["settings"]
        return settings

    def _read_run(self) -> dict[str, Any]:
        try:
            run = json.loads((self.folder / "run.json").read_text())
            assert isinstance(run, dict)
        except (OSError, ValueError, AssertionError) as error:
            raise InputError(f"{self.folder / 'run.json'} cannot be read as a run's settings: {error}") from error
        return run

    def solved(self) -> int:
        """Problems that have a row without an error."""
        return sum(record.error is None for record in self.records())

    def records(self) -> list[Record]:
        """Every whole row, in the order of completion."""
        return [Record.from_json(line) for line in _whole_lines(self.results)]

    def recover(self) -> list[Record]:
        """The rows to keep when the run goes on: a torn row is dropped, and failed problems will be tried again."""
        kept = [record for record in self.records() if record.error is None]
        _write_whole(self.results, "".join(record.to_json() + "\n" for record in kept))
        _write_whole(self.timings, "".join(line + "\n" for line in _whole_lines(self.timings)))
        return kept

    def append(self, record: Record, timing: dict[str, Any]) -> None:
        """Keep a row for good, then its timing."""
        for path, line in ((self.results, record.to_json()), (self.timings, json.dumps(timing))):
            with path.open("a", encoding="utf-8", errors=ESCAPE) as file:
                file.write(line + "\n")

    def timing_rows(self) -> list[dict[str, Any]]:
        """Every whole timing row, oldest first."""
        return [json.loads(line) for line in _whole_lines(self.timings)]

    def write_summary(self, summary: dict[str, Any]) -> None:
        _write_whole(self.folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


def check_creatable(folder: Path) -> None:
    """InputError unless `folder` is absent or empty, and can be written."""
    if (folder / "run.json").exists():
        raise InputError(f"{folder} already holds a run; go on with it by --resume {folder}, or choose another --out")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not an empty folder; choose another --out")
    parent = next(p for p in (folder, *folder.parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to {folder}: no permission in {parent}; choose another folder with --out")


def _whole_lines(path: Path) -> list[str]:
    """The lines that end in a line end; what a crash tore off does not."""
    return path.read_bytes().decode().split("\n")[:-1] if path.exists() else []


def _write_whole(path: Path, text: str) -> None:
    """Replace a file in one step, so that no reader and no crash sees half of it."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8", errors=ESCAPE) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
