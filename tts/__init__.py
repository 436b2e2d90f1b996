"""Test-time scaling and decoding of reasoning models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tts.errors import InputError
    from tts.evals.compare import compare
    from tts.evals.load import load_run
    from tts.evals.summary import Summary
    from tts.runs.runner import run
    from tts.runs.sweep import sweep
    from tts.scorers import load_scorer
    from tts.solving.generator import Generator
    from tts.strategies import get_strategy, strategy
    from tts.types import (
        Candidate,
        Engine,
        Generation,
        Problem,
        Result,
        Reward,
        Sampling,
        Scorer,
        Step,
        Strategy,
        Usage,
        Window,
    )

_HOME = {
    "tts.errors": ["InputError"],
    "tts.evals.compare": ["compare"],
    "tts.evals.load": ["load_run"],
    "tts.evals.summary": ["Summary"],
    "tts.runs.sweep": ["sweep"],
    "tts.solving.generator": ["Generator"],
    "tts.strategies": ["get_strategy", "strategy"],
    "tts.runs.runner": ["run"],
    "tts.scorers": ["load_scorer"],
    "tts.types": [
        "Candidate", "Engine", "Generation", "Problem", "Result", "Reward", "Sampling", "Scorer", "Step", "Strategy", "Usage",
        "Window",
    ],
}  # fmt: skip
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Candidate", "Engine", "Generation", "Generator", "InputError", "Problem", "Result", "Reward", "Sampling", "Scorer",
    "Step", "Strategy", "Summary", "Usage", "Window", "compare", "get_strategy", "load_run", "load_scorer", "run", "strategy",
    "sweep",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """Import on first use: `import tts` costs nothing (PEP 562)."""
    if name not in _MODULE:
        raise AttributeError(f"module 'tts' has no attribute {name!r}")
    return getattr(import_module(_MODULE[name]), name)
