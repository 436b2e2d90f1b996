"""`tts strategies`, `scorers`, `formats`, `engines`, `graders`, `benchmarks` and `checkers`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tts.engines import ENGINES
from tts.errors import Exit, InputError
from tts.evals.benchmarks import BENCHMARKS
from tts.grading.rules import GRADERS
from tts.options import Settings, option
from tts.plugins import Registry
from tts.scorers import SCORERS
from tts.scorers.formats import FORMATS
from tts.show.console import Output
from tts.strategies import STRATEGIES
from tts.train.label.checkers import CHECKERS


@dataclass(frozen=True, kw_only=True)
class Listing(Settings):
    """List the plug-ins of one kind, or explain one of them."""

    registry: ClassVar[Registry[Any]]
    use: ClassVar[str]
    """How one of your own is used."""

    action: str | None = option(None, positional=True, shown="list them")
    """`show` explains one."""
    name: str | None = option(None, positional=True)
    """The one to explain: a name from the list, file.py:Name or package.module:Name."""


def listing(settings: Listing, output: Output) -> int:
    """The command."""
    from tts.show.listing import details, listing, show_details, show_listing

    registry = settings.registry
    command = f"tts {registry.plural}"
    if settings.action is None:
        hint = f"The options of one: {command} show NAME. One of your own: {settings.use}"
        output.result(
            table=lambda: show_listing(registry, hint), data=lambda: listing(registry), brief="\n".join(registry)
        )  # fmt: skip
        return Exit.OK
    if settings.action != "show" or settings.name is None:
        given = " ".join(filter(None, (settings.action, settings.name)))
        raise InputError(f"expected `{command}` or `{command} show NAME`, got `{command} {given}`")
    plugin = registry.get(settings.name)
    name = settings.name
    output.result(
        table=lambda: show_details(name, plugin, registry), data=lambda: details(name, plugin), brief=name
    )  # fmt: skip
    return Exit.OK


class Strategies(Listing):
    """List the strategies with their options and papers; `tts strategies show beam` explains one."""

    registry, use = STRATEGIES, "tts run --strategy file.py:Class"


class Scorers(Listing):
    """List the scorers that are not a reward model; `tts scorers show judge` explains one."""

    registry, use = SCORERS, "tts run --scorer file.py:Name"


class Formats(Listing):
    """List the formats in which reward models read traces."""

    registry, use = FORMATS, "tts run --scorer-format file.py:NAME"


class Engines(Listing):
    """List the engines: which are installed, in which version, and on what device they run."""

    registry, use = ENGINES, "tts run --engine file.py:Class"


class Graders(Listing):
    """List the graders, which compare answers."""

    registry, use = GRADERS, "tts run --grader file.py:function"


class Benchmarks(Listing):
    """List the benchmarks with a name."""

    registry, use = BENCHMARKS, "tts run --benchmark file.py:name, or a file of problems"


class Checkers(Listing):
    """List the checkers, which rate steps for `tts label`."""

    registry, use = CHECKERS, "tts label --quality file.py:function"
