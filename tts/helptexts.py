"""Help texts of options, read from source: the text under a field, and the `Args:` section of a docstring."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any


def texts_under_fields(cls: type) -> dict[str, str]:
    """The text under each field of a class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        found |= _texts_of_module(base.__module__).get(base.__qualname__, {})
    return found


@lru_cache(maxsize=64)
def _texts_of_module(module: str) -> dict[str, dict[str, str]]:
    """Class names to field names to the texts under the fields; empty where there is no source."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError, KeyError, SyntaxError):  # a module without a file: an interpreter, a C extension
        return {}
    found: dict[str, dict[str, str]] = {}

    def visit(body: Sequence[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                texts = found[prefix + node.name] = {}
                for field, text in pairwise(node.body):
                    match field, text:
                        case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str() as words)):
                            texts[name] = " ".join(words.split())
                visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                visit(node.body, f"{prefix}{node.name}.<locals>.")

    visit(tree.body, "")
    return found


def texts_of_arguments(plugin: Any) -> dict[str, str]:
    """The texts of `Args:` sections: of a function, or of a class, its bases and its `__init__`."""
    documented = [plugin, *(base.__dict__.get("__init__") for base in plugin.__mro__)] if isinstance(plugin, type) else [plugin]
    documented += reversed(plugin.__mro__) if isinstance(plugin, type) else []
    texts: dict[str, str] = {}
    for text in (item.__doc__ for item in documented if item is not None):
        _, found, section = inspect.cleandoc(text or "").partition("Args:\n")
        name = ""
        for line in section.splitlines() if found else ():
            if not line.startswith("    "):
                break
            head, colon, rest = line.strip().partition(":")
            if line.startswith("     "):  # a continued text
                texts[name] = f"{texts[name]} {line.strip()}".strip()
            elif colon:
                name = head.split(" ")[0]
                texts[name] = rest.strip()
    return texts
