"""Time to grade 10,000 different answers of several kinds, 16 per problem, and 800 real responses, as a run asks for them.

    | what                    | answers | problems | correct | seconds | answers/s |
    | math_pool_100x8         | 800     | 100      | 729     | 0.8     | 956       |
    | answers of 5 kinds      | 10,000  | 625      | 5,000   | 130.0   | 77        |

`python benchmarks/grading.py [POOL]`. The answers are whole numbers, fractions, LaTeX expressions, sets and intervals, each
for a fifth of the problems. Half of the answers are correct, and all answers to a problem are written differently. POOL is a
JSONL file with `problem`, `answer` and `responses` in each row; by default ../shared/data/math_pool_100x8.jsonl, where it is
present. The two workers are running when the clock starts, and have not seen the answers. The rows above were measured on two
cores that five other jobs were using as well.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from tts.grading.pool import Grader
from tts.types import Candidate, Problem, Step

PROBLEMS, N = 625, 16
POOL = Path(__file__).parents[2] / "shared" / "data" / "math_pool_100x8.jsonl"


def answers(i):
    """Return the reference answer of problem i, 8 ways to write it, and 8 wrong answers."""
    a, b = 2 * i + 3, 2 * i + 4  # no common divisor
    match i % 5:
        case 0:
            right = [f"{a}", f"{a}.0", f"\\${a}", f"x = {a}", f"{a}\\text{{ cm}}", f"\\frac{{{2 * a}}}{{2}}", f"{a}^1", f"+{a}"]
            return f"{a}", right, [f"{a + k}" if k % 2 else f"{a + k}\\text{{ cm}}" for k in range(1, 9)]
        case 1:
            right = [f"{k * a}/{k * b}" if k % 2 else f"\\frac{{{k * a}}}{{{k * b}}}" for k in range(1, 9)]
            return f"\\frac{{{a}}}{{{b}}}", right, [f"\\frac{{{a + k}}}{{{b + k}}}" for k in range(1, 9)]
        case 2:
            right = [f"{k}\\sqrt{{2}} + {a}\\sqrt{{2}} - \\sqrt{{{2 * k * k}}}" for k in range(1, 9)]
            return f"{a}\\sqrt{{2}}", right, [f"{a}\\sqrt{{2}} + {k}\\pi" for k in range(1, 9)]
        case 3:
            right = [f"\\{{{k * a}/{k}, {b}, \\pi\\}}" for k in range(1, 5)]
            right += [f"\\{{\\pi, {b}, {k * a}/{k}\\}}" for k in range(1, 5)]
            return f"\\{{\\pi, {a}, {b}\\}}", right, [f"\\{{\\pi, {a}, {b + k}\\}}" for k in range(1, 9)]
        case _:
            right = [f"({k * a}/{k}, {b + 1}]" for k in range(1, 9)]
            return f"({a}, {b + 1}]", right, [f"[{a}, {b + k}]" for k in range(1, 9)]


def kinds():
    """Candidates of each problem, with answers of several kinds."""
    for i in range(PROBLEMS):
        reference, right, wrong = answers(i)
        texts = [text for pair in zip(right, wrong, strict=True) for text in pair]
        assert len(set(texts)) == N
        yield candidates(str(i), "?", reference, [f"So it is \\boxed{{{text}}}." for text in texts])


def pool(path):
    """Candidates of each problem of a file."""
    for i, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        yield candidates(str(i), row["problem"], row["answer"], row["responses"])


def candidates(name, prompt, reference, texts):
    problem = Problem(name, prompt, reference)
    return [Candidate(problem, (Step(text, (1,), "stop"),)) for text in texts]


async def measure(what, jobs):
    """Grade all problems concurrently, as many as the workers take, and print a row of the table."""
    grader = Grader()
    await asyncio.gather(*(grader.judge(candidates("start", "?", "1/2", [f"\\boxed{{{i}/3}}"])) for i in (1, 2)))
    start = time.perf_counter()
    verdicts = [verdict for job in await asyncio.gather(*map(grader.judge, jobs)) for verdict in job]
    seconds = time.perf_counter() - start
    await grader.close()
    correct = sum(bool(verdict.correct) for verdict in verdicts)
    print(f"| {what:23} | {len(verdicts):,} | {len(jobs)} | {correct:,} | {seconds:.1f} | {len(verdicts) / seconds:,.0f} |")


async def main():
    """Measure both, the real responses first."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else POOL
    if path.is_file():
        await measure(path.stem, list(pool(path)))
    else:
        print(f"no file {path}: the real responses are left out")
    await measure("answers of 5 kinds", list(kinds()))


if __name__ == "__main__":
    asyncio.run(main())
