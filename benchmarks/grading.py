"""Time to grade 10,000 different answers of several kinds, 16 per problem, as a run asks for them.

    | answers | problems | correct | seconds |
    | 10,000  | 625      | 5,000   | 40.4    |

`python benchmarks/grading.py`. The answers are whole numbers, fractions, LaTeX expressions, sets and intervals, each for a
fifth of the problems. Half of the answers are correct, and all answers to a problem are written differently. The time includes
starting the two workers. The row above was measured on two cores that were busy with other work.
"""

from __future__ import annotations

import asyncio
import time

from tts.grading.pool import Grader
from tts.types import Candidate, Problem, Step

PROBLEMS, N = 625, 16


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


async def main():
    """Grade all problems concurrently, as many as the workers take."""
    grader, jobs = Grader(), []
    for i in range(PROBLEMS):
        reference, right, wrong = answers(i)
        problem = Problem(str(i), "?", reference)
        texts = [text for pair in zip(right, wrong, strict=True) for text in pair]
        assert len(set(texts)) == N
        jobs.append([Candidate(problem, (Step(f"So it is \\boxed{{{text}}}.", (1,), "stop"),)) for text in texts])
    start = time.perf_counter()
    verdicts = [verdict for job in await asyncio.gather(*map(grader.judge, jobs)) for verdict in job]
    seconds = time.perf_counter() - start
    await grader.close()
    print(f"| {len(verdicts):,} | {PROBLEMS} | {sum(bool(v.correct) for v in verdicts):,} | {seconds:.1f} |")


if __name__ == "__main__":
    asyncio.run(main())
