"""A settings dataclass whose fields are the options of a command: what a field says of itself, and the command made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

from tts.errors import InputError


def option(
    help: str, default: Any = MISSING, *, shown: str | bool = True, factory: Any = MISSING, flag: str | None = None
) -> Any:
    """A field that is an option. `shown` is how --help names its default; `flag` is another name on the command line."""
    metadata = {"help": help, "shown": shown, "flag": flag}
    return (
        dataclasses.field(default_factory=factory, metadata=metadata)
        if factory is not MISSING
        else dataclasses.field(default=default, metadata=metadata)
    )


def argument(help: str) -> Any:
    """A field that is given by its place."""
    return dataclasses.field(metadata={"help": help, "argument": True})


def check(options: Any, **expected: Callable[[Any], bool] | tuple[Callable[[Any], bool], str]) -> None:
    """Raise InputError for the first field that is not None and does not hold, as in `check(self, n=AT_LEAST_1)`."""
    for name, rule in expected.items():
        holds, words = rule if isinstance(rule, tuple) else (rule, "another value")
        if (value := getattr(options, name)) is not None and not holds(value):
            raise InputError(f"--{name.replace('_', '-')} is {value}; it should be {words}")


POSITIVE = (lambda value: 0 < value < float("inf"), "above 0")
NOT_NEGATIVE = (lambda value: 0 <= value < float("inf"), "0 or more")
AT_LEAST_1 = (lambda value: value >= 1, "at least 1")
SHARE = (lambda value: 0 <= value <= 1, "between 0 and 1")


def command(settings: type[Any], work: str) -> Callable[..., int | None]:
    """A function for Typer whose parameters are the fields of a settings dataclass, and which passes an instance to `work`.

    `work` is a function as module:name, imported when the command is called.
    """
    from importlib import import_module
    from inspect import Parameter, Signature
    from typing import Annotated

    import typer

    hints = get_type_hints(settings)
    parameters = []
    for f in fields(settings):
        about = f.metadata
        default: Any = Parameter.empty
        if about.get("argument"):
            kind: Any = typer.Argument(help=about["help"], show_default=False)
        else:
            names = [about["flag"]] if about["flag"] else []
            if hints[f.name] is bool:
                names = names or [f"--{f.name.replace('_', '-')}"]  # no --no-…
            kind = typer.Option(*names, help=about["help"], show_default=about["shown"])
            default = (
                f.default if f.default is not MISSING else f.default_factory() if f.default_factory is not MISSING else ...
            )
            if default is ...:
                default = Parameter.empty
        parameters.append(Parameter(f.name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hints[f.name], kind]))

    def run(**given: Any) -> int | None:
        module, _, name = work.partition(":")
        code: int | None = getattr(import_module(module), name)(settings(**given))
        return code

    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__doc__ = settings.__doc__
    return run
