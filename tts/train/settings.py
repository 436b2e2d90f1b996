"""What the training commands can be told: a dataclass each, whose fields are the command's options.

This file stays free of torch, so that `tts --help` does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

from tts.errors import InputError


def option(
    help: str, default: Any = MISSING, *, shown: str | bool = True, factory: Any = MISSING, flag: str | None = None
) -> Any:
    """A field that is an option. `shown` is how --help names its default; `flag` is another name on the command line."""
    metadata = {"help": help, "shown": shown, "flag": flag}
    return (
        field(default_factory=factory, metadata=metadata)
        if factory is not MISSING
        else field(default=default, metadata=metadata)
    )


def argument(help: str) -> Any:
    """A field that is given by its place."""
    return field(metadata={"help": help, "argument": True})


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


def command(settings: type[Any], work: Callable[[Any], None]) -> Callable[..., None]:
    """A function for Typer whose parameters are the fields of a settings dataclass, and which passes an instance to `work`."""
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

    def run(**given: Any) -> None:
        work(settings(**given))

    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__doc__ = work.__doc__
    return run


Optimizer = Literal["adamw", "muon"]
Schedule = Literal["cosine", "linear", "constant", "constant_with_warmup"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """What every training has: where its model goes, how long it is trained, and on what."""

    out: Path = option("Folder to make: the model, its checkpoints and its log.")
    epochs: float = option("Times over the data.", 1.0)
    max_steps: int | None = option("Optimizer steps, whatever the epochs say.", None, shown="as the epochs say")
    batch_size: int = option("Rows of a device's batch.", 8)
    accumulate: int = option("Batches to an optimizer step.", 1)
    lr: float = option("Learning rate, at its peak.", 1e-5)
    warmup: float = option("Share of the steps over which the learning rate rises.", 0.03)
    schedule: Schedule = option("How the learning rate falls.", "cosine")
    optimizer: Optimizer = option("muon moves hidden matrices by Muon and the rest by AdamW.", "adamw")
    weight_decay: float = option("Decoupled, as in AdamW.", 0.0)
    lora: int | None = option("Rank of LoRA adapters, merged in the end.", None, shown="train all weights")
    gradient_checkpointing: bool = option("Compute activations twice to hold fewer.", False)
    bf16: bool = option("Compute in bfloat16, with weights in float32.", False)
    device: str = option("auto, cpu, cuda, mps.", "auto")
    save_steps: int = option("Optimizer steps from a checkpoint to the next; two are kept.", 200)
    log_steps: int = option("Optimizer steps from a line of the log to the next.", 10)
    seed: int = option("Same seed, same training.", 0)
    resume: bool = option("Go on with --out from its newest checkpoint.", False)

    def __post_init__(self) -> None:
        check(
            self, epochs=POSITIVE, max_steps=AT_LEAST_1, batch_size=AT_LEAST_1, accumulate=AT_LEAST_1, lr=POSITIVE,
            warmup=SHARE, weight_decay=NOT_NEGATIVE, lora=AT_LEAST_1, save_steps=AT_LEAST_1, log_steps=AT_LEAST_1,
        )  # fmt: skip
