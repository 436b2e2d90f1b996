"""The reference in the docs, made from the same declarations as the command line."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import MISSING
from itertools import groupby
from typing import Any

from tts.commands import COMMANDS
from tts.commands.line import PREFIX, OutputOptions
from tts.commands.listing import Benchmarks, Checkers, Engines, Formats, Graders, Scorers, Strategies
from tts.errors import EXIT_CODES
from tts.options import Option, options_of
from tts.plugins import Registry
from tts.show.listing import about, address


def pages() -> dict[str, str]:
    """Every page: its path under docs/ and its Markdown."""
    found = {"reference/cli.md": command_page()}
    for page in (Strategies, Scorers, Formats, Engines, Graders, Benchmarks, Checkers):
        registry = page.registry
        found[f"reference/{registry.plural}.md"] = plugin_page(registry, registry.plural.capitalize(), page.use)
    return found


def command_page() -> str:
    """The page of all commands."""
    parts = [
        "# Commands",
        "`tts COMMAND -h` shows the same. Every option can also be set by an environment variable"
        f" (`{PREFIX}MAX_TOKENS` for `--max-tokens`) or in a file given by `--config`. The command line takes precedence over"
        " the environment, and the environment over the file.",
    ]
    for heading, group in groupby(COMMANDS.items(), key=lambda item: item[1].heading):
        parts.append(f"## {heading}")
        for name, command in group:
            options = [o for o in options_of(command.load("settings")) if o.cli]
            places = " ".join(o.name.upper() for o in options if o.positional)
            usage = " ".join(filter(None, ("tts", name, places, "[OPTIONS]")))
            parts += [f"### tts {name}", command.about, f"```sh\n{usage}\n```"]
            if command.plugins:
                parts.append("The options of the strategy are flags as well; see [strategies](strategies.md).")
            for topic, found in groupby(options, key=lambda o: o.topic):
                parts += [f"**{topic or 'Arguments'}**", _table(list(found))]
    parts += ["## Options of every command", _table(options_of(OutputOptions)), "## Exit codes"]
    parts.append(_rows(("code", "meaning"), [(f"`{code}`", text) for code, text in EXIT_CODES.items()]))
    return "\n\n".join(parts) + "\n"


def plugin_page(registry: Registry[Any], title: str, use: str) -> str:
    """The page of one kind of plug-in: what there is, and the options of each."""
    parts = [f"# {title}", f"`tts {registry.plural}` lists them. One of your own: `{use}` ([Extend](../plugins.md))."]
    found = registry.all()
    parts.append(_rows(("name", ""), [(f"`{name}`", about(plugin)) for name, plugin in found.items()]))
    for name, plugin in found.items():
        options = options_of(plugin) if callable(plugin) else []
        if not options:
            continue
        text = inspect.cleandoc(plugin.__doc__ or "").partition("\nArgs:\n")[0]
        paper = address(plugin)
        parts += [f"## {name}", text, *([f"Paper: <{paper}>"] if paper and paper not in text else [])]
        parts.append(_table(options, flags=registry.kind == "strategy"))
    return "\n\n".join(parts) + "\n"


def _table(options: Sequence[Option], *, flags: bool = True) -> str:
    rows = []
    for o in options:
        name = o.name.upper() if o.positional else o.flag if flags else o.name
        short = f", `{o.short}`" if o.short and flags else ""
        default = "required" if o.default is MISSING else "" if len(o.default_text) > 60 else o.default_text
        rows.append((f"`{name}`{short}", "" if o.is_flag else o.takes, default, o.help))
    return _rows(("option", "takes", "default", ""), rows)


def _rows(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(' '.join(cell.replace('|', '&#124;').split()) for cell in line)} |" for line in lines)
