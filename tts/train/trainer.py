"""What every training shares: folder, arguments, optimizer, adapters, the log, and going on after a stop."""

from __future__ import annotations

import atexit
import gc
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from tts.data.files import part_of, unwritten, write_whole, writing
from tts.data.identity import check_content, content_of
from tts.data.lock import LOCK, Lock
from tts.errors import InputError
from tts.interrupts import on_interrupt, stopping
from tts.models import weights
from tts.options import check_resumable, kept
from tts.show.console import warn
from tts.train.settings import TrainingSettings
from tts.train.whole import CHECKPOINTS, broken_checkpoints, newest_checkpoint

SETTINGS, LOG = "training.json", "log.jsonl"
SHOWN = ("loss", "eval_loss", "reward", "eval_rewards/outcome/mean")
"""What of a row of the log is shown while it is trained."""


def is_first() -> bool:
    """Whether this is the process, of those of `accelerate launch`, that writes and reports."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def open_folder(settings: TrainingSettings, **content: str) -> Iterator[None]:
    """Make the folder, or check that a training under the same settings was started in it, and train in it.

    While the block is under way no other process may train there. An error of a full disk becomes an InputError, and a
    checkpoint that was cut off by it is removed.

    Args:
        settings: The options of the command.
        content: Fingerprints of what the settings name, beside those that `tts.data.identity` finds.

    Raises:
        InputError: The folder cannot be used.
    """
    out = settings.out
    with ExitStack() as stack, writing(out, "make room; with --resume, the same command continues from the newest checkpoint"):
        if is_first():
            _check_folder(settings)
            out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(Lock(out))
            _check_folder(settings)  # another process may have been faster
            found = {**content_of(settings), **content}
            if settings.resume:
                if changes := check_content(out, _read_notes(out), found, accept=settings.accept_changes):
                    note(out, **changes)
            else:
                note(out, settings=kept(settings), content=found, torch=torch.__version__)
        try:
            yield
        except InputError:
            if is_first() and not settings.resume and _is_unused(out):
                shutil.rmtree(out, ignore_errors=True)  # nothing could be begun
            raise
        except Exception as error:
            if unwritten(error) is not None and is_first():
                for folder in broken_checkpoints(out):
                    shutil.rmtree(folder, ignore_errors=True)
            raise


def _check_folder(settings: TrainingSettings) -> None:
    """Raise InputError unless the folder is there to resume, or to be used."""
    out = settings.out
    if not settings.resume and out.exists() and not _is_unused(out):
        raise InputError(f"{out} exists and is not an empty folder; continue in it with --resume, or choose another --out")
    if settings.resume and not (out / SETTINGS).is_file():
        raise InputError(f"{out} holds no training to resume (no {SETTINGS} in it); omit --resume")
    if settings.resume:
        check_resumable(out, _read_notes(out)["settings"], settings)


def _read_notes(out: Path) -> dict[str, Any]:
    try:
        notes: dict[str, Any] = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
        dict(notes["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot read {out / SETTINGS}: {error}; restore that file, or choose another --out") from error
    return notes


def note(out: Path, **facts: Any) -> None:
    """Put facts into the folder's training.json, beside those it holds."""
    path = out / SETTINGS
    write_whole(path, json.dumps({**(_read_notes(out) if path.exists() else {}), **facts}, indent=2) + "\n")


def _is_unused(out: Path) -> bool:
    """Whether a folder holds nothing, or only what a training leaves that never began."""
    beside = (SETTINGS, part_of(Path(SETTINGS)).name, LOCK)
    return out.is_dir() and all(
        file.name in beside or (file.name == CHECKPOINTS and not any(file.iterdir())) for file in out.iterdir()
    )


def arguments(settings: TrainingSettings, kind: type[Any] = TrainingArguments, **more: Any) -> Any:
    """The settings as transformers, or a trainer of TRL's, wants them; `more` is passed on. Raises InputError."""
    if find_spec("accelerate") is None:
        raise InputError("training needs accelerate; install it with: pip install 'tts-toolkit[train]'")
    device = weights.find_device(settings.device)
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
        write_whole(self.path, "".join(json.dumps(row) + "\n" for row in state.log_history))
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


def fit(trainer: Trainer, settings: TrainingSettings) -> None:
    """Train, from the newest checkpoint where --resume says so.

    The first Ctrl-C ends the step under way, saves a checkpoint and then raises KeyboardInterrupt; several processes stop after
    the same step. Raises InputError where the memory does not suffice or the loss is no number.
    """
    log = _Log(settings.out)
    trainer.add_callback(log)
    trainer.remove_callback(PrinterCallback)  # it prints dicts to standard output
    checkpoint = newest_checkpoint(settings.out) if settings.resume else None
    try:
        with stopping(log.stop, patience="saving a checkpoint after this step; interrupt again to leave without"):
            trainer.train(resume_from_checkpoint=str(checkpoint.resolve()) if checkpoint is not None else None)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise InputError(
            "training does not fit into memory: try a smaller --batch-size with more --accumulate, --gradient-checkpointing,"
            " --bf16 or --lora 16"
        ) from error
    finally:
        log.close()
    if log.stopped:
        raise KeyboardInterrupt  # it was another process of this training that got the signal
