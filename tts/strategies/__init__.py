"""Strategies: one a file."""

from tts.strategies import (
    adaptive,
    beam,
    bon,
    budget_forcing,
    compute_optimal,
    deepconf,
    dvts,
    lookahead,
    majority,
    mcts,
    particle,
    revise,
    single,
    weighted,
)

__all__ = [
    "adaptive",
    "beam",
    "bon",
    "budget_forcing",
    "compute_optimal",
    "deepconf",
    "dvts",
    "lookahead",
    "majority",
    "mcts",
    "particle",
    "revise",
    "single",
    "weighted",
]
