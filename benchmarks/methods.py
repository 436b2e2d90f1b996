"""The papers' rules against other settings of the same strategy, on the dev split, paired, within the same token budget.

    python benchmarks/methods.py

Each pair of PAIRS is run on the same dev problems with the same seed; the last column is the second accuracy minus the first.
Draws are remembered: settings that ask for the same tokens share them, which changes no result.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import cyclopts
import numpy as np

import tts
from strategies import BUDGET, MAX_TOKENS, correct, percent, written
from tts.engines.transformers import TransformersEngine
from tts.evals.intervals import estimate_difference
from tts.scorers.prm import PRM

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
    "budget-forcing": [(FORCED, FORCED | {"final": "Final Answer:"})],
}  # fmt: skip
"""Options of two settings each."""


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


def main(*, only: str = "", limit: int = 100, seed: int = 2) -> None:
    """Print a Markdown table with a row per pair.

    Args:
        only: Strategies, separated by commas. Default: all.
        limit: Number of dev problems.
        seed: Seed of the draws.
    """
    engine, prm = Remembering("arith-policy"), PRM("arith-prm")

    def run(name: str, options: dict[str, object]) -> tuple[np.ndarray, float]:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "run")
            where = {"benchmark": "arith:dev", "limit": limit, "seed": seed, "budget": BUDGET, "max_tokens": MAX_TOKENS}
            where["concurrency"] = limit  # the more problems share a batch, the faster
            summary = tts.run(name, engine_instance=engine, scorer_instance=prm, out=out, **where, **options)
            assert not summary.failed
            saved = tts.load_run(out)
            return correct(saved), saved.summary["usage"]["generated"] / limit

    print("| strategy | first | second | tokens | accuracy | second minus first | discordant |")
    print("|---|---|---|---|---|---|---|")
    for name in only.split(",") if only else PAIRS:
        known: dict[str, object] = {}
        for pair in PAIRS[name]:
            for options in pair:
                if (key := written(options)) not in known:
                    known[key] = run(name, options)
            (first, tokens), (second, more) = (known[written(options)] for options in pair)
            cells = [
                name, *(f"`{written(options)}`" for options in pair), f"{tokens:,.0f}, {more:,.0f}",
                f"{100 * first.mean():.1f}, {100 * second.mean():.1f}", percent(estimate_difference(first, second), "+"),
                f"{sum(first > second):.0f} : {sum(second > first):.0f}",
            ]  # fmt: skip
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    cyclopts.run(main)
