"""`tts sft`: fine-tune a policy on chosen traces (arXiv 2506.18896) with TRL's SFTTrainer and a loss on completions only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tts.data.traces import BadRowError, Trace, parse_line, read_lines
from tts.errors import Exit, InputError
from tts.models import chat
from tts.show.console import Output
from tts.train.policy import shared
from tts.train.policy.shared import PolicyPrompts
from tts.train.settings import SFTSettings
from tts.train.trainer import arguments, fit, is_first, open_folder, optimizers, resumable
from tts.trajectory import tags_in, with_tags

IGNORED = -100
"""The label of a token that the loss ignores."""

TokenizedTrace = dict[str, list[int]]
"""`input_ids` and `labels`, of equal length."""


def sft(settings: SFTSettings, output: Output | None = None) -> int:
    """Train a policy, as `tts sft` does: write it to `settings.out`, and report.

    Args:
        settings: The options of `tts sft`.
        output: How to report. Default: a summary on standard output.

    Returns:
        The exit code 0.

    Raises:
        InputError: Settings, data or model cannot be used (raised before training starts), the loss is not finite, or the
            memory does not suffice.
    """
    with resumable(settings):
        trainer, traces = _train(settings)
    if is_first():
        (output or Output()).result(
            table=lambda: _summary(settings, trainer, traces),
            data=lambda: shared.summary(settings.out, trainer, traces=traces),
            brief=settings.out,
        )
    return Exit.OK


def _train(settings: SFTSettings) -> tuple[Any, int]:
    """Train; return the trainer and the number of traces."""
    shared.require_trl()
    prompts = PolicyPrompts(settings.model, **settings.prompting)
    longest = min(settings.max_length or prompts.context, prompts.context)
    traces = read_traces(settings.traces, prompts, longest, settings.names, settings.instruction)
    held_out = (
        read_traces(settings.eval, prompts, longest, settings.names, settings.instruction)
        if settings.eval is not None
        else None
    )
    with open_folder(settings):
        trainer = make_sft_trainer(settings, prompts, traces, held_out)
        fit(trainer, settings)
        shared.save_policy(trainer, settings, settings.model)
    return trainer, len(traces)


def make_sft_trainer(
    settings: SFTSettings, prompts: PolicyPrompts, traces: Sequence[TokenizedTrace], held_out: Sequence[TokenizedTrace] | None
) -> Any:
    """Return TRL's SFTTrainer for tokenized traces.

    With --packing, a row has up to --max-length tokens, by default as many as the longest trace.

    Args:
        settings: The options of `tts sft`.
        prompts: The prompts of the policy.
        traces: The traces to train on.
        held_out: The traces to compute a held-out loss on; None for no evaluation.

    Raises:
        InputError: An option or the model cannot be used.
    """
    from datasets import Dataset, disable_progress_bars
    from trl.data_utils import pack_dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    class Fitter(SFTTrainer):
        """Omits telemetry, and TRL's token count, which is wrong for a batch of several rows."""

        def _send_telemetry(self) -> None:
            pass

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            for metrics in self._metrics.values():
                metrics.pop("num_tokens", None)
            super().log(logs, start_time)

    disable_progress_bars()

    width = settings.max_length or max(len(trace["input_ids"]) for trace in (*traces, *(held_out or ())))

    def dataset(of: Sequence[TokenizedTrace]) -> Any:
        rows = Dataset.from_list(list(of))
        return pack_dataset(rows, width, "bfd") if settings.packing else rows

    evaluated = {"eval_strategy": "steps", "eval_steps": settings.eval_steps, "eval_on_start": not settings.resume}
    given = arguments(
        settings, SFTConfig, max_length=None, packing=False, dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False, ddp_find_unused_parameters=False, **(evaluated if held_out is not None else {}),
    )  # fmt: skip
    model = shared.load_policy(settings.model)
    tokenizer = prompts.tokenizer
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return Fitter(
        model, given, data_collator=SFTCollator(padding), train_dataset=dataset(traces),
        eval_dataset=dataset(held_out) if held_out is not None else None, processing_class=tokenizer,
        optimizers=optimizers(settings, model), peft_config=shared.policy_adapters(settings),
    )  # fmt: skip


class SFTCollator:
    """Makes a padded batch [rows, tokens]. In a row of several packed traces (`seq_lengths`), each starts at position 0.

    TRL's own packing joins the rows of a batch into a single one, which is affordable with flash attention only. Here the rows
    stay separate and no attention mask is given: transformers then derives the mask from the positions that restart at 0, for
    every attention implementation.

    Args:
        padding: The token id to pad with.
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


def read_traces(
    path: Path, prompts: PolicyPrompts, most: int, names: Mapping[str, str], instruction: str | None = None
) -> list[TokenizedTrace]:
    """Read and tokenize the traces of a file, and warn about the number of those that are too long and skipped.

    Args:
        path: JSONL of traces.
        prompts: The prompts of the policy.
        most: Tokens of prompt and completion together, at most.
        names: The file's names for the fields in `tts.data.traces.FIELDS`.
        instruction: The instruction of all problems, or "none". Default: each trace's own.

    Raises:
        InputError: A line is not a trace, the file has none, or all of them are too long.
    """
    kept, longest, skipped = [], 0, 0
    end = end_of_turn(prompts)
    for number, line, _ in read_lines(path):
        try:
            traces = parse_line(line, number, names)
        except BadRowError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
        for trace in traces:
            tokenized = tokenize_trace(prompts, trace.instructed(instruction), end)
            if len(tokenized["input_ids"]) <= most:
                kept.append(tokenized)
            else:
                skipped, longest = skipped + 1, max(longest, len(tokenized["input_ids"]))
    if not kept and not skipped:
        raise InputError(f"{path} has no traces; expected one JSON object per line, with problem and text")
    too_long = f"{skipped} of {len(kept) + skipped} traces of {path} are longer than {most} tokens (up to {longest})"
    if not kept:
        raise InputError(f"{too_long}; give a larger --max-length, or a model with a longer context")
    if skipped:
        shared.say(f"{too_long} and are skipped")
    return kept


def tokenize_trace(prompts: PolicyPrompts, trace: Trace, end: int) -> TokenizedTrace:
    """Return the tokens of a trace as inference would have drawn it: the prompt, the text, and the end of the turn.

    The loss ignores the prompt. Control tokens that are spelt out in the text stay text, except its thinking tags. If the chat
    template opens the thinking, the text gets the template's tags: its own opening tag is omitted, and a text without thinking
    begins with the closing tag. A trace that was cut off by its token limit has no end of turn.

    Args:
        prompts: The prompts of the policy.
        trace: The trace.
        end: The id of the token that ends the turn, as `end_of_turn` returns it.
    """
    prompt = list(prompts.encode(trace.candidate.problem))
    text = trace.candidate.text
    if template := tags_in(prompts.opener):
        text = with_tags(text, template)
        head, opened, rest = text.partition(template.open)
        if opened and not head.strip():
            text = rest.removeprefix(prompts.opener.partition(template.open)[2])
        elif template.close not in text:
            text = f"\n{template.close}\n\n{text}"
    stop = [] if trace.candidate.finish == "length" else [end]  # a trace that was cut off does not end its turn
    completion = [*chat.encode(prompts.tokenizer, _fragments(text)).ids, *stop]
    return {"input_ids": prompt + completion, "labels": [IGNORED] * len(prompt) + completion}


def _fragments(text: str) -> list[chat.Fragment]:
    """A completion in which the tags around its thinking may be control tokens."""
    if (tags := tags_in(text)) is None:
        return [text]
    thinking, close, response = text.partition(tags.close)
    head, opener, thinking = thinking.partition(tags.open) if tags.open in thinking else ("", "", thinking)
    return [head, chat.Template(opener), thinking, chat.Template(close), response]


def end_of_turn(prompts: PolicyPrompts) -> int:
    """Return the id of the token that ends an assistant's turn.

    It is the one that the chat template writes, if engines stop at it, and otherwise the tokenizer's eos_token.

    Raises:
        InputError: There is neither.
    """
    tokenizer = prompts.tokenizer
    ends = prompts.config.get("eos_token_id")
    stops = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    if prompts.in_chat:
        turns = [chat.Turn("user", ["?"]), chat.Turn("assistant", [chat.Mark.CUT])]
        parts = chat.render(tokenizer, turns, open_turn=False)
        after_text = parts[parts.index(chat.Mark.CUT) + 1 :]
        if found := [token for token in chat.encode(tokenizer, after_text).ids if token in stops]:
            return int(found[0])
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"the tokenizer of {tokenizer.name_or_path} has no eos_token to end a completion with; set one in"
            " tokenizer_config.json"
        )
    return int(tokenizer.eos_token_id)


def _summary(settings: SFTSettings, trainer: Any, traces: int) -> str:
    lines = [f"{traces} traces, {trainer.state.global_step} steps"]
    for name, about in (("loss", "loss"), ("eval_loss", "held-out loss")):
        if values := shared.history(trainer, name):
            lines.append(f"{about} {values[0]:.4f} -> {values[-1]:.4f}")
    return ", ".join(lines) + f"\n{settings.out}: try it with tts run --model {settings.out}"
