"""Logging of finished runs to Weights & Biases or trackio, if one of them is installed."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from importlib import import_module
from typing import Any

from tts.errors import InputError
from tts.evals.summary import Summary

SERVICES = ("trackio", "wandb")
"""The services that runs can be logged to; each is the name of a package."""


def load_service(name: str) -> Any:
    """Import the package of a service. Raises InputError if it is not one of SERVICES or not installed."""
    if name not in SERVICES:
        raise InputError(f"--log is {name!r}; expected {' or '.join(SERVICES)}")
    try:
        return import_module(name)
    except ImportError:
        raise InputError(f"--log {name} needs {name}; install it with: pip install {name}") from None


def log_run(service: Any, summary: Summary, settings: dict[str, Any], *, project: str = "tts") -> None:
    """Log a run: one step per N of its curve, then all numbers of its summary.

    What the service prints goes to standard error.

    Args:
        service: A package loaded by `load_service`.
        summary: Summary of the run.
        settings: Settings of the run, logged as its configuration.
        project: Project to log to. Default "tts".
    """
    with redirect_stdout(sys.stderr):
        service.init(project=project, name=summary.run, config=settings)
        for point in summary.curve:
            curve = {
                "n": point.k,
                "accuracy": point.strategy.value,
                "majority": point.majority.value,
                "pass": point.passed.value,
            }
            service.log({f"curve/{name}": value for name, value in curve.items()})
        whole = summary.to_json()
        numbers = {name: value for name, value in whole.items() if isinstance(value, int | float)}
        for group in ("usage", "seconds", "flops"):
            numbers |= {f"{group}/{name}": value for name, value in whole[group].items() if value is not None}
        if summary.accuracy is not None:
            numbers |= {"accuracy/low": summary.accuracy.low, "accuracy/high": summary.accuracy.high}
        service.log(numbers)
        service.finish()
