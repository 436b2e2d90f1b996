"""Strategies: one a file."""

from tts.strategies import bon, majority, single, weighted

__all__ = ["bon", "majority", "single", "weighted"]
