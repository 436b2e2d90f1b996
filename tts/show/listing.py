"""Plug-ins as a person reads them: a list of one kind, and one of them with its options."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tts.engines import installed
from tts.errors import InputError
from tts.evals.benchmarks import Source
from tts.options import describe, options_of
from tts.plugins import Registry
from tts.types import NO_INSTRUCTION, Problem

LONGEST = 40
"""Characters of a default that are shown."""


def listing(registry: Registry[Any]) -> list[dict[str, Any]]:
    """A row for each plug-in of a kind: name, about, and, where it has options, options; error where it does not load."""
    rows = []
    for name in registry:
        try:
            plugin = registry.get(name)
        except InputError as error:
            rows.append({"name": name, "error": str(error)})
            continue
        row = {"name": name, "about": about(plugin)}
        if options := [o.flag for o in options_of(plugin)] if callable(plugin) else []:
            row["options"] = " ".join(options)
        if paper := address(plugin):
            row["paper"] = paper
        if instruction := _instruction(plugin):
            row["instruction"] = instruction
        rows.append(row | _state(plugin))
    return rows


def show_listing(registry: Registry[Any], hint: str) -> RenderableType:
    """A row for each plug-in: its name, what it is, its options and its paper."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for row in listing(registry):
        cell = Text(row.get("about") or row["error"], "red" if "error" in row else "")
        if registry.kind == "strategy" and "error" not in row:
            cell.append(f"\n{describe(registry.get(row['name']))}", "cyan")
        for note in filter(None, (row.get("state"), row.get("paper"), row.get("instruction"))):
            cell.append(f"\n{note}", "yellow" if note.startswith("not installed") else "dim")
        table.add_row(row["name"], cell)
    return Group(table, Text(f"\n{hint}", "dim"))


def details(name: str, plugin: Any) -> dict[str, Any]:
    """A plug-in with everything that is known of it, for --json."""
    options = [
        {"name": o.name, "option": o.flag, "takes": o.takes, "default": o.default_text, "help": o.help}
        for o in _options(plugin)
    ]
    return (
        {"name": name, "about": _whole(plugin), "paper": address(plugin), "options": options} | _state(plugin) | _prompt(plugin)
    )


def show_details(name: str, plugin: Any, registry: Registry[Any]) -> RenderableType:
    """What a plug-in does, where it comes from, and every option with type, default and help."""
    notes = [Text(line, "dim") for line in (address(plugin), _state(plugin).get("state", "")) if line]
    parts: list[RenderableType] = [Text.assemble((name, "bold"), "  ", _whole(plugin)), *notes]
    if prompt := _prompt(plugin).get("prompt"):
        parts += [Text("\nthe prompt, before a chat template:", "dim"), Text(prompt)]
    flags = registry.kind == "strategy"
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for heading in ("option" if flags else f"--{registry.kind}-arg", "takes", "default", ""):
        table.add_column(heading, overflow="fold")
    for o in (options := _options(plugin)):
        default = o.default_text if len(o.default_text) <= LONGEST else o.default_text[: LONGEST - 2] + " …"
        table.add_row(Text(o.flag if flags else o.name, "cyan"), Text(o.takes), Text(default), Text(o.help, "dim"))
    return Group(*parts, Text(), table) if options else Group(*parts)


def about(plugin: Any) -> str:
    """What a plug-in says of itself in a line."""
    if isinstance(text := getattr(plugin, "about", None), str) and text:
        return text
    text = inspect.getdoc(getattr(plugin, "func", plugin)) if callable(plugin) else None
    return (text or "").strip().partition("\n\n")[0].replace("\n", " ").partition(" (http")[0].rstrip(".")


def address(plugin: Any) -> str:
    """The first address in the docstring of a plug-in, or of its module."""
    texts = [getattr(plugin, "__doc__", None)]
    if isinstance(plugin, type):
        texts.append(sys.modules[plugin.__module__].__doc__)
    for text in texts:
        if found := re.search(r"https?://[^\s)]+", text or ""):
            return found.group().rstrip(".,")
    return ""


def _instruction(plugin: Any) -> str:
    """Of a benchmark: how the policy is to answer, unless --instruction says otherwise."""
    return str(getattr(plugin, "told", ""))


def _prompt(plugin: Any) -> dict[str, str]:
    """Of a benchmark: what the policy is asked, and the part of it that is the benchmark's own."""
    if not isinstance(plugin, Source):
        return {}
    question = "{question}\n\nA) {choice}\nB) …" if plugin.wrong else "{question}"
    problem = Problem("", question, instruction=plugin.told)
    return {"prompt": problem.full_prompt, "instruction": plugin.told or NO_INSTRUCTION}


def _options(plugin: Any) -> list[Any]:
    return options_of(plugin) if callable(plugin) else []


def _whole(plugin: Any) -> str:
    if not callable(plugin):
        return about(plugin)
    text = inspect.cleandoc(getattr(plugin, "func", plugin).__doc__ or "").partition("\nArgs:\n")[0]
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _state(plugin: Any) -> dict[str, str]:
    """Of an engine: whether its package is installed, and on what device it runs."""
    if not hasattr(plugin, "address"):
        return {}
    if plugin.address == "required":
        return {"state": "runs on the server at --url"}
    if plugin.requires is None:
        return {"state": f"runs in this process on {_device()}"}
    if (version := installed(plugin.requires)) is None:
        return {"state": f"not installed; pip install 'tts-toolkit[{plugin.requires}]'"}
    return {"state": f"{plugin.requires} {version}, in this process on {_device()}"}


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return f"cuda ({torch.cuda.get_device_name(0)})"
    return "mps" if torch.backends.mps.is_available() else "cpu"
