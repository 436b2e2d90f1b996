"""Problems to solve: the bundled benchmark, and any JSONL file of `problem` and `answer`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tts.demo import arith
from tts.errors import InputError
from tts.types import Problem

ARITH: dict[str, arith.Split] = {"arith": "test", "arith:dev": "dev"}
ARITH_PROBLEMS = 100
"""Test problems of `arith` when no limit is given; there are over a million."""


@dataclass(frozen=True)
class Benchmark:
    """A named list of problems with unique ids."""

    name: str
    problems: list[Problem]


def load_benchmark(name: str, limit: int | None = None) -> Benchmark:
    """`arith` (its test split; `arith:dev` to choose settings on), or the path of a JSONL file; its first `limit` problems."""
    if name in ARITH:
        chains = arith.take(ARITH[name], limit or ARITH_PROBLEMS)
        return Benchmark(name, [Problem(f"arith-{i}", chain.prompt, chain.answer) for i, chain in enumerate(chains)])
    path = Path(name).expanduser()
    if not path.is_file():
        raise InputError(f"no benchmark {name!r}: expected arith, or the path of a JSONL file with `problem` and `answer`")
    return Benchmark(path.stem, _read_jsonl(path)[:limit])


def _read_jsonl(path: Path) -> list[Problem]:
    """Every row {"problem": "1 + 1 = ?", "answer": "2", "id": "sum-1"}; without an id, the line number is one."""
    problems: dict[str, Problem] = {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        problem = _problem(line, number, f"{path}, line {number}")
        if problem.id in problems:
            raise InputError(f"{path}, line {number}: the id {problem.id!r} has been used before; ids must be unique")
        problems[problem.id] = problem
    if not problems:
        raise InputError(f"{path} has no problems; expected one JSON object a line with `problem` and `answer`")
    return list(problems.values())


def _problem(line: str, number: int, where: str) -> Problem:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise InputError(f'{where}: not valid JSON ({error}); expected {{"problem": …, "answer": …}}') from error
    if not isinstance(row, dict) or not isinstance(row.get("problem"), str) or not row["problem"].strip():
        raise InputError(f'{where}: no text under `problem`; expected {{"problem": …, "answer": …}}')
    answer, identifier = row.get("answer"), row.get("id", number)
    if isinstance(answer, bool | dict | list):
        raise InputError(f"{where}: the answer is {json.dumps(answer)[:40]}; expected a text or a number")
    if isinstance(identifier, bool | dict | list) or identifier is None:
        raise InputError(f"{where}: the id is {json.dumps(identifier)[:40]}; expected a text or a number")
    return Problem(str(identifier), row["problem"], None if answer is None or answer == "" else str(answer))
