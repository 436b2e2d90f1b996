"""How far rewards read in windows are from those of traces read whole, on traces that fit.

    python benchmarks/windows.py

The bundled policy solves development problems. The bundled PRM rates the solutions whole, and then in windows that are smaller
than its context. Only problems all of whose solutions are longer than a window count. "Mean over windows" is another definition
of the final reward: every window of the steps is rated as a whole, and their rewards are averaged. Intervals are over problems.
"""

from __future__ import annotations

import asyncio
import math
from statistics import fmean

import cyclopts

from tts.demo import arith
from tts.engines.transformers import TransformersEngine
from tts.evals.intervals import estimate, estimate_difference
from tts.grading.pool import Grader
from tts.scorers.prm import PRM
from tts.solving.generator import Generator
from tts.trajectory import BOUNDARY
from tts.types import Candidate, Problem, Sampling, Step


async def sample(count, n):
    """Solve problems n times; return candidates and whether they are right, for each problem."""
    engine, grader = TransformersEngine("arith-policy"), Grader()
    problems = [Problem(str(i), chain.prompt, chain.answer) for i, chain in enumerate(arith.take("dev", count))]
    solve = (Generator(engine, p, Sampling(max_tokens=600), seed=0).finish(Candidate(p), n) for p in problems)
    pools = [[c for c in pool if c.finish == "stop"] for pool in await asyncio.gather(*solve)]
    pools = [pool for pool in pools if pool]
    right = [[verdict.correct for verdict in await grader.judge(pool)] for pool in pools]
    await grader.close()
    return pools, right


async def mean_over_windows(prm, candidates, rewards):
    """Return the final rewards under the other definition."""
    finals = []
    for candidate, reward in zip(candidates, rewards, strict=True):
        steps = candidate.trajectory.steps
        texts = [BOUNDARY.join(steps[w.begin : w.end]) for w in reward.windows if w.of == "steps"]
        parts = [Candidate(candidate.problem, (Step(text, (), "stop"),)) for text in texts]
        finals.append(fmean(part.final for part in await prm.score(parts)))
    return finals


def choice(values):
    return max(range(len(values)), key=lambda i: (values[i], -i))


def shown(found, factor=1.0, digits=3):
    return f"{factor * found.value:.{digits}f} [{factor * found.low:.{digits}f}, {factor * found.high:.{digits}f}]"


async def compare(window, pools, right, whole):
    prm, full = PRM("arith-prm", window=window), PRM("arith-prm")
    off = {"steps": [], "end": [], "mean": []}
    chosen, counts, tokens = {"whole": [], "end": [], "mean": []}, [], []
    for pool, correct, ones in zip(pools, right, whole, strict=True):
        rewards = await prm.score(pool)
        if not all(reward.windows for reward in rewards):
            continue
        means = await mean_over_windows(full, pool, rewards)
        pairs = list(zip(rewards, ones, strict=True))
        off["steps"].append(fmean(abs(a - b) for x, y in pairs for a, b in zip(x.steps, y.steps, strict=True)))
        off["end"].append(fmean(abs(x.final - y.final) for x, y in pairs))
        off["mean"].append(fmean(abs(final - y.final) for final, (_, y) in zip(means, pairs, strict=True)))
        chosen["whole"].append(correct[choice([y.total for y in ones])])
        chosen["end"].append(correct[choice([x.total for x in rewards])])
        chosen["mean"].append(correct[choice([x.total - x.final + m for x, m in zip(rewards, means, strict=True)])])
        counts.append(fmean(sum(w.of == "steps" for w in x.windows) for x in rewards))
        tokens.append(sum(x.tokens for x in rewards) / sum(y.tokens for y in ones))
    if counts:
        differences = [shown(estimate_difference(chosen["whole"], chosen[name]), 100, 1) for name in ("end", "mean")]
        print(f"| {window} | {len(counts)} | {fmean(counts):.1f} | {math.fsum(tokens) / len(tokens):.2f} | "
              + " | ".join([*(shown(estimate(off[name])) for name in off), *differences]) + " |")  # fmt: skip


async def measure(problems, n, windows):
    pools, right = await sample(problems, n)
    prm = PRM("arith-prm")
    whole = [await prm.score(pool) for pool in pools]
    base = estimate([bool(correct[choice([r.total for r in ones])]) for correct, ones in zip(right, whole, strict=True)])
    lengths = sorted(reward.tokens // 2 for ones in whole for reward in ones)
    print(f"{len(pools)} problems, {len(lengths)} solutions of {lengths[0]} to {lengths[-1]} tokens with the problem,"
          f" median {lengths[len(lengths) // 2]}; accuracy of best-of-{n}, read whole: {shown(base, 100, 1)} %\n")  # fmt: skip
    columns = ["window", "problems", "windows per solution", "tokens, relative", "steps differ by", "`final` differs by",
               "mean over windows differs by", "accuracy with `final`", "accuracy with the mean"]  # fmt: skip
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for window in windows:
        await compare(window, pools, right, whole)


def main(problems: int = 200, n: int = 8, windows: tuple[int, ...] = (160, 144, 128)) -> None:
    """Run the comparison.

    Args:
        problems: Development problems to solve.
        n: Solutions for each.
        windows: Tokens in a window.
    """
    asyncio.run(measure(problems, n, windows))


if __name__ == "__main__":
    cyclopts.run(main)
