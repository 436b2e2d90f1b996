"""Identity by content: fingerprints of the data, models and plug-in files that settings name.

They are kept beside an output, and compared when it is resumed: a path may hold something else by then.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tts.errors import InputError
from tts.models import checkpoints
from tts.models.hashes import hash_of_file, hash_of_files
from tts.options import options_of
from tts.plugins import REFERENCE
from tts.types import Problem

Content = dict[str, str]
"""Fingerprints by what names them: an option without its dashes, or `option name` for one that is name=value."""

OF = " of the first "
"""In the fingerprint of a file to which lines may be appended, before its size in bytes."""


def content_of(settings: Any, begun: Mapping[str, str] | None = None) -> Content:
    """Fingerprint what the options of `settings` name, where that is on this machine.

    Args:
        settings: A settings dataclass; `Option.names` says what an option's value names.
        begun: The fingerprints to compare with. Of a file that may grow, as much is read as there was then.
    """
    found: dict[str, str | None] = {}
    for o in options_of(type(settings)):
        key, value = o.flag.removeprefix("--"), getattr(settings, o.name)
        if isinstance(value, dict):
            for name, item in value.items():
                if isinstance(item, str) and os.sep in item and Path(item).exists():
                    found[f"{key} {name}"] = _fingerprint(Path(item), "model" if Path(item).is_dir() else "data", None)
        elif value is not None and o.names:
            found[key] = _fingerprint(value, o.names, (begun or {}).get(key))
    return {name: value for name, value in found.items() if value is not None}


def content_of_problems(problems: Sequence[Problem]) -> str:
    """The fingerprint of problems: of their ids, texts and reference answers, wherever they come from."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(json.dumps([problem.id, problem.prompt, problem.answer]).encode())
    return f"sha256 {digest.hexdigest()} of {len(problems)} problems"


def check_content(what: Any, begun: Mapping[str, Any], now: Content, *, accept: bool) -> dict[str, Any]:
    """Compare what an output was begun with to what is there now.

    Args:
        what: The folder or file that is resumed.
        begun: The JSON object that is kept beside it, with fingerprints under `content`; an output of an earlier version has
            none and is not compared.
        now: Today's fingerprints. What is not on this machine any more is not compared.
        accept: Whether the user accepts changes.

    Returns:
        What to replace in the JSON object: nothing, or after accepted changes today's fingerprints and all earlier ones.

    Raises:
        InputError: Something has changed, and that is not accepted.
    """
    then: Content = begun.get("content") or {}
    changed = [name for name in then if now.get(name, then[name]) != then[name]]
    if not changed:
        return {}
    if not accept:
        said = "; ".join(f"--{name} was {_short(then[name])} and is {_short(now[name])}" for name in changed)
        raise InputError(
            f"{what} was started with other content: {said}. Restore it, choose another --out, or resume all the same with"
            " --accept-changes"
        )
    return {"content": {**then, **now}, "earlier_content": [*begun.get("earlier_content", ()), then]}


def _fingerprint(value: Any, names: str, begun: str | None) -> str | None:
    try:
        if match := REFERENCE.fullmatch(str(value)):
            return _of_plugin(match["source"])
        if names == "model":
            return checkpoints.fingerprint(str(value))
        path = Path(value).expanduser()
        if names == "plugin" or not path.exists():
            return None
        if path.is_dir():
            return f"sha256 {hash_of_files((file for file in path.rglob('*') if file.is_file()), path)}"
        if names != "lines":
            return f"sha256 {hash_of_file(path)}"
        size = path.stat().st_size
        if begun is not None and (then := begun.rpartition(OF)[2].removesuffix(" bytes")).isdigit():
            size = min(size, int(then))
        return f"sha256 {hash_of_file(path, size)}{OF}{size} bytes"
    except OSError:
        return None


def _of_plugin(source: str) -> str | None:
    """The hash of a file that code of the user's is in; None for a part of tts and for what is not a file."""
    if source.endswith(".py"):
        return f"sha256 {hash_of_file(Path(source).expanduser())}"
    module = sys.modules.get(source)
    try:
        file = module.__file__ if module is not None else getattr(find_spec(source), "origin", None)
    except (ImportError, ValueError, AttributeError):
        return None
    return f"sha256 {hash_of_file(Path(file))}" if file and not source.startswith("tts.") and Path(file).is_file() else None


def _short(fingerprint: str) -> str:
    """A fingerprint whose hashes have 12 digits, which tell two apart."""
    return " ".join(word[:12] if len(word) in (40, 64) else word for word in fingerprint.partition(OF)[0].split())
