"""Checkers: functions that say of every step of a trace whether it is correct.

A checker is called as `checker(problem, thinking, response, answer)`: the text of the problem, the thinking steps, the response
steps, and the reference answer or None. It returns a number from 0 to 1 for every thinking step and then every response step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from tts.demo import arith
from tts.errors import InputError
from tts.plugins import Registry
from tts.trajectory import Trajectory

Checker = Callable[[str, Sequence[str], Sequence[str], str | None], Sequence[float]]


def check(problem: str, thinking: Sequence[str], response: Sequence[str], answer: str | None) -> list[int]:
    """Recompute each line of arithmetic; for problems of arith."""
    chain = arith.read(problem)
    if chain is None:
        raise InputError(
            "--quality check rates only problems of the arith benchmark; use rollout, judge, or your own file.py:function"
        )
    return arith.check(chain, Trajectory(tuple(thinking), tuple(response)))


def _accept(found: Any) -> Checker | None:
    return found if inspect.isfunction(found) else None


CHECKERS: Registry[Checker] = Registry(
    "checker",
    {"check": "tts.train.label.checkers:check"},
    accept=_accept,
    expected="a function (problem, thinking, response, answer) -> a number for each step",
)
