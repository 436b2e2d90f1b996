"""Two reward models choose among the same samples. Which one chooses better?

    python examples/two_prms.py --problems 50

The samples are drawn once. For the second model they are read back from the run folder.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import cyclopts

import tts
from tts import Candidate, Problem, Step
from tts.evals.intervals import estimate, estimate_difference


def main(
    problems: int = 50, first: str = "arith-prm", second: str = "arith-prm-response", out: Path = Path("runs/pool-example")
) -> None:
    """Print the accuracy of best-of-16 with each model, and the paired difference."""
    tts.run("bon", n=16, limit=problems, scorer=first, out=out)
    pool = tts.load_run(out).records
    chosen = asyncio.run(choices(tts.load_scorer(second), pool))
    one = [float(bool(record.correct)) for record in pool]
    other = [float(bool(record.candidates[i].correct)) for record, i in zip(pool, chosen, strict=True)]
    difference = estimate_difference(other, one)
    print(f"{first}: {estimate(one).value:.1%}\n{second}: {estimate(other).value:.1%}")
    print(f"difference: {100 * difference.value:+.1f} points [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]")


async def choices(scorer: tts.Scorer, records: tuple) -> list[int]:
    """Return, for each problem, the index of the candidate with the highest reward."""
    best = []
    for record in records:
        problem = Problem(record.id, record.problem)
        rewards = await scorer.score([Candidate(problem, (Step(a.text, (), a.finish),)) for a in record.candidates])
        best.append(max(range(len(rewards)), key=lambda i: rewards[i].total))
    return best


if __name__ == "__main__":
    cyclopts.run(main)
