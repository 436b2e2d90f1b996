"""Engines: what generates. One backend a file; no strategy knows one by name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tts.errors import InputError
from tts.options import configure
from tts.plugins import Registry
from tts.types import Engine


def _accept(found: Any) -> type[Engine] | None:
    return found if isinstance(found, type) and callable(getattr(found, "generate", None)) else None


ENGINES: Registry[type[Engine]] = Registry(
    "engine",
    {
        "transformers": "tts.engines.transformers:TransformersEngine",
        "vllm": "tts.engines.vllm:VLLMEngine",
        "sglang": "tts.engines.sglang:SGLangEngine",
        "server": "tts.engines.server:ServerEngine",
    },
    accept=_accept,
    expected="a class with the methods of tts.Engine",
)


def installed(package: str) -> str | None:
    """The version of an installed package, or None."""
    for name in (package, f"{package}-cpu"):  # vLLM's CPU build has a name of its own
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def load_engine(
    name: str, model: str, *, url: str | Sequence[str] | None = None, options: Mapping[str, Any] | None = None
) -> Engine:
    """Start an engine.

    Args:
        name: A name of ENGINES, `file.py:Class` or `package.module:Class`.
        model: What generates: a bundled name, a folder or a hub id, or a server's name for it.
        url: The server's address, for engines that are clients; several are servers of one model that share the problems.
        options: The engine's keyword arguments.

    Raises:
        InputError: There is no such engine, its package is not installed, or it refuses the model or an option.
    """
    cls, settings = ENGINES.get(name), dict(options or {})
    urls = [url] if isinstance(url, str) else list(dict.fromkeys(url or ()))
    if len(urls) > 1:
        from tts.engines.several import SeveralEngines

        return SeveralEngines([load_engine(name, model, url=one, options=options) for one in urls], urls)
    if urls:
        if cls.address == "none":
            clients = [other for other, engine in ENGINES.all().items() if engine.address != "none"]
            raise InputError(f"--url is for --engine {' or '.join(clients)}; {name} runs in this process")
        if settings.get("adapter"):
            raise InputError("--adapter is for engines in this process; a server's adapters have names: give one as --model")
        settings["url"] = urls[0]
    elif cls.address == "required" and not os.environ.get("OPENAI_BASE_URL"):
        raise InputError(f"--engine {name} needs --url, such as --url http://127.0.0.1:8000, or OPENAI_BASE_URL")
    elif cls.requires is not None and installed(cls.requires) is None:
        raise InputError(f"the engine {name} is not installed; install it with: pip install 'tts-toolkit[{cls.requires}]'")
    return configure(cls, settings, model, noun=f"the engine {name}", prefix="--engine-arg ")
