"""`tts train-prm`: L = lambda_step * mean over steps of MSE + lambda_final * MSE (arXiv 2506.18896), on labelled traces."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, set_seed

from tts.errors import InputError
from tts.models import checkpoints
from tts.scorers.formats import FORMATS, Text
from tts.show.console import warn
from tts.train.prm import model as prm_model
from tts.train.prm.data import Example, format_of, read_examples
from tts.train.settings import TrainPRM
from tts.train.trainer import arguments, fit, is_first, open_folder, optimizers, resumable


@dataclass(frozen=True)
class TrainedPRM:
    """What came of a training."""

    out: Path
    steps: int
    traces: int
    losses: tuple[float, float] | None
    """Of the first logged steps and of the last."""
    best: int | None
    """The optimizer step of the checkpoint that was kept as the best, where it was evaluated."""
    metrics: dict[str, float]
    """Of the evaluation then."""


def main(settings: TrainPRM) -> int:
    """The command: a training, and what came of it in a few lines."""
    with resumable(settings):
        trained = train_prm(settings)
    if is_first():
        print(show(trained))
    return 0


def train_prm(settings: TrainPRM) -> TrainedPRM:
    """Train a PRM and write the folder that `--scorer` loads: config.json, weights and tokenizer, checkpoints beside them.

    Raises InputError for settings, data or models that cannot be used, before anything is trained.
    """
    config = prm_model.check_architecture(settings)
    longest = _longest(settings, config)
    _check_name(settings)
    args = _arguments(settings)
    open_folder(settings)
    text = Text(prm_model.load_tokenizer(settings))
    train = read_examples(settings.data, settings, text, longest, train=True)
    dev = read_examples(settings.eval, settings, text, longest, train=False) if settings.eval is not None else []
    _check_targets(settings, train)

    from tts.train.prm.trainer import PRMTrainer, Scored, metrics

    if dev and settings.metric not in metrics(dev, [Scored(i, 0.0, *_blank(example)) for i, example in enumerate(dev)]):
        raise InputError(f"--metric {settings.metric} cannot be computed from {settings.eval}: {_NEEDS[settings.metric]}")
    set_seed(settings.seed)
    model = prm_model.load_model(settings, text.tokenizer)
    trainer = PRMTrainer(
        model, settings, train, dev,
        args=args,
        callbacks=[EarlyStoppingCallback(settings.patience)] if settings.patience is not None else None,
        optimizers=optimizers(settings, model),
    )  # fmt: skip
    fit(trainer, settings)
    trained = _summary(settings, trainer, len(train))
    if trainer.is_world_process_zero():
        model.merge_adapters()
        model.save(settings.out, text.tokenizer)
    return trained


_NEEDS = {
    "step_auc": "it needs targets of steps, some at least 0.5 and some below",
    "calibration_error": "it needs targets of steps",
    "best_of_n": "it needs problems with several traces that say whether they are correct",
}


def _arguments(settings: TrainPRM) -> Any:
    more: dict[str, Any] = {
        "remove_unused_columns": False, "logging_first_step": True, "ddp_find_unused_parameters": False
    }  # fmt: skip
    if settings.eval is not None:
        steps = settings.eval_steps or settings.save_steps
        more |= {
            "eval_strategy": "steps", "eval_steps": steps, "save_steps": steps, "load_best_model_at_end": True,
            "metric_for_best_model": f"eval_{settings.metric}",
            "greater_is_better": settings.metric in ("step_auc", "best_of_n"),
            "restore_callback_states_from_checkpoint": True,  # what is left of the patience
        }  # fmt: skip
    return arguments(settings, **more)


def _longest(settings: TrainPRM, config: dict[str, Any]) -> int:
    context = checkpoints.context_length(config)
    if settings.max_length is None and context is None:
        raise InputError(f"config.json of {settings.model!r} does not say how long a text it can read; say it by --max-length")
    if settings.max_length is not None and context is not None and settings.max_length > context:
        raise InputError(f"--max-length is {settings.max_length}, and {settings.model!r} reads {context} tokens at most")
    return settings.max_length or context or 0


def _check_name(settings: TrainPRM) -> None:
    """A folder's name tells scorers how a checkpoint reads a trace: it must not tell them something else."""
    wanted = format_of(settings)
    name = settings.out.resolve().name
    other = next((key for key, format in FORMATS.items() if re.search(format.matches, name)), None)
    if other is not None and FORMATS[other] is not wanted:
        raise InputError(f"--out {name} is named like a PRM of another format ({other}), and would be read as one; rename it")


def _check_targets(settings: TrainPRM, train: list[Example]) -> None:
    """Every head must be trained on something."""
    known = {reading.whole for example in train for reading in example.readings}
    if settings.head == "both" and len(known) < 2:
        lacking, other = ("final targets", "step") if known == {False} else ("targets of steps", "trace")
        raise InputError(f"{settings.data} has no {lacking}, which --head both trains a head on; use --head {other}")
    if settings.head == "step" and settings.lambda_final and True not in known:
        warn("nothing says what a trace is worth as a whole (final_target): score with --alpha 0, by steps alone")


def _blank(example: Example) -> tuple[tuple[float, ...], float | None]:
    steps = [reading.positions for reading in example.readings if not reading.whole]
    return (0.5,) * len(steps[0] if steps else ()), 0.5


def _summary(settings: TrainPRM, trainer: Any, traces: int) -> TrainedPRM:
    state = trainer.state
    losses = [row["loss"] for row in state.log_history if "loss" in row]
    evaluated = {row["step"]: row for row in state.log_history if "eval_loss" in row}
    best = state.best_global_step if evaluated else None
    row = evaluated.get(best, {})
    found = {name.removeprefix("eval_"): value for name, value in row.items() if name.startswith("eval_")}
    return TrainedPRM(settings.out, state.global_step, traces, (losses[0], losses[-1]) if losses else None, best, found)


def show(trained: TrainedPRM) -> str:
    """The end of a training in a few lines."""
    losses = "  loss {:.4f} → {:.4f}".format(*trained.losses) if trained.losses else ""
    lines = [f"{trained.steps} steps on {trained.traces} traces{losses}"]
    if found := trained.metrics:
        names = {"loss": "loss", "step_auc": "step AUC", "calibration_error": "calibration error"}
        shown = [f"{words} {found[name]:.4f}" for name, words in names.items() if name in found]
        if "best_of_n" in found:
            shown.append(f"best of n {found['best_of_n']:.1%} (mean {found['mean_correct']:.1%})")
        lines.append(f"evaluated, best at step {trained.best}: {', '.join(shown)}")
    return "\n".join([*lines, f"{trained.out}: use it by tts run --scorer {trained.out}"])
