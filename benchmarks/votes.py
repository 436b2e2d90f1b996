"""Weights of a weighted vote for rewards of any range: accuracies on dev problems, by which the rule was chosen.

    python benchmarks/votes.py

For each kind of reward, the same 16 samples per problem are ranked by: the sum of raw rewards per answer, the number of
votes (majority), a softmax of the rewards, the rule of `tts.strategies.votes` (exp of the reward in standard deviations
below the best) for all kinds of rewards, and the highest reward (best-of-n). Runs are kept in runs/votes and reused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import cyclopts

import tts
from tts.data.records import Attempt, Record
from tts.strategies.votes import standardized, tally
from tts.types import Preference, Reward

N, MAX_TOKENS = 16, 400
RULES: dict[str, Callable[[Sequence[float]], Sequence[float]]] = {
    "raw": lambda rewards: rewards,
    "majority": lambda rewards: [1.0] * len(rewards),
    "softmax": lambda rewards: [math.exp(reward - max(rewards)) for reward in rewards],
    "standardized": standardized,
}


def main(*, runs: Path = Path("runs/votes"), problems: int = 100) -> None:
    """Print a Markdown table with a row per kind of reward.

    Args:
        runs: Folder of the runs.
        problems: Number of dev problems.
    """
    prm, logprob = (pool(runs, scorer, problems) for scorer in ("arith-prm", "logprob"))
    kinds = {
        "probabilities (r_hat of arith-prm)": [[r_hat(attempt, "mean") for attempt in row.candidates] for row in prm],
        "sums of logits (--aggregate sum-logit)": [[r_hat(attempt, "sum-logit") for attempt in row.candidates] for row in prm],
        "lengths (--scorer length)": [[-float(sum(attempt.tokens)) for attempt in row.candidates] for row in prm],
        "log-probabilities (--scorer logprob)": [[attempt.final or 0.0 for attempt in row.candidates] for row in logprob],
    }
    print(f"| rewards | {' | '.join(RULES)} | best-of-n |")
    print("|---" * (len(RULES) + 2) + "|")
    for kind, pools in kinds.items():
        cells = [accuracy(prm, [vote(row, rule(rewards)) for row, rewards in zip(prm, pools, strict=True)])
                 for rule in RULES.values()]  # fmt: skip
        print(f"| {kind} | {' | '.join([*cells, accuracy(prm, pools)])} |")


def pool(runs: Path, scorer: str, problems: int) -> list[Record]:
    """Rows with the same samples for every scorer."""
    out = runs / f"{scorer}-{problems}"
    if not (out / "summary.json").exists():
        where = {"resume": out} if (out / "run.json").exists() else {
            "out": out, "n": N, "benchmark": "arith:dev", "limit": problems, "max_tokens": MAX_TOKENS, "scorer": scorer,
        }  # fmt: skip
        tts.run(None if "resume" in where else "bon", **where)
    return list(tts.load_run(out).records)


def r_hat(attempt: Attempt, how: str) -> float:
    return Reward(attempt.rewards or (), attempt.final, how=how).total


def vote(row: Record, weights: Sequence[float]) -> Sequence[float]:
    groups = [attempt.group for attempt in row.candidates]
    if min(weights) > 0:
        return tally(groups, weights)
    sums = [sum(w for w, other in zip(weights, groups, strict=True) if other == group) for group in groups]
    return [0.0 if group is None else total for group, total in zip(groups, sums, strict=True)]  # as without this rule


def accuracy(rows: Sequence[Record], scores: Sequence[Sequence[float]]) -> str:
    right = 0
    for row, own in zip(rows, scores, strict=True):
        keys = [
            Preference.of(attempt.finish, score, i) for i, (attempt, score) in enumerate(zip(row.candidates, own, strict=True))
        ]
        right += bool(row.candidates[-max(keys).place].correct)
    return f"{100 * right / len(rows):.1f}"


if __name__ == "__main__":
    cyclopts.run(main)
