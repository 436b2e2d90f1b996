"""The `math` grader on math-verify's own test suite, beside math-verify alone.

    | grader            | right | of  |
    | math              | 243   | 245 |
    | math-verify alone | 243   | 245 |

    pip download --no-deps --no-binary math-verify math-verify==0.9.0 && tar xzf math_verify-0.9.0.tar.gz
    python benchmarks/math_verify_suite.py math_verify-0.9.0

All different pairs of a reference and a response are graded that the suite compares with default options. Each verdict that
differs from the suite's is printed. Both read two responses that the suite, with options of its own, wants to be unreadable.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
from pathlib import Path

from math_verify import parse, verify

from tts.grading.pool import Grader
from tts.types import Candidate, Problem, Step


def cases(folder):
    """Pairs of reference and response to the expected verdict, from the parameters of the tests in a folder."""
    sys.path.insert(0, str(folder))
    (folder / "tests" / "__init__.py").touch()
    found = {}
    for file in sorted((folder / "tests").glob("test_*.py")):
        module = importlib.import_module(f"tests.{file.stem}")
        for name, function in vars(module).items():
            if not name.startswith("test_") or function.__module__ != module.__name__:
                continue
            for mark in getattr(function, "pytestmark", []):
                names = [part.strip() for part in mark.args[0].split(",")] if mark.name == "parametrize" else []
                if names in (["gold", "pred", "expected"], ["gold", "pred", "result"]):
                    found |= {(gold, text): bool(expected) for gold, text, expected in mark.args[1]}
    return found


async def main():
    """Grade every case with both, and print what differs and the table."""
    logging.disable(logging.CRITICAL)
    expected = cases(Path(sys.argv[1]).resolve())
    grader = Grader()
    jobs = [[Candidate(Problem("p", "?", gold), (Step(text, (1,), "stop"),))] for gold, text in expected]
    ours = [bool(verdict.correct) for [verdict] in await asyncio.gather(*map(grader.judge, jobs))]
    await grader.close()
    alone = [bool(verify(parse(gold), parse(text))) for gold, text in expected]
    for name, verdicts in (("math", ours), ("math-verify alone", alone)):
        for ((gold, text), right), verdict in zip(expected.items(), verdicts, strict=True):
            if verdict != right:
                print(f"{name}: {gold!r} and {text[-80:]!r} should be {right}")
    print("| grader            | right | of  |")
    for name, verdicts in (("math", ours), ("math-verify alone", alone)):
        right = sum(verdict == value for verdict, value in zip(verdicts, expected.values(), strict=True))
        print(f"| {name:17} | {right:<5} | {len(expected)} |")


if __name__ == "__main__":
    asyncio.run(main())
