"""Scorers: reward models, and what else rates candidates."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from tts.demo import POLICY
from tts.errors import InputError
from tts.options import configure
from tts.plugins import Registry
from tts.types import Part, Scorer


def _accept(found: Any) -> Any:
    """A class with `score`, or a plain function."""
    if isinstance(found, type):
        return found if callable(getattr(found, "score", None)) else None
    return found if inspect.isfunction(found) else None


SCORERS: Registry[Any] = Registry(
    "scorer",
    {
        "agreement": "tts.scorers.plain:Agreement",
        "length": "tts.scorers.plain:Length",
        "logprob": "tts.scorers.plain:LogProb",
        "self-certainty": "tts.scorers.plain:SelfCertainty",
        "confidence": "tts.scorers.plain:Confidence",
        "judge": "tts.scorers.judge:Judge",
    },
    accept=_accept,
    expected="a subclass of tts.Scorer or a function (problem, text) -> float",
)
"""Scorers that are not a reward model, by the name after --scorer."""


def is_reward_model(name: str) -> bool:
    """Whether --scorer NAME is a checkpoint (a bundled name, a folder or a hub id), and not a plug-in."""
    return SCORERS.find(name) is None


def compares(name: str) -> bool:
    """Whether a scorer compares candidates with each other, so that its rewards are those among these candidates only."""
    return bool(getattr(SCORERS.find(name), "compares", False))  # of a class; a function has no such attribute


def load_scorer(
    name: str,
    *,
    format: str | None = None,
    over: Part | None = None,
    final: bool = True,
    engine: str = "transformers",
    url: str | Sequence[str] | None = None,
    policy: str = POLICY,
    prompting: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Scorer:
    """Load a reward model, or another scorer.

    Args:
        name: A bundled name, a folder or a hub id of a reward model; a name of SCORERS; or a class or function of your own, as
            `file.py:Name` or `package.module:Name`.
        format: How the reward model reads a trace: a name of FORMATS, or one of your own; by default recognised.
        over: Part of a trajectory that the reward model rates; by default its own, else all.
        final: Whether the final reward is needed.
        engine: What runs the reward model or judge.
        url: The server of that engine; several are servers of one model that share the problems.
        policy: Model of scorers that ask the policy (`model` among their options).
        prompting: How the policy is prompted: arguments of `tts.models.prompts.Prompter`.
        options: The scorer's own options.

    Raises:
        InputError: There is no such scorer, or it refuses an option.
    """
    urls = [url] if isinstance(url, str) else list(dict.fromkeys(url or ()))
    if len(urls) > 1:
        from tts.engines.several import SeveralScorers

        alike: dict[str, Any] = {"format": format, "over": over, "final": final, "engine": engine, "policy": policy}
        alike |= {"prompting": prompting, "options": options}
        return SeveralScorers([load_scorer(name, url=one, **alike) for one in urls], urls)
    given, address = dict(options or {}), urls[0] if urls else None
    found = SCORERS.find(name)
    if found is None:
        from tts.scorers.prm import PRM

        return PRM(name, format=format, over=over, final=final, backend=engine, url=address, **given)
    if format is not None or over is not None:
        raise InputError(f"--scorer-format and --score-over are for reward models; {name} is not one")
    if not isinstance(found, type):
        from tts.scorers.plain import Function

        scorer: Scorer = Function(found)
        takes: set[str] = set()
    else:
        takes = set(inspect.signature(found).parameters)
    if (engine != "transformers" or address is not None) and "engine" not in takes:
        raise InputError(f"--scorer-engine and --scorer-url are for reward models and judges; {name} needs neither")
    if isinstance(found, type):
        offered = {"model": policy, **(prompting or {}), "final": final, "engine": engine, "url": address}
        own = {key: value for key, value in offered.items() if key in takes}
        scorer = configure(found, own | given, noun=f"the scorer {name}", prefix="--scorer-arg ")
    elif given:
        raise InputError(f"--scorer-arg: the scorer {name} is a function and has no options; make it a class to give it some")
    if not final and not scorer.by_step:
        raise InputError(f"the scorer {name} rates a trace as a whole; --alpha 0 leaves nothing of that")
    return scorer
