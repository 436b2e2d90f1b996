"""Rows of a data set: from a JSONL, CSV or Parquet file, from the hub, or from a local copy of a data set on the hub."""

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
class DataRow:
    """A row of a data set."""

    where: str
    """File or data set and number, for messages."""
    number: int
    """Number of the row, from 1; of a JSONL file, the number of the line."""
    fields: Any
    """The row as it was read: a dictionary, unless the line is other JSON."""

    def text(self, names: tuple[str, ...], option: str | None) -> str:
        """The string under the first of `names` that has one; `option` is the option that names another field.

        Raises InputError if there is none.
        """
        if not isinstance(self.fields, dict):
            raise InputError(f"{self.where}: no string under `{names[0]}`; {SHAPE}")
        for name in names:
            if isinstance(text := self.fields.get(name), str) and text.strip():
                return text
        raise self.lacks(names, option, "string")

    def lacks(self, names: tuple[str, ...], option: str | None, kind: str = "value") -> InputError:
        """The error for a row without a value under any of `names`."""
        found = ", ".join(str(name) for name in self.fields) or "no fields"
        hint = f"; name the field with {option}" if option else ""
        missing = " or ".join(f"`{name}`" for name in names)
        return InputError(f"{self.where}: no {kind} under {missing}; the row has {found}{hint}")


def from_file(path: Path) -> Iterator[DataRow]:
    """Yield the rows of a .csv or .parquet file, or of a JSONL file with any other name. Raises InputError."""
    read = {".csv": _csv, ".parquet": _parquet}.get(path.suffix.lower(), _jsonl)
    try:
        yield from read(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path}: {error}") from error


def _jsonl(path: Path) -> Iterator[DataRow]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                yield DataRow(where, number, json.loads(line))
            except ValueError as error:
                raise InputError(f"{where}: not valid JSON ({error}); {SHAPE}") from error


def _csv(path: Path) -> Iterator[DataRow]:
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", newline="") as file:
        for number, fields in enumerate(csv.DictReader(file), 1):
            yield DataRow(f"{path}, row {number}", number, fields)


def _parquet(path: Path) -> Iterator[DataRow]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise InputError(f"reading {path} needs pyarrow: {DATA}") from error
    try:
        rows = parquet.read_table(path).to_pylist()
    except ArrowInvalid as error:
        raise InputError(f"cannot read {path}: {error}") from error
    for number, fields in enumerate(rows, 1):
        yield DataRow(f"{path}, row {number}", number, fields)


def from_hub(source: Source, folder: Path | None) -> Iterator[DataRow]:
    """Yield the rows of a data set, from `folder` if it is given, otherwise from the hub or its cache (HF_HUB_OFFLINE).

    Raises InputError if the data set cannot be loaded.
    """
    if folder is not None and not folder.is_dir():
        raise InputError(f"no folder {folder}; --data-dir takes a folder with the files of {source.hub or 'a data set'}")
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"reading {folder or source.hub} needs datasets: {DATA}") from error
    place = str(folder) if folder is not None else source.hub
    datasets.disable_progress_bars()
    try:
        if folder is None:
            data = datasets.load_dataset(place, source.config, split=source.split, revision=source.revision)
        else:  # a copy that has only the data files has no named configurations
            config = source.config if source.config in datasets.get_dataset_config_names(place) else None
            data = datasets.load_dataset(place, config, split=source.split)
        rows = data.with_format("arrow")[:].to_pylist()  # as stored, so that images are not decoded
    except Exception as error:  # from datasets, the hub's client or its HTTP client; the remedy is the same
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        copy = f"; for a local copy, hf download {place} --repo-type dataset --local-dir DIR, then --data-dir DIR"
        raise InputError(f"cannot load {place}, split {source.split}: {reason}{'' if folder else copy}") from error
    for number, fields in enumerate(rows, 1):
        yield DataRow(f"{place}, row {number}", number, fields)
