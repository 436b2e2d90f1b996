"""Problems to solve: the bundled benchmark, published ones by name, and data of your own."""

from __future__ import annotations

import inspect
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tts.errors import InputError
from tts.evals.benchmarks.published import PUBLISHED
from tts.evals.benchmarks.rows import DataRow, from_file, from_hub
from tts.evals.benchmarks.source import Source, verbatim
from tts.grading.rules import get_grader
from tts.options import configure
from tts.plugins import Registry
from tts.types import NO_INSTRUCTION, Problem

HUB = re.compile(r"(?P<hub>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?(:(?P<config>[\w.-]+))?")
FILES = (".jsonl", ".csv", ".parquet")


def _accept(found: Any) -> Any:
    """A Source, a function that returns problems, or a list of them."""
    return found if isinstance(found, Source | list | tuple) or inspect.isfunction(found) else None


BENCHMARKS: Registry[Any] = Registry(
    "benchmark",
    {
        "arith": "tts.evals.benchmarks.arith:test_split",
        "arith:dev": "tts.evals.benchmarks.arith:dev_split",
        "arith:train": "tts.evals.benchmarks.arith:train_split",
        **PUBLISHED,
    },
    accept=_accept,
    expected="a Source, a list of problems, or a function that returns problems",
)


@dataclass(frozen=True)
class Benchmark:
    """A named list of problems with unique ids."""

    name: str
    problems: list[Problem]
    """Every problem once, in order, and then, where it is repeated, as often again under ids that end in #2, #3, …"""
    repeat: int = 1

    @property
    def instruction(self) -> str | None:
        """The instruction that all problems are asked with, as --instruction names it; None where they differ."""
        found = {problem.instruction for problem in self.problems}
        return (found.pop() or NO_INSTRUCTION) if len(found) == 1 else None


def load_benchmark(
    name: str,
    limit: int | None = None,
    *,
    seed: int = 0,
    shuffle: bool = False,
    repeat: int = 1,
    question_field: str | None = None,
    answer_field: str | None = None,
    id_field: str | None = None,
    split: str | None = None,
    data_dir: str | None = None,
    grader: str | None = None,
    instruction: str | None = None,
    step_delimiter: str | None = None,
    options: Mapping[str, Any] | None = None,
    numbered: bool = False,
) -> Benchmark:
    """The first `limit` problems of a benchmark.

    Args:
        name: A name of BENCHMARKS (`arith:dev` is for choosing settings), `file.py:name` or `package.module:name`; the path
            of a JSONL, CSV or Parquet file; a folder that `datasets` can read; or a hub id as owner/name@revision:config.
        limit: Problems to take; all by default (of arith, the first 100).
        seed: Seed of the shuffling, and of where gpqa-diamond places the right choice.
        shuffle: Shuffle before taking the first ones.
        repeat: Times that every problem appears.
        question_field: Name of the question in the data; by default the benchmark's.
        answer_field: Name of the reference answer; by default the benchmark's.
        id_field: Name of the id; by default the benchmark's.
        split: Split to load; by default the benchmark's.
        data_dir: Local copy of what is on the hub.
        grader: How answers are compared; by default the benchmark's grader.
        instruction: How the policy is to answer, or "none" for no instruction; by default the benchmark's.
        step_delimiter: What ends a step of a solution, as --step-delimiter names it; by default each problem's own.
        options: Keyword arguments of a benchmark that is a function.
        numbered: Give rows without an id their number as one, as early versions did; by default they get a hash of their text.

    Raises:
        InputError: There is no such benchmark, or a row of it is not a problem.
    """
    fields = {"question": question_field, "answer": answer_field, "id": id_field}
    found = BENCHMARKS.find(name)
    if options and not callable(found):
        raise InputError(f"--benchmark-arg is for benchmarks that are a function; {name} is not one")
    if found is None or isinstance(found, Source):
        title, source, rows = _find(name, found, split, data_dir)
        source = source.with_fields(**fields)
        problems = _unique(_read(source, [row for row in rows if source.takes(row)], seed, numbered))
    else:
        choices = {"split": split, "data-dir": data_dir, **{f"{key}-field": value for key, value in fields.items()}}
        if given := next((option for option, value in choices.items() if value is not None), None):
            raise InputError(f"--{given} is {choices[given]!r}, but {name} is made by code and has none to choose; omit it")
        title, problems = name.rpartition(".py:")[2], _unique(_made(name, found, limit, dict(options or {}), numbered))
    if not problems:
        raise InputError(f"{name} has no problems; expected one JSON object a line with `problem` and `answer`")
    if shuffle:
        random.Random(seed).shuffle(problems)
    problems = problems[:limit]
    if grader is not None:
        get_grader(grader)
        problems = [replace(problem, grader=grader) for problem in problems]
    problems = [problem.instructed(instruction).divided(step_delimiter) for problem in problems]
    return Benchmark(title, _repeated(problems, repeat), repeat)


def _read(source: Source, rows: Iterable[DataRow], seed: int, numbered: bool) -> Iterator[tuple[DataRow, Problem]]:
    """The problems of rows, each with its place. Of equal problems without an id, the second gets the id HASH-2."""
    counts: Counter[str] = Counter()
    for row in rows:
        problem = source.problem(row, seed)
        if not source.has_id(row):
            counts[problem.id] += 1
            if numbered:
                problem = replace(problem, id=str(row.number))
            elif counts[problem.id] > 1:
                problem = replace(problem, id=f"{problem.id}-{counts[problem.id]}")
        yield row, problem


def _made(
    name: str, found: Any, limit: int | None, options: dict[str, Any], numbered: bool
) -> Iterator[tuple[DataRow, Problem]]:
    """The problems of a plug-in, each with its place. A dict is read like a row of a file."""
    if callable(found):
        if "limit" in inspect.signature(found).parameters:
            options.setdefault("limit", limit)
        found = configure(found, options, noun=f"the benchmark {name}", prefix="--benchmark-arg ")
    rows = []
    for number, item in enumerate(found, 1):
        row = DataRow(f"{name}, item {number}", number, item)
        if not isinstance(item, Problem | dict):
            raise InputError(f"{row.where} is {item!r:.60}; expected a tts.Problem or a dict with problem and answer")
        rows.append(row)
    read = _read(Source(), [row for row in rows if isinstance(row.fields, dict)], 0, numbered)
    for row in rows:
        yield (row, row.fields) if isinstance(row.fields, Problem) else next(read)


def _find(name: str, known: Source | None, split: str | None, data_dir: str | None) -> tuple[str, Source, Iterable[DataRow]]:
    """A short name, how a row becomes a problem, and the rows."""
    path = Path(name).expanduser()
    if known is not None:
        title, source = name.rpartition(".py:")[2], known
    elif path.is_file():
        if split is not None or data_dir is not None:
            raise InputError(f"{name} is a file: omit --split and --data-dir, which are for the hub and for folders")
        return path.stem, Source(), from_file(path)
    elif path.is_dir():
        title, source, data_dir = path.resolve().name, Source(), data_dir or name
    elif (match := HUB.fullmatch(name)) and not name.endswith(FILES):
        title = match["hub"].split("/")[1]
        source = Source(match["hub"], config=match["config"], revision=match["revision"] or "main")
    else:
        raise BENCHMARKS.unknown(
            name, "Or give a JSONL, CSV or Parquet file, a folder, a hub id such as owner/name, or your own as file.py:name."
        )
    source = replace(source, split=split or source.split)
    return title, source, from_hub(source, Path(data_dir).expanduser() if data_dir is not None else None)


def _unique(found: Iterable[tuple[DataRow, Problem]]) -> list[Problem]:
    problems: dict[str, Problem] = {}
    for row, problem in found:
        if problem.id in problems:
            raise InputError(f"{row.where}: the id {problem.id!r} has been used before; ids must be unique")
        problems[problem.id] = problem
    return list(problems.values())


def problem_of(identifier: str, repeat: int) -> str:
    """The id of the problem that a row solves, of a benchmark that was repeated so often: `60` for `60#2`."""
    base, mark, number = identifier.rpartition("#")
    return base if repeat > 1 and mark and number.isdigit() and 2 <= int(number) <= repeat else identifier


def _repeated(problems: list[Problem], times: int) -> list[Problem]:
    """The samples of a problem hang on its id, so each repetition draws others."""
    again = [replace(problem, id=f"{problem.id}#{i}") for i in range(2, times + 1) for problem in problems]
    if taken := {problem.id for problem in problems} & {problem.id for problem in again}:
        raise InputError(f"the id {min(taken)!r} is what a repetition would be called; rename it, or omit --repeat")
    return problems + again


__all__ = ["BENCHMARKS", "PUBLISHED", "Benchmark", "Source", "load_benchmark", "problem_of", "verbatim"]
