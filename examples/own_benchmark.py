"""A benchmark of your own, with a grader of your own.

    python examples/own_benchmark.py

The problems are chains of arithmetic, in words that the bundled policy knows. The grader accepts answers that are off by one.
"""

from __future__ import annotations

import json
from pathlib import Path

import cyclopts

import tts

ROWS = [
    {"question": "Start with 7.\n1) multiply by 8\n2) multiply by 5\nWhat is the last digit?", "expected": 0},
    {"question": "Start with 3.\n1) add 9\n2) multiply by 4\n3) subtract 5\nWhat is the last digit?", "expected": 3},
    {"question": "Start with 6.\n1) add 7\n2) multiply by 2\nWhat is the last digit?", "expected": 6},
]


def near(answer: str, reference: str) -> bool:
    """Compare the boxed answer with the reference answer."""
    return abs(int(answer) - int(reference)) <= 1


def main(folder: Path = Path("runs/own-benchmark")) -> None:
    """Write the problems, solve them, and print the accuracy by the built-in grader and by `near`."""
    folder.mkdir(parents=True, exist_ok=True)
    problems = folder / "problems.jsonl"
    problems.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    fields = {"benchmark": str(problems), "question_field": "question", "answer_field": "expected"}
    for name, grader in (("exactly", "math"), ("within one", f"{__file__}:near")):
        summary = tts.run("bon", n=8, **fields, grader=grader, out=folder / name.replace(" ", "-"))
        print(f"{name}: {summary.accuracy.value:.1%} of {summary.graded} problems")


if __name__ == "__main__":
    cyclopts.run(main)
