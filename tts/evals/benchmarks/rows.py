"""Rows of data: from a JSONL, CSV or Parquet file, from the hub, or from a local copy of what lies there."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tts.errors import InputError

if TYPE_CHECKING:
    from tts.evals.benchmarks.source import Source

DATA = "pip install 'tts-toolkit[data]'"
SHAPE = 'expected {"problem": …, "answer": …}'


@dataclass(frozen=True, slots=True)
class Row:
    """A row, and its place for people."""

    where: str
    number: int
    """Counted from 1; in a JSONL file that of the line."""
    fields: Any

    def text(self, names: tuple[str, ...], option: str | None) -> str:
        """The text under the first of `names` that there is; `option` is what would name another field."""
        if not isinstance(self.fields, dict):
            raise InputError(f"{self.where}: no text under `{names[0]}`; {SHAPE}")
        for name in names:
            if isinstance(text := self.fields.get(name), str) and text.strip():
                return text
        raise self.lacks(names, option, "text")

    def lacks(self, names: tuple[str, ...], option: str | None, kind: str = "value") -> InputError:
        """The complaint that there is none under any of `names`."""
        found = ", ".join(str(name) for name in self.fields) or "no fields"
        hint = f"; name yours with {option}" if option else ""
        return InputError(f"{self.where}: no {kind} under {' or '.join(f'`{name}`' for name in names)}; it has {found}{hint}")


def from_file(path: Path) -> Iterator[Row]:
    """The rows of a .csv or .parquet file, or else of a JSONL file."""
    read = {".csv": _csv, ".parquet": _parquet}.get(path.suffix.lower(), _jsonl)
    try:
        yield from read(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path}: {error}") from error


def _jsonl(path: Path) -> Iterator[Row]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                yield Row(where, number, json.loads(line))
            except ValueError as error:
                raise InputError(f"{where}: not valid JSON ({error}); {SHAPE}") from error


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", newline="") as file:
        for number, fields in enumerate(csv.DictReader(file), 1):
            yield Row(f"{path}, row {number}", number, fields)


def _parquet(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise InputError(f"{path} needs pyarrow to be read: {DATA}") from error
    try:
        rows = parquet.read_table(path).to_pylist()
    except ArrowInvalid as error:
        raise InputError(f"cannot read {path}: {error}") from error
    for number, fields in enumerate(rows, 1):
        yield Row(f"{path}, row {number}", number, fields)


def from_hub(source: Source, folder: Path | None) -> Iterator[Row]:
    """The rows of a data set, from `folder` where it is given; else from the hub or its cache, as HF_HUB_OFFLINE says."""
    if folder is not None and not folder.is_dir():
        raise InputError(f"no folder {folder}; --data-dir is a folder with the files of {source.hub or 'a data set'}")
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"{folder or source.hub} needs datasets to be read: {DATA}") from error
    place = str(folder) if folder is not None else source.hub
    datasets.disable_progress_bars()
    try:
        if folder is None:
            data = datasets.load_dataset(place, source.config, split=source.split, revision=source.revision)
        else:  # a copy of the data files alone does not know the names of configurations
            config = source.config if source.config in datasets.get_dataset_config_names(place) else None
            data = datasets.load_dataset(place, config, split=source.split)
        rows = data.with_format("arrow")[:].to_pylist()  # as they are stored: no picture is decoded
    except Exception as error:  # of datasets, of the hub's client, of its HTTP client: whatever it is, the remedy is the same
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        copy = f"; for a local copy, hf download {place} --repo-type dataset --local-dir DIR, then --data-dir DIR"
        raise InputError(f"cannot load {place}, split {source.split}: {reason}{'' if folder else copy}") from error
    for number, fields in enumerate(rows, 1):
        yield Row(f"{place}, row {number}", number, fields)
