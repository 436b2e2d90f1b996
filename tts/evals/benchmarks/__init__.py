"""Problems to solve: the bundled benchmark, published ones by name, and data of your own."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from tts.demo import arith
from tts.errors import InputError
from tts.evals.benchmarks.published import PUBLISHED
from tts.evals.benchmarks.rows import DataRow, from_file, from_hub
from tts.evals.benchmarks.source import Source, verbatim
from tts.grading.rules import get_grader
from tts.types import Problem

ARITH: dict[str, arith.Split] = {"arith": "test", "arith:dev": "dev", "arith:train": "train"}
ARITH_PROBLEMS = 100
"""Test problems of `arith` when no limit is given; there are over a million."""
HUB = re.compile(r"(?P<hub>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?(:(?P<config>[\w.-]+))?")
FILES = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True)
class Benchmark:
    """A named list of problems with unique ids."""

    name: str
    problems: list[Problem]
    """Every problem once, in order, and then, where it is repeated, as often again under ids that end in #2, #3, …"""
    repeat: int = 1


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
) -> Benchmark:
    """The first `limit` problems of a benchmark, after shuffling by `seed` where that is asked for, `repeat` times over.

    `name` is `arith` (its test split; `arith:dev` to choose settings on), one of PUBLISHED, the path of a JSONL, CSV or
    Parquet file, a folder that `datasets` can read, or a hub id as owner/name@revision:config. The fields and the grader are
    those of the benchmark where they are not given; `data_dir` is a local copy of what lies on the hub. `seed` also places
    the choices of gpqa-diamond. InputError where something is missing or no such row.
    """
    fields = {"question": question_field, "answer": answer_field, "id": id_field}
    if name in ARITH:
        choices = {"split": split, "data-dir": data_dir, **{f"{key}-field": value for key, value in fields.items()}}
        if given := next((option for option, value in choices.items() if value is not None), None):
            raise InputError(f"--{given} is {choices[given]!r}, but {name} is bundled and has none to choose; leave it away")
        title, problems = name, _arith(ARITH[name], limit or ARITH_PROBLEMS)
    else:
        title, source, rows = _find(name, split, data_dir)
        source = source.with_fields(**fields)
        problems = _unique((row, source.problem(row, seed)) for row in rows if source.takes(row))
        if not problems:
            raise InputError(f"{name} has no problems; expected one JSON object a line with `problem` and `answer`")
    if shuffle:
        random.Random(seed).shuffle(problems)
    problems = problems[:limit]
    if grader is not None:
        get_grader(grader)
        problems = [replace(problem, grader=grader) for problem in problems]
    return Benchmark(title, _repeated(problems, repeat), repeat)


def _arith(split: arith.Split, number: int) -> list[Problem]:
    return [Problem(f"arith-{i}", chain.prompt, chain.answer) for i, chain in enumerate(arith.take(split, number))]


def _find(name: str, split: str | None, data_dir: str | None) -> tuple[str, Source, Iterable[DataRow]]:
    """A short name, how a row becomes a problem, and the rows."""
    path = Path(name).expanduser()
    if name in PUBLISHED:
        title, source = name, PUBLISHED[name]
    elif path.is_file():
        if split is not None or data_dir is not None:
            raise InputError(f"{name} is a file: leave --split and --data-dir, which are for the hub and folders, away")
        return path.stem, Source(), from_file(path)
    elif path.is_dir():
        title, source, data_dir = path.resolve().name, Source(), data_dir or name
    elif (match := HUB.fullmatch(name)) and not name.endswith(FILES):
        title = match["hub"].split("/")[1]
        source = Source(match["hub"], config=match["config"], revision=match["revision"] or "main")
    else:
        close = get_close_matches(name, [*ARITH, *PUBLISHED], n=1)
        hint = f". Did you mean {close[0]!r}?" if close else ""
        raise InputError(
            f"no benchmark {name!r}: expected arith, or the path of a JSONL file (or CSV, Parquet, a folder), or a hub id as in"
            f" owner/name, or one of {', '.join(PUBLISHED)}{hint}"
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
        raise InputError(f"the id {min(taken)!r} is what a repetition would be called; rename it, or leave --repeat away")
    return problems + again


__all__ = ["ARITH", "ARITH_PROBLEMS", "PUBLISHED", "Benchmark", "Source", "load_benchmark", "problem_of", "verbatim"]
