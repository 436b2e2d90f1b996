"""The run folder: settings, one row per solved problem, and a summary. It survives `kill -9` at any moment."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, TypeAdapter

from tts.errors import InputError
from tts.grading.pool import Verdict
from tts.types import Aggregate, Branch, Finish, Problem, Result, Reward, Usage

SCHEMA = 1
"""Version of the run folder's layout."""

ESCAPE = "backslashreplace"
"""Error handler for writing files: half a surrogate pair, which UTF-8 lacks, becomes its JSON escape."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One candidate as a run folder keeps it."""

    steps: tuple[str, ...]
    """Text of each step as it was drawn."""
    tokens: tuple[int, ...]
    """Number of tokens of each step."""
    finish: Finish
    score: float
    """The strategy's score, by which it chose."""
    rewards: tuple[float | None, ...] | None
    """One reward per thinking step, then one per response step, of the part that was scored, None for a step without a verdict;
    None without a reward model."""
    final: float | None
    """Reward of the whole trace; None if the reward model gives none."""
    answer: str | None
    """Final answer; None if there is none."""
    group: int | None
    """Equal for equivalent answers to the same problem; None without an answer."""
    correct: bool | None
    """Whether the answer is right; None if the problem has no reference answer."""
    final_missing: bool = False
    """Whether the reward model was asked for `final` and gave no verdict."""

    @property
    def text(self) -> str:
        """The whole candidate."""
        return "".join(self.steps)

    def reward(self, alpha: float = 1.0, how: Aggregate = "mean") -> Reward:
        """The reward with a run's alpha and aggregate; without a reward model, one that is not rated."""
        return Reward(self.rewards or (), self.final, alpha=alpha, how=how, final_missing=self.final_missing)


def _read_branch(value: Any) -> Any:
    """In files a branch has one `fate`, with the reason after a colon (`pruned: repeats a sibling`)."""
    if isinstance(value, dict) and isinstance(fate := value.get("fate"), str):
        kind, _, reason = fate.partition(": ")
        return {**value, "fate": kind, "reason": reason}
    return value


def _write_branch(branch: Branch) -> dict[str, Any]:
    row = asdict(branch) | {"fate": branch.outcome}
    del row["reason"]
    return row


SavedBranch = Annotated[Branch, BeforeValidator(_read_branch), PlainSerializer(_write_branch)]


@dataclass(frozen=True, slots=True)
class Record:
    """The row of one problem in results.jsonl. A problem that failed has an error and no candidates."""

    id: str
    problem: str
    """Text of the problem."""
    answer: str | None
    """Reference answer; None if there is none."""
    candidates: tuple[Attempt, ...]
    choice: int | None
    """Index of the chosen candidate; None if the problem failed."""
    correct: bool | None
    """Whether the chosen answer is right; None if the problem failed or has no reference answer."""
    usage: Usage
    """Tokens and calls. `cached` is 0 here: it depends on timing and is kept in timings.jsonl."""
    error: str | None = None
    """Type and message of the exception; None if the problem was solved."""
    tree: tuple[SavedBranch, ...] = ()
    """Search tree; empty for strategies that do not search."""
    instruction: str = ""
    """What the policy was told besides the problem; empty for nothing."""

    @classmethod
    def solved(cls, problem: Problem, result: Result, verdicts: Sequence[Verdict], usage: Usage) -> Record:
        """The row of a solved problem; `verdicts` has one verdict per candidate."""
        rewards: Sequence[Reward | None] = result.rewards or [None] * len(result.candidates)
        attempts = tuple(
            Attempt(
                steps=tuple(step.text for step in candidate.steps),
                tokens=tuple(len(step.token_ids) for step in candidate.steps),
                finish=candidate.finish,
                score=score,
                rewards=reward.steps if reward else None,
                final=reward.final if reward else None,
                final_missing=reward is not None and reward.final_missing,
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
            instruction=problem.instruction,
        )

    @classmethod
    def failed(cls, problem: Problem, error: Exception, usage: Usage) -> Record:
        """The row of a problem that raised an exception."""
        message = f"{type(error).__name__}: {error}".strip()
        usage = replace(usage, cached=0)
        return cls(problem.id, problem.prompt, problem.answer, (), None, None, usage, message, instruction=problem.instruction)

    @classmethod
    def from_json(cls, line: str) -> Record:
        """Parse a line of results.jsonl. Raises ValueError if it is not a row."""
        return _records().validate_python(json.loads(line))

    def to_json(self) -> str:
        """The row as one line of JSON."""
        row = _records().dump_python(self)
        del row["usage"]["cached"]
        for name in ("tree", "instruction"):
            if not row[name]:
                del row[name]
        return json.dumps(row, ensure_ascii=False, allow_nan=False)


@cache
def _records() -> TypeAdapter[Record]:
    return TypeAdapter(Record)


class RunStore:
    """A run folder. Rows are appended one by one; a torn last line is dropped when the run is resumed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results, self.timings = folder / "results.jsonl", folder / "timings.jsonl"

    @classmethod
    def create(cls, folder: Path, settings: dict[str, Any], facts: dict[str, Any]) -> RunStore:
        """Create the folder. `facts` (versions, hardware) are recorded with the settings, but not compared when resuming.

        Raises InputError if the folder exists and is not empty, or cannot be written.
        """
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
        """Open an existing run folder. Raises InputError if the folder is not a run folder of this version's layout."""
        if not (folder / "run.json").is_file():
            what = "no run.json in it" if folder.is_dir() else "no such folder"
            raise InputError(f"{folder} is not a run folder ({what}); --resume takes a folder created by tts run")
        store = cls(folder)
        schema = store._read_run().get("schema")
        if schema != SCHEMA:
            raise InputError(f"{folder} has layout version {schema}; this version of tts reads version {SCHEMA}")
        return store

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the run. Raises InputError if run.json cannot be read."""
        settings: dict[str, Any] = self._read_run()["settings"]
        return settings

    def _read_run(self) -> dict[str, Any]:
        try:
            run = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
            if not isinstance(run, dict):
                raise ValueError("not a JSON object")
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read the run's settings from {self.folder / 'run.json'}: {error}") from error
        return run

    def solved(self) -> int:
        """Problems that have a row without an error."""
        return sum(record.error is None for record in self.records())

    def records(self) -> list[Record]:
        """All complete rows, in the order in which the problems were solved."""
        return [Record.from_json(line) for line in _whole_lines(self.results)]

    def recover(self) -> list[Record]:
        """Prepare to resume: drop a torn last row and the rows of failed problems, and return the rows that are left."""
        kept = [record for record in self.records() if record.error is None]
        _write_whole(self.results, "".join(record.to_json() + "\n" for record in kept))
        _write_whole(self.timings, "".join(line + "\n" for line in _whole_lines(self.timings)))
        return kept

    def append(self, record: Record, timing: dict[str, Any]) -> None:
        """Append the row of a problem to results.jsonl, then its timing to timings.jsonl."""
        for path, line in ((self.results, record.to_json()), (self.timings, json.dumps(timing))):
            with path.open("a", encoding="utf-8", errors=ESCAPE) as file:
                file.write(line + "\n")

    def timing_rows(self) -> list[dict[str, Any]]:
        """All complete rows of timings.jsonl, oldest first."""
        return [json.loads(line) for line in _whole_lines(self.timings)]

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json, which marks the run as finished."""
        _write_whole(self.folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


def check_creatable(folder: Path) -> None:
    """Raise InputError unless `folder` is missing or empty, and can be written."""
    if (folder / "run.json").exists():
        raise InputError(f"{folder} already contains a run; continue it with --resume {folder}, or choose another --out")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not an empty folder; choose another --out")
    parent = next(p for p in (folder, *folder.parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to {folder}: no permission in {parent}; choose another folder with --out")


def _whole_lines(path: Path) -> list[str]:
    """The lines that end in a line end. A line torn by a crash does not."""
    return path.read_bytes().decode().split("\n")[:-1] if path.exists() else []


def _write_whole(path: Path, text: str) -> None:
    """Replace a file in one step, so that a reader never finds half of it, not even after a crash."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8", errors=ESCAPE) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
