"""Accuracy of every strategy within the same token budget, on the bundled models; 95 % bootstrap intervals over problems.

`python benchmarks/strategies.py --limit 200` prints the table of docs/lab/strategies.md. Each strategy may generate BUDGET
tokens per problem, and has options that use about as many. The harder half are the problems with the fewest correct samples,
out of 16 samples from another seed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import cyclopts
import numpy as np

import tts
from tts.data.store import RunStore
from tts.engines.transformers import TransformersEngine
from tts.scorers.prm import PRM

BUDGET = 1600
RUNS = {
    "single": {},
    "majority": {"n": 16},
    "deepconf": {"n": 16},
    "budget-forcing": {"n": 10, "min_thinking": 96},
    "weighted": {"n": 16},
    "bon": {"n": 16},
    "adaptive": {"n": 16},
    "revise": {"n": 16, "chains": 4},
    "beam": {"n": 12, "width": 4},
    "lookahead": {"n": 8, "width": 4, "k": 1},
    "dvts": {"n": 16, "width": 4},
    "mcts": {"n": 16, "width": 4, "simulations": 32},
    "particle": {"n": 16},
    "compute-optimal": {"n": 16},
}


def mean(values):
    """Return a mean with its interval, in percent."""
    dice, values = np.random.default_rng(0), np.asarray(values, float)
    low, high = np.percentile(values[dice.integers(len(values), size=(4000, len(values)))].mean(1), (2.5, 97.5))
    return f"{100 * values.mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def main(limit: int = 200, benchmark: str = "arith", only: str = "") -> None:
    """Print a Markdown table with a row per strategy.

    Args:
        limit: Number of problems.
        benchmark: Benchmark to solve.
        only: Strategies to run, separated by commas. Default: all.
    """
    engine, prm = TransformersEngine("arith-policy"), PRM("arith-prm")

    def solve(name, **options):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "run")
            common = {"benchmark": benchmark, "limit": limit, "engine_instance": engine, "scorer_instance": prm, "out": out}
            summary = tts.run(name, max_tokens=400, **common, **options)
            records = {record.id: record for record in RunStore.open(out).records()}
        assert not summary.failed
        return [records[id] for id in sorted(records, key=lambda id: int(id.rpartition("-")[2]))], summary

    pool, _ = solve("bon", n=16, seed=1)
    ease = [sum(bool(candidate.correct) for candidate in record.candidates) for record in pool]
    harder = set(np.argsort(ease, kind="stable")[: limit // 2].tolist())
    print("| strategy | options | tokens | scored | accuracy | harder half | harder half, minus bon |")
    print("|---|---|---|---|---|---|---|", flush=True)
    names = only.split(",") if only else RUNS
    results = {"bon": solve("bon", budget=BUDGET, **RUNS["bon"])}
    reference = np.array([bool(record.correct) for record in results["bon"][0]], float)
    for name in names:
        records, summary = results.get(name) or solve(name, budget=BUDGET, **RUNS[name])
        correct = np.array([bool(record.correct) for record in records], float)
        hard = sorted(harder)
        options = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in RUNS[name].items())
        tokens, scored = summary.usage.generated / limit, summary.usage.scored / limit
        cells = [
            name,
            f"`{options}`" if options else "",
            f"{tokens:,.0f}",
            f"{scored:,.0f}",
            mean(correct),
            mean(correct[hard]),
        ]
        print(f"| {' | '.join(cells)} | {'' if name == 'bon' else mean(correct[hard] - reference[hard])} |", flush=True)


if __name__ == "__main__":
    cyclopts.run(main)
