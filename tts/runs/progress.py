"""The state of a run under way."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tts.data.records import Outcome, Record
from tts.solving.clock import Clock


@dataclass
class Progress:
    """What a live view looks at while a run is under way."""

    stage: str = "starting"
    total: int = 0
    done: int = 0
    resumed: int = 0
    """Of `done`, those that an earlier session solved."""
    failed: int = 0
    damaged: int = 0
    """Rows that an earlier session had written and something has damaged since; their problems are solved again."""
    graded: int = 0
    right: int = 0
    generated: int = 0
    """Tokens, in this session."""
    clock: Clock = field(default_factory=Clock)
    folder: Path | None = None
    notices: tuple[str, ...] = ()
    """What engine and scorer do otherwise than asked."""

    def add(self, record: Record | Outcome) -> None:
        self.done += 1
        self.failed += record.error is not None
        self.graded += record.correct is not None
        self.right += bool(record.correct)
