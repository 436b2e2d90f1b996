"""Generators: one backend a file, none of them known to a strategy by name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tts.errors import InputError
from tts.types import Engine


@dataclass(frozen=True)
class Backend:
    """Where an engine lives and what it needs."""

    path: str
    package: str
    extra: str | None
    about: str

    @property
    def version(self) -> str | None:
        """Of the package that it stands on; None where that is not installed."""
        names = (self.package, f"{self.package}-cpu")  # vLLM's CPU build has a name of its own
        for name in names:
            try:
                return version(name)
            except PackageNotFoundError:
                continue
        return None


BACKENDS = {
    "transformers": Backend(
        "tts.engines.transformers:TransformersEngine",
        "transformers",
        None,
        "in this process, one continuous batch; the default",
    ),
    "vllm": Backend("tts.engines.vllm:VLLMEngine", "vllm", "vllm", "in this process, through its async engine"),
    "sglang": Backend(
        "tts.engines.sglang:SGLangEngine",
        "sglang",
        "sglang",
        "in this process; with --url, a server of it (nothing to install)",
    ),
    "server": Backend("tts.engines.server:ServerEngine", "httpx", None, "any OpenAI-compatible server at --url"),
}


def load_engine(name: str, model: str, *, url: str | None = None, options: Mapping[str, Any] | None = None) -> Engine:
    """Start an engine by name. `options` are its keyword arguments. Raises InputError where it cannot be had."""
    if name not in BACKENDS:
        close = get_close_matches(name, BACKENDS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise InputError(f"no engine named {name!r}.{hint} Known: {', '.join(BACKENDS)}.")
    backend, settings = BACKENDS[name], dict(options or {})
    if url is not None:
        if name not in ("server", "sglang"):
            raise InputError(f"--url goes with --engine server or sglang; {name} runs in this process")
        settings["url"] = url
    elif name == "server":
        raise InputError("--engine server needs --url, such as --url http://127.0.0.1:8000")
    elif backend.version is None:
        raise InputError(f"the engine {name} is not installed; install it with: pip install 'tts-toolkit[{backend.extra}]'")
    if url is not None and settings.get("adapter"):
        raise InputError("--adapter is for engines in this process; a server's adapters have names: give one as --model")
    module, _, attribute = backend.path.partition(":")
    try:
        engine: Engine = getattr(importlib.import_module(module), attribute)(model, **settings)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise InputError(f"--engine-arg: the engine {name} takes no {str(error).rsplit(' ', 1)[-1]}") from error
    return engine
