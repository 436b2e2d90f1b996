"""transformers' Trainer adapted to a PRM: the loss averaged over the traces of an optimizer step, metrics, and checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object  # type: ignore[import-untyped]
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Trainer

from tts.errors import InputError
from tts.evals.calibration import calibration
from tts.evals.statistics import best_of_k
from tts.train.prm.data import Example, PRMCollator
from tts.train.prm.reward_model import RewardModel, reward_losses
from tts.types import Reward

if TYPE_CHECKING:
    from tts.train.settings import TrainPRMSettings

WEIGHTS = "model.safetensors"
RIGHT = 0.5
"""Threshold from which on a target counts as correct, for the metrics that need hard labels."""


class ScoredExample(NamedTuple):
    """The rewards that the model gives a trace."""

    example: int
    """Index among the examples that are scored."""
    loss: float
    """The paper's loss of this trace."""
    steps: tuple[float, ...]
    """Rewards of its steps, in [0, 1]; empty with --head trace."""
    final: float | None
    """Reward of the trace as a whole, in [0, 1]."""


class PRMTrainer(Trainer):
    """Trains a RewardModel on `train` and evaluates it on `dev`. Metrics are logged as eval_loss, eval_step_auc and so on."""

    loss_is_scaled_for_ga = True  # compute_loss divides by the traces of the whole optimizer step

    def __init__(
        self, model: RewardModel, settings: TrainPRMSettings, train: list[Example], dev: list[Example], **options: Any
    ) -> None:
        self.settings, self.dev = settings, dev
        self.collator = PRMCollator(settings.lambda_step, settings.lambda_final, settings.packing)
        super().__init__(model=model, train_dataset=train, eval_dataset=dev or None, data_collator=self.collator, **options)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Return the batches of an optimizer step, and the number of their traces over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        traces = sum(int(batch["traces"]) for batch in batches)
        return batches, self.accelerator.gather(torch.tensor([traces], device=device)).sum()

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the batch's share of the mean over the traces of the optimizer step.

        Without `num_items_in_batch`, the number of these traces, return the mean over the batch.
        """
        margins, losses = _margins_and_losses(model, inputs, self.settings.loss)
        if num_items_in_batch is None:
            loss = losses.sum() / inputs["traces"]
        else:  # gradients are averaged over processes
            loss = losses.sum() * self.accelerator.num_processes / num_items_in_batch
        return (loss, {"margins": margins}) if return_outputs else loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Compute and log the `metrics` of `eval_dataset`, by default of `dev`, and return them with their prefix."""
        examples = self.dev if eval_dataset is None else eval_dataset
        found = metrics(examples, self.score(examples))
        named = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(named)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, named)
        return named

    @torch.no_grad()
    def score(self, examples: Sequence[Example]) -> list[ScoredExample]:
        """Return the rewards of all examples, in order. In distributed training every process scores a share of them."""
        model: Any = self.model
        model.eval()
        order = sorted(range(len(examples)), key=lambda i: examples[i].tokens)[self.args.process_index :: self.args.world_size]
        scored: list[ScoredExample] = []
        for start in range(0, len(order), self.args.eval_batch_size):
            chosen = order[start : start + self.args.eval_batch_size]
            batch: Any = self._prepare_inputs(self.collator([examples[i] for i in chosen]))
            margins, losses = _margins_and_losses(model, batch, self.settings.loss)
            rewards, parts = iter(margins.double().sigmoid().tolist()), iter(losses.tolist())
            for i in chosen:
                loss, steps, final = 0.0, list[float](), None
                for sequence in examples[i].sequences:
                    values = [next(rewards) for _ in sequence.positions]
                    loss += sum(next(parts) for _ in sequence.positions)
                    if sequence.whole:
                        [final] = values
                    else:
                        steps = values
                scored.append(ScoredExample(i, loss, tuple(steps), final))
        return sorted(gather_object(scored))

    # A checkpoint holds the trained parameters only: tied weights once, and with LoRA the adapters and heads.

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: p.detach().contiguous() for name, p in self._trained().items()}, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        tensors, trained = load_file(Path(resume_from_checkpoint) / WEIGHTS), self._trained()
        if tensors.keys() != trained.keys():
            raise InputError(f"{resume_from_checkpoint} holds the weights of another kind of training; choose another --out")
        with torch.no_grad():
            for name, tensor in tensors.items():
                trained[name].copy_(tensor)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def _trained(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.accelerator.unwrap_model(self.model).named_parameters() if p.requires_grad}


def _margins_and_losses(model: Any, batch: dict[str, Any], loss: str) -> tuple[Tensor, Tensor]:
    """Return the margins [n] and their weighted losses [n], which add up to the paper's loss of each trace."""
    beside = ("traces", "targets", "weights")
    margins = model(**{name: tensor for name, tensor in batch.items() if name not in beside})
    return margins, batch["weights"] * reward_losses(margins, batch["targets"], loss)


def metrics(examples: Sequence[Example], scored: Sequence[ScoredExample]) -> dict[str, float]:
    """Return those of the following metrics that the examples allow.

    - loss: the paper's loss, averaged over traces.
    - calibration_error: the expected calibration error of step rewards, against hard labels (target at least RIGHT).
    - step_auc: the area under the ROC curve of step rewards, against the same labels. Needs labels of both kinds.
    - best_of_n: over problems with several traces, the accuracy of the trace with the highest r_hat. Needs `correct`.
    - mean_correct: over the same problems, the accuracy of a random trace.
    """
    found = {"loss": float(np.mean([s.loss for s in scored]))}
    steps = [
        (reward, target >= RIGHT)
        for s in scored
        for sequence in examples[s.example].sequences
        if not sequence.whole
        for reward, target in zip(s.steps, sequence.targets, strict=True)
        if target is not None
    ]
    if steps:
        rewards, right = map(list, zip(*steps, strict=True))
        found["calibration_error"] = calibration(rewards, right).error
        if len(set(right)) == 2:
            found["step_auc"] = auc(rewards, right)
    groups: dict[str, list[tuple[float, bool]]] = {}
    for s in scored:
        example = examples[s.example]
        if example.correct is not None:
            groups.setdefault(example.problem, []).append((Reward(s.steps, s.final).total, example.correct))
    pools = [list(zip(*group, strict=True)) for group in groups.values() if len(group) > 1]
    if pools:
        found["best_of_n"] = float(np.mean([best_of_k(totals, correct, len(totals)) for totals, correct in pools]))
        found["mean_correct"] = float(np.mean([np.mean(correct) for _, correct in pools]))
    return found


def auc(rewards: Sequence[float], right: Sequence[bool]) -> float:
    """Return the probability that a correct step has a higher reward than a wrong one, counting ties half.

    Needs at least one step of each kind.
    """
    _, place, counts = np.unique(np.asarray(rewards), return_inverse=True, return_counts=True)
    ranks, is_right = (np.cumsum(counts) - (counts - 1) / 2)[place], np.asarray(right)
    positive, negative = is_right.sum(), (~is_right).sum()
    return float((ranks[is_right].sum() - positive * (positive + 1) / 2) / (positive * negative))
