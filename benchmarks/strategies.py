"""Accuracy of every strategy within the same token budget, on the bundled models, with every strategy tuned the same way.

    python benchmarks/strategies.py

A strategy may generate BUDGET tokens per problem. Of its configurations in GRID, at most nine, the one with the highest
accuracy on 100 dev problems is run once on 200 test problems; at equal accuracy, the one with fewer tokens. The harder half
are the test problems with the fewest correct samples, out of 16 from another seed. Runs are kept in runs/strategies and
reused, so that the script resumes where it was stopped; remove that folder after a change of the code.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from shlex import quote

import cyclopts
import numpy as np

import tts
from tts.engines.transformers import TransformersEngine
from tts.evals.intervals import Estimate, estimate, estimate_difference
from tts.evals.load import SavedRun
from tts.scorers.prm import PRM

BUDGET, MAX_TOKENS = 1600, 400
DEV, TEST = {"benchmark": "arith:dev", "limit": 100, "seed": 1}, {"benchmark": "arith", "limit": 200, "seed": 0}
GRID = {
    "single": {},
    "majority": {"n": [4, 8, 16]},
    "deepconf": {"n": [16], "keep": [0.1, 0.5, 0.9], "window": [16, 2048]},
    "budget-forcing": {"n": [4, 8, 12], "min_thinking": [32, 64, 96], "max_thinking": [128]},
    "weighted": {"n": [4, 8, 16]},
    "adaptive": {"n": [16], "batch": [2, 4, 8], "confidence": [0.9, 0.95, 0.99]},
    "bon": {"n": [4, 8, 16]},
    "revise": {"n": [8, 16], "chains": [1, 4, 8]},
    "particle": {"n": [8, 12, 16], "softmax_temperature": [0.3, 1.0, 3.0]},
    "mcts": {"n": [16], "width": [4], "simulations": [32, 64], "rule": ["uct", "puct"], "c": [1.0, 2.0]},
    "compute-optimal": {"n": [12, 16], "easy_above": [0.8, 0.95], "hard": ["bon", "beam"]},
    "dvts": {"n": [16, 24, 32], "width": [4, 8]},
    "lookahead": {"n": [4, 8, 12], "width": [4], "k": [1, 2, 3]},
    "beam": {"n": [8, 12, 16], "width": [2, 4]},
}
"""Values of each option; a configuration is one of each."""


def configurations(name: str) -> Iterator[dict[str, object]]:
    """Every combination of the values in GRID."""
    for values in product(*GRID[name].values()):
        yield dict(zip(GRID[name], values, strict=True))


class Bench:
    """Runs on the bundled models, each of which is made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine, self.prm = TransformersEngine("arith-policy"), PRM("arith-prm")

    def run(self, name: str, options: dict[str, object], where: dict[str, object], **more: object) -> SavedRun:
        """A finished run: the kept one, or a new one."""
        words = [f"{key}={value}" for key, value in {**options, **more}.items()]
        out = self.folder / "-".join([name, str(where["benchmark"]).replace(":", "-"), f"seed={where['seed']}", *words])
        if not (out / "summary.json").exists():
            settings = {"out": out, "max_tokens": MAX_TOKENS, **where, **options, **more}
            begun = {"resume": out} if (out / "run.json").exists() else settings
            summary = tts.run(name, engine_instance=self.engine, scorer_instance=self.prm, **begun)
            assert not summary.failed, f"{summary.failed} problems failed in {out}"
        return tts.load_run(out)

    def tuned(self, name: str) -> tuple[dict[str, object], float]:
        """The configuration that is best on dev, and its accuracy there."""
        best = None
        for options in configurations(name):
            summary = self.run(name, options, DEV, budget=BUDGET).summary
            key = summary["accuracy"], -summary["usage"]["generated"]
            line = f"{name} {written(options)}: {100 * key[0]:.1f} with {-key[1] / DEV['limit']:,.0f} tokens"
            print(line, file=sys.stderr, flush=True)
            best = max(best or (key, options), (key, options), key=lambda pair: pair[0])
        return best[1], best[0][0]


def written(options: dict[str, object]) -> str:
    words = []
    for key, value in options.items():
        flag = key.replace("_", "-")
        words.append(f"--{'' if value else 'no-'}{flag}" if isinstance(value, bool) else f"--{flag} {quote(str(value))}")
    return " ".join(words)


def percent(values: Estimate, sign: str = "") -> str:
    return f"{100 * values.value:{sign}.1f} [{100 * values.low:{sign}.1f}, {100 * values.high:{sign}.1f}]"


def correct(run: SavedRun) -> np.ndarray:
    """Whether the choice is right, by problem, in the order of their numbers."""
    rows = sorted(run.records, key=lambda record: int(record.id.rpartition("-")[2]))
    return np.array([bool(record.correct) for record in rows], float)


def main(*, runs: Path = Path("runs/strategies"), only: str = "", tune_only: bool = False) -> None:
    """Print what was tried on dev, then a Markdown table with a row per strategy.

    Args:
        runs: Folder of the runs.
        only: Strategies, separated by commas. Default: all.
        tune_only: Stop after dev.
    """
    bench = Bench(runs)
    names = only.split(",") if only else list(GRID)
    print("on dev:", file=sys.stderr, flush=True)
    tuned = {name: bench.tuned(name) for name in dict.fromkeys([*names, "bon"])}
    if tune_only:
        return
    pool = bench.run("bon", {"n": 16}, {**TEST, "seed": 1})
    rows = sorted(pool.records, key=lambda record: int(record.id.rpartition("-")[2]))
    ease = [sum(bool(candidate.correct) for candidate in record.candidates) for record in rows]
    hard = sorted(np.argsort(ease, kind="stable")[: len(rows) // 2].tolist())
    tests = {name: bench.run(name, options, TEST, budget=BUDGET) for name, (options, _) in tuned.items()}
    bon = correct(tests["bon"])
    print("| strategy | options chosen on dev | dev | tokens | scored | accuracy | minus bon | harder half | minus bon |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in sorted(names, key=lambda name: correct(tests[name]).mean()):
        options, dev = tuned[name]
        right, usage = correct(tests[name]), tests[name].summary["usage"]
        differences = ["", ""] if name == "bon" else [
            percent(estimate_difference(bon[part], right[part]), "+") for part in (slice(None), hard)
        ]  # fmt: skip
        cells = [
            name, f"`{written(options)}`" if options else "", f"{100 * dev:.1f}",
            *(f"{usage[kind] / len(right):,.0f}" for kind in ("generated", "scored")),
            percent(estimate(right)), differences[0], percent(estimate(right[hard])), differences[1],
        ]  # fmt: skip
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    cyclopts.run(main)
