"""Accuracy of the bundled models, as Markdown tables: `python -m tts.reproduce.demo_evaluation`.

docs/lab/bundled-models.md holds the output.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import cyclopts

import tts
from tts.data.records import Attempt, Record
from tts.data.store import RunStore
from tts.evals.intervals import Estimate, estimate, estimate_difference
from tts.evals.statistics import pass_at_k
from tts.evals.summary import at_k
from tts.strategies.bon import BestOfN
from tts.strategies.majority import Majority
from tts.types import Reward

N = 16
"""Samples per problem."""
MORE = (("arith:dev", 1000), ("arith", 2000))
"""Further problems that majority voting is measured on."""


def evaluate(
    *,
    benchmark: str = "arith",
    limit: int = 500,
    seed: int = 0,
    policy: str = "arith-policy",
    prm: str = "arith-prm",
    response_prm: str = "arith-prm-response",
) -> None:
    """Draw 16 samples per problem, rate them with each PRM, and print accuracies as Markdown tables.

    Args:
        benchmark: Problems: arith, the test split, for final figures, or arith:dev to make choices by.
        limit: Number of problems.
        seed: Seed of the samples, which are the same for both PRMs.
        policy: Policy to sample from.
        prm: Trajectory-aware PRM.
        response_prm: PRM that rates responses alone.
    """
    with tempfile.TemporaryDirectory() as folder:

        def pool(strategy: str, scorer: str, benchmark: str, limit: int) -> list[Record]:
            out = Path(tempfile.mkdtemp(dir=folder))
            tts.run(strategy, n=N, model=policy, scorer=scorer, benchmark=benchmark, limit=limit, seed=seed, out=out)
            return sorted(RunStore.open(out).records(), key=lambda record: record.id)

        full, response = (pool("bon", scorer, benchmark, limit) for scorer in (prm, response_prm))
        more = [pool("majority", prm, *which) for which in MORE]
    vote, one = [_votes(full, k) for k in (2, 4, 8, N)], _passes(full, 1)
    rows: list[tuple[str, list[list[float]]]] = [
        ("pass@N", [_passes(full, k) for k in (1, 2, 4, 8, N)]),
        ("best-of-N, trajectory-aware PRM", [_best(full, k) for k in (1, 2, 4, 8, N)]),
        ("best-of-N, response-only PRM", [_best(response, k) for k in (1, 2, 4, 8, N)]),
        ("majority", [one, *vote]),
    ]
    print(f"{len(full)} problems of {benchmark}, seed {seed}, temperature 1, 95 % intervals over problems\n")
    print("| % | N = 1 | 2 | 4 | 8 | 16 |\n|---|---|---|---|---|---|")
    for name, values in rows:
        print(f"| {name} | " + " | ".join(_percent(estimate(v)) for v in values) + " |")
    print("\n| difference in points | |\n|---|---|")
    top, weak = _best(full, N), _best(response, N)
    for name, a, b in (
        ("majority@16 over pass@1", vote[-1], one),
        ("best-of-16 over majority@16", top, vote[-1]),
        ("best-of-16 over best-of-8", top, _best(full, 8)),
        ("best-of-8 over best-of-4", _best(full, 8), _best(full, 4)),
        ("best-of-4 over best-of-2", _best(full, 4), _best(full, 2)),
        ("trajectory-aware over response-only PRM, best-of-16", top, weak),
    ):
        print(f"| {name} | {_difference(a, b)} |")
    for (which, _), records in zip(MORE, more, strict=True):
        points = _difference(_votes(records, N), _passes(records, 1))
        print(f"| majority@16 over pass@1, {len(records):,} problems of {which} | {points} |")
    print("\n| best-of-16 by | " + " | ".join(AGGREGATES) + " |\n|---|" + "---|" * len(AGGREGATES))
    print(
        "| trajectory-aware PRM | "
        + " | ".join(_percent(estimate([at_k(BestOfN(), r, N, f).value for r in full])) for f in AGGREGATES.values())
        + " |"
    )


def _best(pool: list[Record], k: int) -> list[float]:
    return [at_k(BestOfN(), record, k, _reward).value for record in pool]


def _votes(pool: list[Record], k: int) -> list[float]:
    return [at_k(Majority(), record, k, _reward).value for record in pool]


def _passes(pool: list[Record], k: int) -> list[float]:
    return [pass_at_k(_right(record), k) for record in pool]


def _reward(attempt: Attempt) -> Reward:
    return Reward(attempt.rewards or (), attempt.final)


def _right(record: Record) -> list[bool]:
    return [bool(attempt.correct) for attempt in record.candidates]


AGGREGATES: dict[str, Callable[[Attempt], Reward]] = {
    "r_hat (mean + final)": _reward,
    "mean": lambda a: Reward(a.rewards or ()),
    "min": lambda a: Reward(a.rewards or (), how="min"),
    "prod": lambda a: Reward(a.rewards or (), how="prod"),
    "last": lambda a: Reward(a.rewards or (), how="last"),
    "final": lambda a: Reward((), a.final),
}


def _difference(a: list[float], b: list[float]) -> str:
    return _percent(estimate_difference(b, a), "+")


def _percent(found: Estimate, sign: str = "") -> str:
    mean, low, high = (100 * part for part in found)
    return f"{mean:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


if __name__ == "__main__":
    cyclopts.run(evaluate)
