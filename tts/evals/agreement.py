"""How rows that were drawn twice agree: the first difference of two JSON values, and means over pairs of rows."""

from __future__ import annotations

import math
from statistics import NormalDist, fmean, stdev
from typing import Any, NamedTuple

from tts.data.records import Record
from tts.evals.intervals import paired_p

FALSE_ALARMS = 0.01
"""Probability that the statistical check finds a difference in an honest run, over all quantities."""


class Compared(NamedTuple):
    """The mean of a quantity over the checked rows."""

    name: str
    recorded: float
    redrawn: float
    p: float
    """p-value of no difference: of each pair of rows, it is chance which one was recorded."""
    detects: float | None
    """Difference that would be found with a probability of 80 %; None if no pair differs or there are too few pairs."""


def first_difference(recorded: Any, expected: Any, *, tolerance: float = 1e-9, path: str = "") -> tuple[str, Any, Any] | None:
    """The first place at which two JSON values differ: its path, and what is there; None if they are equal."""
    if isinstance(recorded, dict) and isinstance(expected, dict):
        pairs = [(f"{path}.{k}".lstrip("."), recorded.get(k), expected.get(k)) for k in dict.fromkeys((*recorded, *expected))]
    elif isinstance(recorded, list) and isinstance(expected, list) and len(recorded) == len(expected):
        pairs = [(f"{path}[{i}]", *pair) for i, pair in enumerate(zip(recorded, expected, strict=True))]
    else:
        numbers = all(isinstance(value, float | int) and not isinstance(value, bool) for value in (recorded, expected))
        equal = math.isclose(recorded, expected, rel_tol=tolerance, abs_tol=tolerance) if numbers else recorded == expected
        return None if equal and (numbers or type(recorded) is type(expected)) else (path, recorded, expected)
    return next((found for name, a, b in pairs if (found := first_difference(a, b, tolerance=tolerance, path=name))), None)


def quantities(record: Record) -> dict[str, float]:
    """What the statistical check compares of a row."""
    attempts = record.candidates
    found = {"tokens generated": float(record.usage.generated)}
    if attempts:
        found |= {
            "candidates with an answer": fmean(attempt.answer is not None for attempt in attempts),
            "candidates that finished": fmean(attempt.finish == "stop" for attempt in attempts),
        }
        if record.correct is not None:
            found |= {"accuracy": float(record.correct), "pass@1": fmean(bool(attempt.correct) for attempt in attempts)}
        if all(attempt.rewards is not None and attempt.reward().known for attempt in attempts):
            found["reward"] = fmean(attempt.reward().aggregate("mean") for attempt in attempts)
    return found


def compare_pairs(pairs: list[tuple[dict[str, float], dict[str, float]]]) -> tuple[Compared, ...]:
    """Means of the quantities, over the pairs of rows that have them."""
    names = ("accuracy", "pass@1", "candidates with an answer", "candidates that finished", "tokens generated", "reward")
    columns = {name: [(a[name], b[name]) for a, b in pairs if name in a and name in b] for name in names}
    columns = {name: column for name, column in columns.items() if column}
    z = NormalDist().inv_cdf(1 - FALSE_ALARMS / max(1, len(columns)) / 2) + NormalDist().inv_cdf(0.8)
    found = []
    for name, column in columns.items():
        recorded, redrawn = ([pair[i] for pair in column] for i in (0, 1))
        moved = [b - a for a, b in column]
        enough = 2 ** (1 - len(moved)) < FALSE_ALARMS / len(columns)  # the smallest p-value that there can be
        detects = z * stdev(moved) / math.sqrt(len(moved)) if enough else None
        found.append(Compared(name, fmean(recorded), fmean(redrawn), paired_p(recorded, redrawn), detects or None))
    return tuple(found)


def changes_found(rows: int, checked: int) -> int | None:
    """The smallest number of changed rows of which one is among the checked with a probability of 95 %; None without rows."""

    def missed(changed: int) -> float:
        if changed > rows - checked:
            return 0.0
        logs = (math.lgamma(rows - changed + 1), math.lgamma(rows - checked + 1), math.lgamma(rows - changed - checked + 1),
                math.lgamma(rows + 1))  # fmt: skip
        return math.exp(logs[0] + logs[1] - logs[2] - logs[3])

    low, high = 1, rows
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if missed(middle) <= 0.05 else (middle + 1, high)
    return low if checked else None
