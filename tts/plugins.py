"""Names to plug-ins: built in, installed by another package, or a class or function of your own.

Every kind of plug-in (strategy, scorer, engine, grader, benchmark, format, checker) has one `Registry`. A name is looked up in
this order: names registered while the program runs, built-in names, entry points of installed packages, and last
`path/to/file.py:Name` or `package.module:Name`.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from tts.errors import InputError

T = TypeVar("T")
A = TypeVar("A")

REFERENCE = re.compile(r"(?P<source>.+\.py|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?P<attribute>[A-Za-z_]\w*)")
"""`file.py:Name` or `package.module:Name`."""

_loaded: dict[Path, tuple[int, int]] = {}
"""Files that were imported, and their time and size then: an edited file is imported anew, in a notebook too."""


class Registry(Generic[T]):
    """The plug-ins of one kind.

    Args:
        kind: What one of them is called in messages, such as `strategy`. Entry points have the group `tts.<plural>`.
        builtin: Names to plug-ins, or to their import paths (`package.module:Name`), imported on first use.
        accept: Returns the plug-in that an object stands for, or None where it is not one of this kind.
        expected: What `accept` takes, for messages, as in `a subclass of tts.Strategy`.
        plural: The plural of `kind`, by default with an s.
    """

    def __init__(
        self,
        kind: str,
        builtin: Mapping[str, str | T],
        *,
        accept: Callable[[Any], T | None],
        expected: str,
        plural: str | None = None,
    ) -> None:
        self.kind, self.plural, self.builtin = kind, plural or f"{kind}s", dict(builtin)
        self.group = f"tts.{self.plural}"
        self._accept, self._expected = accept, expected
        self._registered: dict[str, T] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(
            dict.fromkeys([*self.builtin, *self._registered, *(entry.name for entry in entry_points(group=self.group))])
        )

    def __contains__(self, name: str) -> bool:
        return name in set(self)

    def register(self, name: str) -> Callable[[A], A]:
        """Decorator that gives a class or function a name in this process. Raises ValueError where the name is taken."""

        def add(plugin: A) -> A:
            accepted = self._accept(plugin)
            if accepted is None:
                raise ValueError(f"{plugin!r} is not {self._expected}")
            if name in self.builtin or self._registered.setdefault(name, accepted) is not accepted:
                raise ValueError(f"there is already a {self.kind} named {name!r}")
            return plugin

        return add

    def find(self, name: str) -> T | None:
        """Look up a plug-in; None where `name` neither is known nor has the form of a reference. Raises InputError."""
        if name in self._registered:
            return self._registered[name]
        if name in self.builtin:
            known: Any = self.builtin[name]
            if isinstance(known, str):
                source, _, attribute = known.partition(":")
                known = getattr(importlib.import_module(source), attribute)
            return self._accepted(known, name)
        for entry in entry_points(group=self.group, name=name):
            try:
                return self._accepted(entry.load(), f"{name} ({entry.value})")
            except InputError:
                raise
            except Exception as error:  # another package's code: whatever it raises is for the user to read
                raise InputError(f"the {self.kind} {name} ({entry.value}) does not load: {_said(error)}") from error
        if match := REFERENCE.fullmatch(name):
            return self._load(match["source"], match["attribute"], name)
        return None

    def get(self, name: str) -> T:
        """Look up a plug-in. Raises InputError, with a suggestion, where there is none of that name."""
        if (found := self.find(name)) is None:
            raise self.unknown(name)
        return found

    def __getitem__(self, name: str) -> T:
        return self.get(name)

    def all(self) -> dict[str, T]:
        """Every plug-in with a name, loaded, the built-in ones first."""
        return {name: self.get(name) for name in self}

    def name_of(self, plugin: Any) -> str:
        """The name of a plug-in, or else its own `__name__`."""
        path = f"{plugin.__module__}:{plugin.__qualname__}"
        names = [name for name, known in {**self._registered, **self.builtin}.items() if known is plugin or known == path]
        return names[0] if names else str(plugin.__name__)

    def unknown(self, name: str, also: str = "") -> InputError:
        """The error for a name that is not known; `also` says what else would have been accepted."""
        return InputError(f"no {self.kind} named {name!r}.{self._hint(name)} Known: {', '.join(self)}. {also or self._own}")

    @property
    def _own(self) -> str:
        return "For your own, give file.py:Name or package.module:Name."

    def _hint(self, name: str) -> str:
        close = get_close_matches(name, list(self), n=1)
        return f" Did you mean {close[0]!r}?" if close else ""

    def _accepted(self, found: Any, name: str) -> T:
        accepted = self._accept(found)
        if accepted is None:
            raise InputError(f"the {self.kind} {name} is not {self._expected}")
        return accepted

    def _load(self, source: str, attribute: str, name: str) -> T:
        try:
            module = load_module(source, f"{self.kind} {attribute}")
        except InputError as error:
            raise InputError(f"{error}{'.' + hint if (hint := self._hint(name)) else ''}") from error
        if not hasattr(module, attribute):
            own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
            fitting = [key for key in own if self._accept(vars(module)[key]) is not None]
            raise InputError(
                f"{source} has no {self.kind} {attribute!r} ({self._expected}); it has: {', '.join(fitting) or 'none'}"
            )
        return self._accepted(getattr(module, attribute), name)


def load_module(source: str, wanted: str) -> ModuleType:
    """Import a file ending in .py, or a module by its dotted name.

    Args:
        source: `path/to/file.py` or `package.module`.
        wanted: What it is loaded for, as messages say it.

    Raises:
        InputError: There is no such file or module, or it raises when it is imported.
    """
    path = Path(source).expanduser()
    if not source.endswith(".py"):
        try:
            return importlib.import_module(source)
        except ImportError as error:
            raise InputError(f"cannot import {source} for the {wanted}: {error}") from error
        except Exception as error:  # the module is the user's: whatever it raises is for the user to read
            raise InputError(f"{source} does not load: {_said(error)}") from error
    if not path.is_file():
        raise InputError(f"no file {source} to load the {wanted} from")
    place = path.resolve()
    stamp = (place.stat().st_mtime_ns, place.stat().st_size)
    name = f"tts_user_{path.stem}_{zlib.crc32(str(place).encode()):08x}"  # files of one name in two folders are two modules
    if name in sys.modules and _loaded.get(place) == stamp:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, place)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        raise InputError(f"{source} does not load: {_said(error)}") from error
    _loaded[place] = stamp
    return module


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
