"""`tts sft`: a policy fine-tuned on chosen traces (arXiv 2506.18896), the loss on completions alone, by TRL's SFTTrainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tts.data.traces import BadRowError, Trace, parse_line, read_lines
from tts.errors import InputError
from tts.models import chat
from tts.show.console import field_names
from tts.train.policy import shared
from tts.train.policy.shared import Prompts
from tts.train.settings import SFT
from tts.train.trainer import arguments, fit, is_first, open_folder, optimizers, resumable
from tts.trajectory import CLOSE, OPEN

IGNORED = -100
"""The label of a token that nothing is learnt from."""

Row = dict[str, list[int]]
"""`input_ids` and `labels`, of one length."""


def sft(settings: SFT) -> int:
    """Train, write the policy into `settings.out`, and print what came of it. Returns exit code 0. Raises InputError."""
    with resumable(settings):
        trainer, traces = _train(settings)
    if is_first():
        print(_summary(settings, trainer, traces))
    return 0


def _train(settings: SFT) -> tuple[Any, int]:
    """The trainer when it is done, and how many traces it was given."""
    shared.require_trl()
    prompts = Prompts(settings.model, settings.system)
    most = min(settings.max_length or prompts.context, prompts.context)
    rows = read_rows(settings.traces, prompts, most, field_names(settings.field))
    held_out = read_rows(settings.eval, prompts, most, field_names(settings.field)) if settings.eval is not None else None
    open_folder(settings)
    trainer = build(settings, prompts, rows, held_out)
    fit(trainer, settings)
    shared.save(trainer, settings, settings.model)
    return trainer, len(rows)


def build(settings: SFT, prompts: Prompts, rows: Sequence[Row], held_out: Sequence[Row] | None) -> Any:
    """TRL's trainer on rows of token ids; with packing, of up to --max-length or the longest trace's tokens a row."""
    from datasets import Dataset, disable_progress_bars
    from trl.data_utils import pack_dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    class Fitter(SFTTrainer):
        """Leaves away a count of tokens that takes a batch for one row, and telemetry."""

        def _send_telemetry(self) -> None:
            pass

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            for metrics in self._metrics.values():
                metrics.pop("num_tokens", None)
            super().log(logs, start_time)

    disable_progress_bars()

    width = settings.max_length or max(len(row["input_ids"]) for row in (*rows, *(held_out or ())))

    def dataset(of: Sequence[Row]) -> Any:
        made = Dataset.from_list(list(of))
        return pack_dataset(made, width, "bfd") if settings.packing else made

    evaluated = {"eval_strategy": "steps", "eval_steps": settings.eval_steps, "eval_on_start": not settings.resume}
    given = arguments(
        settings, SFTConfig, max_length=None, packing=False, dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False, ddp_find_unused_parameters=False, **(evaluated if held_out is not None else {}),
    )  # fmt: skip
    model = shared.load(settings.model)
    tokenizer = prompts.tokenizer
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return Fitter(
        model, given, data_collator=Collator(padding), train_dataset=dataset(rows),
        eval_dataset=dataset(held_out) if held_out is not None else None, processing_class=tokenizer,
        optimizers=optimizers(settings, model), peft_config=shared.adapters(settings),
    )  # fmt: skip


class Collator:
    """Rows as a batch [rows, tokens]. Where a row holds several traces (`seq_lengths`), each begins at position 0.

    TRL's own packing joins the rows of a batch into one, which only flash attention reads at a bearable cost. Left apart, and
    without an attention mask, positions that begin anew are what transformers makes a mask of, for every kind of attention.
    """

    def __init__(self, padding: int) -> None:
        self.padding = padding

    def __call__(self, rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in rows)
        shape = len(rows), width
        ids, labels = torch.full(shape, self.padding), torch.full(shape, IGNORED)
        positions = torch.zeros(shape, dtype=torch.long)  # every padding token is a sequence of its own
        for i, row in enumerate(rows):
            start = 0
            for length in row.get("seq_lengths") or [len(row["input_ids"])]:
                end = start + length
                ids[i, start:end] = torch.tensor(row["input_ids"][start:end])
                labels[i, start + 1 : end] = torch.tensor(row["labels"][start + 1 : end])
                positions[i, start:end] = torch.arange(length)
                start = end
        return {"input_ids": ids, "labels": labels, "position_ids": positions}


def read_rows(path: Path, prompts: Prompts, most: int, names: Mapping[str, str]) -> list[Row]:
    """The traces of a file as token ids, with those longer than `most` left out and counted on stderr.

    Raises InputError at the first line that is no trace, for a file without any, and where all are too long.
    """
    rows, longest, left_out = [], 0, 0
    end = end_of_turn(prompts)
    for number, line, _ in read_lines(path):
        try:
            traces = parse_line(line, number, names)
        except BadRowError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
        for trace in traces:
            row = encode(prompts, trace, end)
            if len(row["input_ids"]) <= most:
                rows.append(row)
            else:
                left_out, longest = left_out + 1, max(longest, len(row["input_ids"]))
    if not rows and not left_out:
        raise InputError(f"{path} holds no traces; expected one JSON object a line with problem and text")
    told = f"{left_out} of {len(rows) + left_out} traces of {path} are longer than {most} tokens (up to {longest})"
    if not rows:
        raise InputError(f"{told}; give a larger --max-length, or a model with a longer context")
    if left_out:
        shared.say(f"{told} and are left out")
    return rows


def encode(prompts: Prompts, trace: Trace, end: int) -> Row:
    """A trace as inference would have drawn it: the very prompt, then the text, then, if it ended, the token that ends a turn.

    Control tokens that are spelt out in the text stay text. Where the template opens `<think>` the text's own is left away; a
    text without any thinking closes it at once.
    """
    prompt = list(prompts.encode(trace.candidate.problem))
    text = trace.candidate.text
    if prompts.opener:
        head, opened, rest = text.partition(OPEN)
        if opened and not head.strip():
            text = rest.removeprefix(prompts.opener.partition(OPEN)[2])
        elif CLOSE not in text:
            text = f"\n{CLOSE}\n\n{text}"
    stop = [] if trace.row.get("finish") == "length" else [end]  # what was cut off did not end there
    completion = [*chat.encode(prompts.tokenizer, [text]).ids, *stop]
    return {"input_ids": prompt + completion, "labels": [IGNORED] * len(prompt) + completion}


def end_of_turn(prompts: Prompts) -> int:
    """The token that ends an assistant's turn: the template's own, where engines stop at it, else the tokenizer's."""
    tokenizer = prompts.tokenizer
    ends = prompts.config.get("eos_token_id")
    stops = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    if tokenizer.chat_template:
        turns = [chat.Turn("user", ["?"]), chat.Turn("assistant", [chat.Mark.CUT])]
        parts = chat.render(tokenizer, turns, open_turn=False)
        behind = parts[parts.index(chat.Mark.CUT) + 1 :]
        if found := [token for token in chat.encode(tokenizer, behind).ids if token in stops]:
            return int(found[0])
    if tokenizer.eos_token_id is None:
        raise InputError(f"the tokenizer of {tokenizer.name_or_path} has no eos_token, which ends a completion; give it one")
    return int(tokenizer.eos_token_id)


def _summary(settings: SFT, trainer: Any, traces: int) -> str:
    lines = [f"{traces} traces, {trainer.state.global_step} steps"]
    for name, about in (("loss", "loss"), ("eval_loss", "held-out loss")):
        if values := shared.history(trainer, name):
            lines.append(f"{about} {values[0]:.4f} -> {values[-1]:.4f}")
    return ", ".join(lines) + f"\n{settings.out}: try it with tts run --model {settings.out}"
