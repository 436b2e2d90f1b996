"""Strategies: one a file."""

from tts.strategies import beam, bon, dvts, lookahead, majority, mcts, particle, single, weighted

__all__ = ["beam", "bon", "dvts", "lookahead", "majority", "mcts", "particle", "single", "weighted"]
