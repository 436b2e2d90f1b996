"""Reward models and other scorers: what rates candidates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tts.errors import InputError
from tts.types import Part, Scorer

PLAIN = {
    "agreement": "the share of a problem's candidates with an equivalent answer",
    "length": "shorter is better",
    "logprob": "the policy's log-probability of the trace",
    "self-certainty": "how far the policy's next-token distributions are from uniform (arXiv 2502.18581)",
    "confidence": "how sure the policy is of its 20 likeliest next tokens (arXiv 2508.15260)",
    "judge": "a language model says of each step whether it is right; --scorer-arg model=…, engine=…",
}
"""Scorers that are no reward model, by the name after --scorer."""


def load_scorer(
    name: str,
    *,
    format: str | None = None,
    over: Part | None = None,
    final: bool = True,
    engine: str = "transformers",
    url: str | None = None,
    policy: str = "arith-policy",
    system: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Scorer:
    """A reward model (a bundled name, a folder, a hub id), or one of PLAIN.

    `format`, `over`, `final` and `options` are those of `tts.scorers.prm.PRM`, `engine` and `url` its backend. `policy` and its
    `system` prompt are what logprob, self-certainty, confidence and, unless told otherwise, the judge ask. Raises InputError.
    """
    settings = dict(options or {})
    if name not in PLAIN:
        from tts.scorers.prm import PRM

        return PRM(name, format=format, over=over, final=final, backend=engine, url=url, **settings)
    if format is not None or over is not None:
        raise InputError(f"--scorer-format and --score-over are for reward models; {name} is none")
    if not final and name != "judge":
        raise InputError(f"the scorer {name} rates a trace as a whole; --alpha 0 leaves nothing of that")
    try:
        if name == "judge":
            return _judge(settings, engine=engine, url=url, policy=policy, final=final)
        if engine != "transformers" or url is not None:
            raise InputError(f"--scorer-engine and --scorer-url are for reward models and judges; {name} needs none")
        from tts.scorers.plain import Agreement, Length, Likelihood

        if name == "agreement":
            return Agreement(**settings)
        if name == "length":
            return Length(**settings)
        return Likelihood(name, policy, system=system, **settings)
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise InputError(f"--scorer-arg: the scorer {name} takes no such argument ({error})") from error


def _judge(settings: dict[str, Any], *, engine: str, url: str | None, policy: str, final: bool) -> Scorer:
    """The judge's own options, its model, and the rest for its engine."""
    from tts.engines import load_engine
    from tts.scorers.judge import Judge

    own = {key: settings.pop(key) for key in ("template", "whole", "critique", "draws", "seed") if key in settings}
    name, model = settings.pop("engine", engine), settings.pop("model", policy)
    loaded = load_engine(name, model, url=url, options=settings)
    return Judge(loaded, final=final, **own)
