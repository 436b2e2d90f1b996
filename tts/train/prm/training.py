"""`tts train-prm`: train a PRM on labelled traces, with the loss of arXiv 2506.18896.

L = lambda_step * mean over steps of MSE(reward, r_step) + lambda_final * MSE(reward of the whole, r_final)
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, set_seed

from tts.errors import Exit, InputError
from tts.models import checkpoints
from tts.scorers.formats import FORMATS, Text
from tts.show.console import Output, warn
from tts.train.prm.data import Example, read_examples, training_format
from tts.train.prm.reward_model import check_architecture, load_prm_tokenizer, load_reward_model
from tts.train.settings import TrainPRMSettings
from tts.train.trainer import arguments, fit, is_first, open_folder, optimizers, resumable


@dataclass(frozen=True)
class TrainedPRM:
    """The result of a training."""

    out: Path
    """The folder with the model."""
    steps: int
    """Optimizer steps."""
    traces: int
    """Traces that it was trained on."""
    losses: tuple[float, float] | None
    """The first logged training loss and the last; None if nothing was logged."""
    best: int | None
    """The optimizer step of the checkpoint that --metric chose; None without --eval."""
    metrics: dict[str, float]
    """The metrics of that checkpoint (`tts.train.prm.trainer.metrics`); empty without --eval."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self) | {"out": str(self.out)}


def train_prm(settings: TrainPRMSettings) -> TrainedPRM:
    """Train a PRM, as `tts train-prm` does, and write a folder that `--scorer` loads.

    The folder `settings.out` gets config.json, weights and tokenizer, and the checkpoints and the log of the training.

    Raises:
        InputError: Settings, data or model cannot be used (raised before training starts), the loss is not finite, or the
            memory does not suffice.
    """
    config = check_architecture(settings)
    longest = _longest(settings, config)
    _check_name(settings)
    args = _arguments(settings)
    with open_folder(settings):
        return _train(settings, longest, args)


def _train(settings: TrainPRMSettings, longest: int, args: Any) -> TrainedPRM:
    text = Text(load_prm_tokenizer(settings))
    train = read_examples(settings.data, settings, text, longest, train=True)
    dev = read_examples(settings.eval, settings, text, longest, train=False) if settings.eval is not None else []
    _check_targets(settings, train)

    from tts.train.prm.trainer import PRMTrainer, ScoredExample, metrics

    constant = [ScoredExample(i, 0.0, *_constant_rewards(example)) for i, example in enumerate(dev)]
    if dev and settings.metric not in metrics(dev, constant):
        raise InputError(f"--metric {settings.metric} cannot be computed from {settings.eval}: {_NEEDS[settings.metric]}")
    set_seed(settings.seed)
    model = load_reward_model(settings, text.tokenizer)
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


def train(settings: TrainPRMSettings, output: Output) -> int:
    """The command."""
    with resumable(settings):
        trained = train_prm(settings)
    if is_first():
        output.result(table=lambda: _report(trained), data=trained.to_json, brief=trained.out)
    return Exit.OK


_NEEDS = {
    "step_auc": "it needs targets of steps, some of at least 0.5 and some below",
    "calibration_error": "it needs targets of steps",
    "best_of_n": "it needs problems with several traces that have the field correct",
}


def _arguments(settings: TrainPRMSettings) -> Any:
    more: dict[str, Any] = {
        "remove_unused_columns": False, "logging_first_step": True, "ddp_find_unused_parameters": False
    }  # fmt: skip
    if settings.eval is not None:
        steps = settings.eval_steps or settings.save_steps
        more |= {
            "eval_strategy": "steps", "eval_steps": steps, "save_steps": steps, "load_best_model_at_end": True,
            "metric_for_best_model": f"eval_{settings.metric}",
            "greater_is_better": settings.metric in ("step_auc", "best_of_n"),
            "restore_callback_states_from_checkpoint": True,  # the count of --patience
        }  # fmt: skip
    return arguments(settings, **more)


def _longest(settings: TrainPRMSettings, config: dict[str, Any]) -> int:
    context = checkpoints.context_length(config)
    if settings.max_length is None and context is None:
        raise InputError(f"config.json of {settings.model!r} does not give a context length; set it with --max-length")
    if settings.max_length is not None and context is not None and settings.max_length > context:
        raise InputError(f"--max-length is {settings.max_length}, but {settings.model!r} reads at most {context} tokens")
    return settings.max_length or context or 0


def _check_name(settings: TrainPRMSettings) -> None:
    """Raise InputError if scorers, which infer a checkpoint's format from the folder's name, would infer another one."""
    wanted = training_format(settings)
    name = settings.out.resolve().name
    other = next((key for key, format in FORMATS.all().items() if re.search(format.matches, name)), None)
    if other is not None and FORMATS[other] is not wanted:
        raise InputError(f"--out {name} would be loaded as a PRM of the format {other}, by its name; choose another name")


def _check_targets(settings: TrainPRMSettings, train: list[Example]) -> None:
    """Raise InputError if the data has no targets for one of two heads; warn if final rewards stay untrained."""
    known = {sequence.whole for example in train for sequence in example.sequences}
    if settings.head == "both" and len(known) < 2:
        lacking, other = ("final targets", "step") if known == {False} else ("targets of steps", "trace")
        raise InputError(f"{settings.data} has no {lacking}, which --head both needs; use --head {other}")
    if settings.head == "step" and settings.lambda_final and True not in known:
        warn("no trace has a final_target, so the final reward stays untrained; score with --alpha 0, by step rewards alone")


def _constant_rewards(example: Example) -> tuple[tuple[float, ...], float | None]:
    """Return step rewards and a final reward of 0.5, to find out which metrics the data allows."""
    steps = [sequence.positions for sequence in example.sequences if not sequence.whole]
    return (0.5,) * len(steps[0] if steps else ()), 0.5


def _summary(settings: TrainPRMSettings, trainer: Any, traces: int) -> TrainedPRM:
    state = trainer.state
    losses = [row["loss"] for row in state.log_history if "loss" in row]
    evaluated = {row["step"]: row for row in state.log_history if "eval_loss" in row}
    best = state.best_global_step if evaluated else None
    row = evaluated.get(best, {})
    found = {name.removeprefix("eval_"): value for name, value in row.items() if name.startswith("eval_")}
    return TrainedPRM(settings.out, state.global_step, traces, (losses[0], losses[-1]) if losses else None, best, found)


def _report(trained: TrainedPRM) -> str:
    """Return the lines that the command prints at the end."""
    losses = "  loss {:.4f} → {:.4f}".format(*trained.losses) if trained.losses else ""
    lines = [f"{trained.steps} steps on {trained.traces} traces{losses}"]
    if found := trained.metrics:
        names = {"loss": "loss", "step_auc": "step AUC", "calibration_error": "calibration error"}
        shown = [f"{words} {found[name]:.4f}" for name, words in names.items() if name in found]
        if "best_of_n" in found:
            shown.append(f"best of n {found['best_of_n']:.1%} (mean {found['mean_correct']:.1%})")
        lines.append(f"evaluated, best at step {trained.best}: {', '.join(shown)}")
    return "\n".join([*lines, f"{trained.out}: use it with tts run --scorer {trained.out}"])
