"""What a user's own file or package holds: `file.py:Class`, `package.module:function`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from tts.errors import InputError


def load_module(source: str, wanted: str) -> ModuleType:
    """The module at a path ending in .py, or of a dotted name; `wanted` says in an InputError what it was loaded for."""
    path = Path(source)
    if not source.endswith(".py"):
        try:
            return importlib.import_module(source)
        except ImportError as error:
            raise InputError(f"cannot import {source} for the {wanted}: {error}") from error
    if not path.is_file():
        raise InputError(f"no file {source} to load the {wanted} from")
    spec = importlib.util.spec_from_file_location(f"tts_user_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the file is the user's: whatever it raises is theirs to read
        raise InputError(f"{source} does not load: {type(error).__name__}: {error}") from error
    return module
