"""What every training shares: folder, arguments, optimizer, adapters, the log, and going on after a stop."""

from __future__ import annotations

import atexit
import gc
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from tts.errors import InputError
from tts.interrupts import on_interrupt, stopping
from tts.models import checkpoints
from tts.options import check_resumable, kept
from tts.show.console import warn
from tts.train.settings import TrainingSettings

CHECKPOINTS, SETTINGS, LOG = "checkpoints", "training.json", "log.jsonl"
SHOWN = ("loss", "eval_loss", "reward", "eval_rewards/outcome/mean")
"""What of a row of the log is shown while it is trained."""


def is_first() -> bool:
    """Whether this is the process, of those of `accelerate launch`, that writes and reports."""
    return int(os.environ.get("RANK", "0")) == 0


def open_folder(settings: TrainingSettings) -> None:
    """Make the folder, or check that a training under the same settings was started in it. Raises InputError."""
    if not is_first():
        return
    out, beside = settings.out, settings.out / SETTINGS
    if settings.resume:
        if not beside.is_file():
            raise InputError(f"{out} holds no training to go on with (no {SETTINGS} in it); leave --resume away")
        check_resumable(out, json.loads(beside.read_text())["settings"], settings)
        return
    if out.exists() and not _is_unused(out):
        raise InputError(f"{out} exists and is not an empty folder; go on with it by --resume, or choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        note(out, settings=kept(settings), torch=torch.__version__)
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror or error}; choose another --out") from error


def note(out: Path, **facts: Any) -> None:
    """Put facts into the folder's training.json, beside those it holds."""
    path = out / SETTINGS
    part = path.with_suffix(".part")
    part.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **facts}, indent=2) + "\n")
    part.replace(path)


def _is_unused(out: Path) -> bool:
    """Whether a folder holds nothing, or only what a training leaves that never began."""
    beside = (SETTINGS, Path(SETTINGS).with_suffix(".part").name)
    return out.is_dir() and all(
        file.name in beside or (file.name == CHECKPOINTS and not any(file.iterdir())) for file in out.iterdir()
    )


def arguments(settings: TrainingSettings, kind: type[Any] = TrainingArguments, **more: Any) -> Any:
    """The settings as transformers, or a trainer of TRL's, wants them; `more` is passed on. Raises InputError."""
    if find_spec("accelerate") is None:
        raise InputError("training needs accelerate; install it with: pip install 'tts-toolkit[train]'")
    device = checkpoints.find_device(settings.device)
    if device.index:
        raise InputError(f"--device is {settings.device}; choose a GPU to train on by CUDA_VISIBLE_DEVICES={device.index}")
    given = {
        "output_dir": str((settings.out / CHECKPOINTS).resolve()),
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps or -1,
        "per_device_train_batch_size": settings.batch_size,
        "per_device_eval_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.accumulate,
        "learning_rate": settings.lr,
        "warmup_steps": settings.warmup,  # below 1 it is a share
        "lr_scheduler_type": settings.schedule,
        "weight_decay": settings.weight_decay,
        _checkpointing(kind): settings.gradient_checkpointing,
        "bf16": settings.bf16,
        "use_cpu": device.type == "cpu",
        "dataloader_pin_memory": device.type == "cuda",
        "save_strategy": "steps",
        "save_steps": settings.save_steps,
        "save_total_limit": 2,
        "logging_steps": settings.log_steps,
        "logging_nan_inf_filter": False,  # a loss that is not a number is to be seen
        "seed": settings.seed,
        "report_to": "none",
        "disable_tqdm": True,
    }
    made = kind(**{**given, **more})
    if torch.distributed.is_initialized():  # by the line before, in a process of `accelerate launch`
        atexit.unregister(_part)
        atexit.register(_part)
    if made.n_gpu > 1:
        made._n_gpu = 1  # several GPUs are for `accelerate launch`, not for torch's DataParallel
    return made


def _checkpointing(kind: type[Any]) -> str:
    """The argument that recomputes activations: transformers 5.19 renames it, and the old name is still needed before."""
    names = {field.name for field in fields(kind)}
    return "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"


def _part() -> None:
    """Leave the process group while Python still runs: threads of it that let go of a tensor later would abort the process."""
    for name in ("last_exc", "last_value", "last_traceback"):
        vars(sys).pop(name, None)  # a traceback that has been printed
    gc.collect()  # what is left of a trainer, whose model holds on to the group
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    gc.collect()


def optimizers(settings: TrainingSettings, model: nn.Module) -> tuple[Optimizer | None, None]:
    """What trainers take as `optimizers`: Muon with AdamW where that is chosen, else nothing, which is AdamW."""
    return (
        MuonAdamW(model.named_parameters(), settings.lr, settings.weight_decay) if settings.optimizer == "muon" else None
    ), None


class MuonAdamW(Optimizer):
    """Muon (hidden matrices) and AdamW (embeddings, heads, vectors) as one optimizer, with one state to save.

    Muon's steps are scaled to AdamW's size, so that one learning rate serves both.
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], lr: float, weight_decay: float = 0.0) -> None:
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in named:
            if parameter.requires_grad:
                hidden = parameter.ndim == 2 and not any(part in name for part in ("embed", "score", "head"))
                (matrices if hidden else rest).append(parameter)
        self._parts: list[Optimizer] = []
        if matrices:
            self._parts.append(torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))
        if rest:
            self._parts.append(torch.optim.AdamW(rest, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.98)))
        super().__init__(
            [{**group, "part": i} for i, part in enumerate(self._parts) for group in part.param_groups], {"lr": lr}
        )

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure is not None else None
        for i, part in enumerate(self._parts):  # loading a state replaces both
            part.state, part.param_groups = self.state, [group for group in self.param_groups if group["part"] == i]
            part.step()
        return loss


def lora_config(settings: TrainingSettings, **more: Any) -> Any:
    """PEFT's configuration of adapters on every linear layer, or None for all weights. InputError where peft is missing."""
    if settings.lora is None:
        return None
    try:
        from peft import LoraConfig
    except ImportError:
        raise InputError("--lora needs peft; install it with: pip install 'tts-toolkit[train]'") from None
    return LoraConfig(r=settings.lora, lora_alpha=2 * settings.lora, target_modules="all-linear", **more)


class _Log(TrainerCallback):
    """Keeps all that was ever logged in log.jsonl, and shows the newest of it where somebody looks."""

    def __init__(self, out: Path) -> None:
        self.path = out / LOG
        self.bar: Any = None
        self.task: Any = None
        self.stopped = False

    def stop(self) -> None:
        """End the training after the step under way, with a checkpoint."""
        self.stopped = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self.bar = Progress(
                BarColumn(24), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn(),
                console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self.bar.start()
            self.task = self.bar.add_task("steps", total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step)
        if args.world_size > 1:
            stopped = torch.tensor(self.stopped, dtype=torch.int32, device=args.device)
            torch.distributed.all_reduce(stopped, torch.distributed.ReduceOp.MAX)
            self.stopped = bool(stopped)
        if self.stopped:
            control.should_save = control.should_training_stop = True
        if state.global_step >= state.max_steps:
            control.should_log = True  # the last losses, however few they are

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        part = self.path.with_suffix(".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in state.log_history))
        part.replace(self.path)
        row = state.log_history[-1]
        if not math.isfinite(row.get("loss", 0.0)):
            raise InputError(f"the loss is {row['loss']} at step {state.global_step}; try a smaller --lr or more --warmup")
        shown = [f"{name} {row[name]:.4f}" for name in SHOWN if isinstance(row.get(name), float)]
        if self.bar is not None:
            self.bar.update(self.task, description="  ".join(shown))
        elif shown:
            warn("  ".join([f"step {state.global_step}/{state.max_steps}", *shown]))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


@contextmanager
def resumable(settings: TrainingSettings) -> Iterator[None]:
    """Have an interrupt say how to resume."""

    def how() -> str:
        if not settings.out.exists() or _is_unused(settings.out):
            return "interrupted before anything was trained; nothing was written"
        return f"interrupted; resume with the same command and --resume ({settings.out})"

    with on_interrupt(how):
        yield


def _newest_checkpoint(out: Path) -> str | None:
    """The newest one that was written to its end; the trainer's state is written last."""
    found = [file.parent for file in (out / CHECKPOINTS).glob(f"checkpoint-*/{TRAINER_STATE_NAME}") if _is_json(file)]
    return str(max(found, key=lambda folder: int(folder.name.rpartition("-")[2])).resolve()) if found else None


def _is_json(file: Path) -> bool:
    try:
        json.loads(file.read_text())
    except ValueError:
        return False
    return True


def fit(trainer: Trainer, settings: TrainingSettings) -> None:
    """Train, from the newest checkpoint where --resume says so.

    The first Ctrl-C ends the step under way, saves a checkpoint and then raises KeyboardInterrupt; several processes stop after
    the same step. Raises InputError where the memory does not suffice or the loss is no number.
    """
    log = _Log(settings.out)
    trainer.add_callback(log)
    trainer.remove_callback(PrinterCallback)  # it prints dicts to standard output
    checkpoint = _newest_checkpoint(settings.out) if settings.resume else None
    try:
        with stopping(log.stop, patience="saving a checkpoint after this step; interrupt again to leave without"):
            trainer.train(resume_from_checkpoint=checkpoint)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise InputError(
            "training does not fit into memory: try a smaller --batch-size with more --accumulate, --gradient-checkpointing,"
            " --bf16 or --lora 16"
        ) from error
    finally:
        log.close()
    if log.stopped:
        raise KeyboardInterrupt  # it was another process of this training that got the signal
