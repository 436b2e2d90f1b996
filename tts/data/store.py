"""The run folder: settings, one row per solved problem, and a summary. It survives `kill -9` at any moment."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from zlib import crc32

from tts.data.files import BLOCK, ESCAPE, append_lines, part_of, repair, whole_lines, write_whole, writing
from tts.data.lock import LOCK, Lock
from tts.data.records import Outcome, Record, parse_as
from tts.errors import InputError

SCHEMA = 1
"""Version of the run folder's layout."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Timing:
    """What resuming needs of a row of timings.jsonl."""

    id: str
    cached: int
    run: dict[str, float]
    """The run's clock at that moment, in seconds."""
    generated: int = 0
    crc: int | None = None
    """CRC-32 of the row; None in folders of early versions."""


class RunStore:
    """A run folder. Rows are appended one by one; what a crash left of a row is dropped when the run is resumed.

    Whoever writes holds the folder's lock: the one that `create` or `lock` takes, until `close`. Readers need none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results, self.timings = folder / "results.jsonl", folder / "timings.jsonl"
        self._lock: Lock | None = None

    @classmethod
    def create(cls, folder: Path, settings: dict[str, Any], facts: dict[str, Any]) -> RunStore:
        """Create the folder, to write to it. `facts` (versions, hardware) are recorded with the settings, but not compared when
        resuming, except for `content`: fingerprints of what the settings name.

        Raises InputError if the folder exists and is not empty, or cannot be written.
        """
        check_creatable(folder)
        store = cls(folder)
        with writing(folder, "choose another folder with --out"):
            folder.mkdir(parents=True, exist_ok=True)
            store.lock()
            check_creatable(folder)  # another process may have been faster
            store._write_run({"schema": SCHEMA, "settings": settings, **facts})
        return store

    @classmethod
    def open(cls, folder: Path) -> RunStore:
        """Open an existing run folder. Raises InputError if the folder is not a run folder of this version's layout."""
        if not (folder / "run.json").is_file():
            what = "no run.json in it" if folder.is_dir() else "no such folder"
            raise InputError(f"{folder} is not a run folder ({what}); --resume takes a folder created by tts run")
        store = cls(folder)
        run = store.read_run()
        if run.get("schema") != SCHEMA:
            raise InputError(f"{folder} has layout version {run.get('schema')}; this version of tts reads version {SCHEMA}")
        if not isinstance(run.get("settings"), dict):
            raise InputError(f"{folder / 'run.json'} has no settings; was it written by tts run?")
        return store

    def lock(self) -> None:
        """Become the one that writes. Raises InputError if another process does."""
        if self._lock is None:
            with writing(self.folder, "make it writable, then resume again"):
                self._lock = Lock(self.folder)

    def close(self) -> None:
        """Let others write."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the run. Raises InputError if run.json cannot be read."""
        settings: dict[str, Any] = self.read_run()["settings"]
        return settings

    def read_run(self) -> dict[str, Any]:
        """The content of run.json. Raises InputError if it cannot be read."""
        try:
            run = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
            if not isinstance(run, dict):
                raise ValueError("not a JSON object")
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot read the run's settings from {self.folder / 'run.json'}: {error}; restore that file, or start again"
                " with another --out"
            ) from error
        return run

    @property
    def numbered(self) -> bool:
        """Whether problems without an id have their number as one, as in folders of early versions."""
        return "content" not in self.read_run()

    def note(self, **facts: Any) -> None:
        """Replace facts in run.json. Raises OSError."""
        self._write_run({**self.read_run(), **facts})

    def _write_run(self, run: dict[str, Any]) -> None:
        write_whole(self.folder / "run.json", json.dumps(run, indent=2, ensure_ascii=False) + "\n")

    def solved(self) -> int:
        """Problems that have a row without an error."""
        return sum(outcome.error is None for outcome in self.outcomes())

    def records(self) -> list[Record]:
        """All complete rows, in the order in which the problems were solved. Those of a large run fill memory: see `stream`."""
        return list(self.stream())

    def stream(self) -> Iterator[Record]:
        """The complete rows, one at a time, in the order in which the problems were solved. Raises InputError at a bad one."""
        return self._read_rows(Record.from_json)

    def outcomes(self) -> Iterator[Outcome]:
        """The complete rows without their candidates, one at a time. Raises InputError at a bad one."""
        return self._read_rows(Outcome.from_json)

    def lines(self, ids: Container[str]) -> Iterator[tuple[bytes, Record]]:
        """The complete rows with these ids as they stand in the file, without line ends, and parsed. Raises InputError."""
        for line in whole_lines(self.results):
            if self._read_row(Outcome.from_json, line).id in ids:
                yield line, self._read_row(Record.from_json, line)

    def find(self, problem_id: str) -> Record | None:
        """The row of a problem; None if there is none. Raises InputError if it cannot be read.

        A row begins with its id and has no line breaks inside, so it is found by the bytes that it begins with: at the place
        that its timing names, or by a search through the file (half a second for a gigabyte). Rows in another form, which
        another tool has written, are found by reading all of them.
        """
        start = b'{"id": ' + json.dumps(problem_id, ensure_ascii=False).encode(errors=ESCAPE) + b","
        for place in self._places(start):
            line = _line_at(self.results, place)
            if line.startswith(start) and line.endswith(b"\n"):
                return self._read_row(Record.from_json, line)
        for line in whole_lines(self.results):
            if self._read_row(Outcome.from_json, line).id == problem_id:
                return self._read_row(Record.from_json, line)
        return None

    def _places(self, start: bytes) -> Iterator[int]:
        """Where in results.jsonl the row may begin."""
        if (timing := _search(self.timings, start)) is not None:
            with suppress(ValueError, LookupError, TypeError):  # torn, or a run without places
                yield int(json.loads(_line_at(self.timings, timing))["at"])
        if (place := _search(self.results, start)) is not None:
            yield place

    def _read_rows(self, parse: Callable[[bytes], T]) -> Iterator[T]:
        try:
            for line in whole_lines(self.results):
                yield self._read_row(parse, line)
        except OSError as error:
            raise InputError(f"cannot read {self.results}: {error.strerror}") from error

    def _read_row(self, parse: Callable[[bytes], T], line: bytes) -> T:
        try:
            return parse(line)
        except (ValueError, RecursionError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"{self.results} has a row that cannot be read ({reason}); tts run --resume {self.folder} solves it again"
            ) from error

    def recover(self) -> tuple[dict[str, Outcome], int]:
        """Prepare to resume: keep one row of each solved problem, and drop all else that results.jsonl and timings.jsonl hold.

        Returns:
            The rows that are left, by id, and the number of lines that were dropped because they are damaged. A row that a
            crash has torn, rows of failed problems and second rows of a problem do not count.

        Raises:
            OSError: A file cannot be read or written; then nothing is lost.
        """
        kept: dict[str, Outcome] = {}

        def keep(line: bytes) -> bool:
            row = Outcome.from_json(line)
            if written.get(row.id) != crc32(line):
                row = Record.from_json(line).outcome  # read whole, as damage may be among the candidates
            if row.error is not None or row.id in kept:
                return False
            kept[row.id] = row
            return True

        repair(self.timings, lambda line: bool(parse_as(_Timing, line)))
        written = self._checksums()
        return kept, repair(self.results, keep)

    def _checksums(self) -> dict[str, int]:
        """CRC-32 of the rows as they were written, by id."""
        return {row["id"]: row["crc"] for row in self.timing_rows() if row.get("crc") is not None}

    def edited(self) -> Iterator[str]:
        """Ids of the rows that do not have the checksums of timings.jsonl. Raises InputError at a bad row."""
        written = self._checksums()
        for line in whole_lines(self.results):
            name = self._read_row(Outcome.from_json, line).id
            if written.get(name, crc := crc32(line)) != crc:
                yield name

    def discard(self) -> None:
        """Remove the folder of a run that has not begun, but for files that are not the run's."""
        self.close()
        (self.folder / "run.json").unlink(missing_ok=True)
        with suppress(OSError):  # it is not empty
            self.folder.rmdir()

    def append(self, record: Record, timing: dict[str, Any]) -> None:
        """Append the row of a problem to results.jsonl, then its timing, with the row's place and checksum, to timings.jsonl.

        Raises OSError; then neither file ends in half a row.
        """
        row = record.to_json()
        place = self.results.stat().st_size if self.results.exists() else 0
        timing = {**timing, "at": place, "crc": crc32(row.encode(errors=ESCAPE))}
        append_lines(self.results, [row])
        append_lines(self.timings, [json.dumps(timing)])

    def timing_rows(self) -> Iterator[dict[str, Any]]:
        """The complete rows of timings.jsonl, oldest first."""
        return map(json.loads, whole_lines(self.timings))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json, which marks the run as finished. Raises OSError."""
        write_whole(self.folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


def check_creatable(folder: Path) -> None:
    """Raise InputError unless `folder` is missing or empty, and can be written."""
    if (folder / "run.json").exists():
        raise InputError(f"{folder} already contains a run; continue it with --resume {folder}, or choose another --out")
    if folder.exists() and (not folder.is_dir() or any(file.name not in BEFORE for file in folder.iterdir())):
        raise InputError(f"{folder} exists and is not an empty folder; choose another --out")
    parent = next(p for p in (folder, *folder.parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to {folder}: no permission in {parent}; choose another folder with --out")


BEFORE = (LOCK, part_of(Path("run.json")).name)
"""What a run leaves in its folder that was killed before it wrote run.json."""


def _line_at(path: Path, place: int) -> bytes:
    """The rest of the line from a place in the file, with its line end."""
    with path.open("rb") as file:
        file.seek(place)
        return file.readline()


def _search(path: Path, start: bytes) -> int | None:
    """Where in a file the first line is that starts so; None if there is none."""
    if not path.exists():
        return None
    wanted, before, seen = b"\n" + start, b"\n", 0  # as if the file began after a line end
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            if (at := (window := before + block).find(wanted)) >= 0:
                return seen - len(before) + at + 1
            seen, before = seen + len(block), window[-len(wanted) + 1 :]
    return None
