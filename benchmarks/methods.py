"""The papers' rules against other settings of the same strategy, on the dev split, paired, within the same token budget.

    OMP_NUM_THREADS=1 python benchmarks/methods.py

Each pair of PAIRS is run on the same dev problems with the same seed; the last column is the second accuracy minus the first.
Draws are remembered: settings that ask for the same tokens share them, which changes no result.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cyclopts

import tts
from strategies import BUDGET, MAX_TOKENS, correct, percent, written
from tts.engines.transformers import TransformersEngine
from tts.evals.benchmarks.arith import dev_split
from tts.evals.difficulty import fit_difficulty
from tts.evals.intervals import estimate_difference
from tts.evals.load import SavedRun
from tts.scorers.prm import PRM
from tts.types import Problem

N12 = {"n": 12}
PARTICLE = {"n": 16}
BEAM = {"n": 12, "width": 4}
PUCT = {"n": 16, "width": 4, "simulations": 64, "rule": "puct", "c": 1.0, "to_end": False}
PAPERS_MCTS = PUCT | {"rule": "uct", "c": 2.0, "to_end": True}
DEEPCONF = {"n": 16}
ONLINE = {**DEEPCONF, "warmup": 4, "window": 16}
FORCED = {"n": 8, "min_thinking": 0, "max_thinking": 40}

PAIRS = {
    "particle": [
        (PARTICLE | {"weights": "reward", "softmax_temperature": 0.1}, PARTICLE),
        (PARTICLE | {"weights": "reward", "softmax_temperature": 0.1}, PARTICLE | {"softmax_temperature": 0.3}),
    ],
    "beam": [(BEAM, BEAM | {"filter_duplicates": True})],
    "mcts": [
        (PAPERS_MCTS, PUCT),
        (PAPERS_MCTS, PAPERS_MCTS | {"to_end": False}),
        (PAPERS_MCTS, PAPERS_MCTS | {"rule": "puct", "c": 1.0}),
        (PAPERS_MCTS, PAPERS_MCTS | {"unvisited": "zero"}),
        (PUCT, PUCT | {"unvisited": "zero"}),
    ],
    "deepconf": [
        (DEEPCONF, DEEPCONF | {"keep": 0.1}),
        (DEEPCONF, DEEPCONF | {"keep": 0.5}),
        (DEEPCONF, DEEPCONF | {"window": 16}),
        (DEEPCONF, DEEPCONF | {"top": 0}),
        (DEEPCONF | {"window": 16, "keep": 0.1}, DEEPCONF | {"window": 16, "keep": 0.1, "measure": "bottom"}),
        (DEEPCONF | {"window": 16, "keep": 0.1}, DEEPCONF | {"window": 16, "keep": 0.1, "measure": "tail"}),
        (ONLINE, ONLINE | {"keep": 0.1}),
        (ONLINE, ONLINE | {"consensus": 2.0}),
        (DEEPCONF, ONLINE),
    ],
    "budget-forcing": [(FORCED | {"final": ""}, FORCED | {"final": "Final Answer:"})],
    "compute-optimal": [],
}
"""Options of two settings each; compute-optimal is compared with what is fitted to other problems."""


class Remembering(TransformersEngine):
    """The embedded engine; it answers a request that it has answered before from memory."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.answers: dict[object, object] = {}

    async def generate(self, prefix, n, sampling):
        key = tuple(prefix), n, sampling
        if key not in self.answers:
            self.answers[key] = await super().generate(prefix, n, sampling)
        return replace(self.answers[key], waited=0.0)


def later(*, limit: int | None = None) -> Iterator[Problem]:
    """Dev problems after the first hundred: a benchmark, to fit difficulty bins on."""
    yield from list(dev_split(limit=100 + (limit or 100)))[100:]


class Bench:
    """Runs of one engine in a temporary folder."""

    def __init__(self, folder: str, limit: int, seed: int) -> None:
        self.folder, self.limit, self.seed = Path(folder), limit, seed
        self.engine, self.prm = Remembering("arith-policy"), PRM("arith-prm")

    def run(self, name: str, options: dict[str, object], benchmark: str = "arith:dev") -> Path:
        """The folder of a run, which is made once."""
        out = self.folder / f"{name} {written(options)} {benchmark.rpartition('/')[2]}".replace(" ", "_")
        if not out.exists():
            where = {"benchmark": benchmark, "limit": self.limit, "seed": self.seed}
            limits = {"budget": BUDGET, "max_tokens": MAX_TOKENS, "concurrency": self.limit}  # one large batch is fastest
            instances = {"engine_instance": self.engine, "scorer_instance": self.prm}
            assert not tts.run(name, out=out, **instances, **where, **limits, **options).failed
        return out

    def fitted(self) -> dict[str, object]:
        """Options of compute-optimal, fitted to other dev problems."""
        others = f"{Path(__file__).resolve()}:later"
        runs = [self.run(name, options, others) for name, options in (("bon", N12), ("weighted", N12), ("beam", BEAM))]
        found = fit_difficulty(*runs)
        edges = {"hard_below": found.hard_below, "easy_above": found.easy_above}
        return N12 | edges | {name: found.chosen[name] for name in ("easy", "medium", "hard")}


def main(*, only: str = "", limit: int = 100, seed: int = 2) -> None:
    """Print a Markdown table with a row per pair.

    Args:
        only: Strategies, separated by commas. Default: all.
        limit: Number of dev problems.
        seed: Seed of the draws.
    """
    print("| strategy | first | second | tokens | accuracy | second minus first | discordant |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(folder, limit, seed)
        for name in only.split(",") if only else PAIRS:
            for pair in PAIRS[name] or [(N12, bench.fitted())]:
                print(row(name, pair, *(tts.load_run(bench.run(name, options)) for options in pair)), flush=True)


def row(name: str, pair: tuple[dict[str, object], ...], *runs: SavedRun) -> str:
    """A row of the table."""
    first, second = map(correct, runs)
    cells = [
        name, *(f"`{written(options)}`" for options in pair),
        ", ".join(f"{run.summary['usage']['generated'] / len(first):,.0f}" for run in runs),
        f"{100 * first.mean():.1f}, {100 * second.mean():.1f}", percent(estimate_difference(first, second), "+"),
        f"{sum(first > second):.0f} : {sum(second > first):.0f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    cyclopts.run(main)
