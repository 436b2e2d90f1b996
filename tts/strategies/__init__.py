"""Strategies: one a file, by name in STRATEGIES."""

from __future__ import annotations

from typing import Any

from tts.plugins import Registry
from tts.types import Strategy


def _accept(found: Any) -> type[Strategy] | None:
    return found if isinstance(found, type) and issubclass(found, Strategy) and found is not Strategy else None


STRATEGIES: Registry[type[Strategy]] = Registry(
    "strategy",
    {
        "adaptive": "tts.strategies.adaptive:Adaptive",
        "beam": "tts.strategies.beam:Beam",
        "bon": "tts.strategies.bon:BestOfN",
        "budget-forcing": "tts.strategies.budget_forcing:BudgetForcing",
        "compute-optimal": "tts.strategies.compute_optimal:ComputeOptimal",
        "deepconf": "tts.strategies.deepconf:DeepConf",
        "dvts": "tts.strategies.dvts:DVTS",
        "lookahead": "tts.strategies.lookahead:Lookahead",
        "majority": "tts.strategies.majority:Majority",
        "mcts": "tts.strategies.mcts:MCTS",
        "particle": "tts.strategies.particle:Particle",
        "revise": "tts.strategies.revise:Revise",
        "single": "tts.strategies.single:Single",
        "weighted": "tts.strategies.weighted:Weighted",
    },
    accept=_accept,
    expected="a subclass of tts.Strategy",
    plural="strategies",
)

strategy = STRATEGIES.register
"""Decorator that registers a class under a name, the word after `tts run --strategy`."""

get_strategy = STRATEGIES.get
"""The class of a name, of `path/to/file.py:Class` or of `package.module:Class`. Raises InputError."""
