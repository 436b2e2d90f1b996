"""What the training commands can be told: a dataclass each, whose fields are the command's options.

This file stays free of torch, so that `tts --help` does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tts.errors import InputError
from tts.train.options import AT_LEAST_1, NOT_NEGATIVE, POSITIVE, SHARE, argument, check, option
from tts.types import Aggregate, Part


@dataclass(frozen=True, kw_only=True)
class Label:
    """Label traces for training a PRM: alignment, quality, coherence, their combination, and the trajectory reward."""

    traces: Path = argument(
        "JSONL of traces: problem, answer, and text, steps, or thinking and response; or a run's results.jsonl."
    )
    out: Path = option("File to write.")
    quality: str = option(
        "Of each step: rollout (share of completions from there that are right), judge (a language model's rating), check (for"
        " arith), or file.py:function of your own.",
        "rollout",
    )
    targets: Literal["combined", "quality", "hard"] = option(
        "combined is the paper's: alignment, quality and coherence weighted by their softmax. quality is that alone, and hard"
        " whether it reaches --threshold.",
        "combined",
    )
    threshold: float = option("Quality from which on a hard label is 1.", 0.5)
    final: Literal["template", "outcome", "none"] = option(
        "Of the trace: template (share of right answers under a template drawn from it), outcome (its own answer), or none.",
        "template",
    )
    model: str = option("Policy, for rollouts and answers under a template.", "arith-policy")
    engine: str = option("What runs the policy; tts engines lists them.", "transformers")
    engine_arg: list[str] = option("An argument of the engine, as in dtype=bfloat16; repeatable.", factory=list, shown=False)
    url: str | None = option("Server of --engine server or sglang.", None)
    expert: str | None = option("Judges steps and extracts templates.", None, shown="the policy")
    expert_engine: str = option("What runs the expert.", "transformers")
    expert_arg: list[str] = option("An argument of the expert's engine; repeatable.", factory=list, shown=False)
    expert_url: str | None = option("Server of the expert.", None)
    judge_prompt: str | None = option("File with a judge's prompt of your own.", None, shown="tts.train.label.quality.JUDGE")
    encoder: str | None = option(
        "Embeds steps: a sentence-transformers or any other model.", None, shown="the policy's hidden states"
    )
    match: Literal["max", "matched"] = option("The response step that a thinking step is compared with.", "max")
    tau: float = option("Temperature of coherence.", 0.1)
    negatives: int = option("Steps of other problems that a step's coherence is compared with.", 16)
    positive_outside: bool = option("Leave the step itself out of the sum in coherence.", False)
    normalize: Literal["unit", "clip", "none"] = option(
        "unit brings every term to [0, 1] before they are combined; clip cuts off what the raw terms' combination has beyond.",
        "unit",
    )
    n: int = option("Completions of a prefix, and answers under a template.", 8)
    max_tokens: int = option("New tokens of a completion, at most.", 2048)
    temperature: float = option("Of completions.", 1.0)
    grader: str = option("How answers are compared: math, letter, numeric, exact or file.py:function.", "math")
    layout: Literal["rows", "trl"] = option("trl writes prompt, completions and labels, as TRL's data sets have them.", "rows")
    field: list[str] = option("What the file calls a field, as in problem=question; repeatable.", factory=list, shown=False)
    limit: int | None = option("Traces to label.", None, shown="all")
    cache: Path | None = option("Where ratings and rollouts are kept.", None, shown="OUT.cache")
    seed: int = option("Same seed, same labels.", 0)
    resume: bool = option("Go on with --out where it ends.", False)

    def __post_init__(self) -> None:
        check(
            self, threshold=SHARE, tau=POSITIVE, negatives=AT_LEAST_1, n=AT_LEAST_1, max_tokens=AT_LEAST_1,
            temperature=NOT_NEGATIVE, limit=AT_LEAST_1,
        )  # fmt: skip
        if self.quality not in ("rollout", "judge", "check") and ":" not in self.quality:
            raise InputError(f"--quality is {self.quality!r}; it should be rollout, judge, check, or file.py:function")


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


@dataclass(frozen=True, kw_only=True)
class SFT(Training):
    """Fine-tune a policy on chosen traces, with the loss on the completions alone."""

    traces: Path = argument("JSONL of traces: problem, and text, steps, or thinking and response; or a run's results.jsonl.")
    model: str = option("Policy: a bundled name, a folder or a hub id.", "arith-policy")
    system: str | None = option("System prompt.", None, shown="the chat template's")
    max_length: int | None = option(
        "Tokens of prompt and completion; longer traces are left out.", None, shown="the model's context"
    )
    packing: bool = option("Put several traces into a row; they do not see each other.", False)
    eval: Path | None = option("Traces to watch the loss on.", None, shown="none")
    eval_steps: int = option("Optimizer steps from an evaluation to the next.", 100)
    field: list[str] = option("What the file calls a field, as in problem=question; repeatable.", factory=list, shown=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, max_length=AT_LEAST_1, eval_steps=AT_LEAST_1)


RL_DEFAULTS: dict[str, Any] = {
    "beta": 0.5, "group": 8, "kl": 0.001, "loss_type": "grpo", "lr": 1e-6, "epochs": 1.0, "batch_size": 64, "accumulate": 1,
    "max_prompt": None, "max_tokens": 512,
}  # fmt: skip
"""What an option of `tts rl` is where neither the command line nor a preset says it."""

PRESETS: dict[str, dict[str, Any]] = {
    # arXiv 2506.18896, as its repository has it; the problems of a step are not published
    "paper": {
        "beta": 0.75, "group": 6, "kl": 0.001, "loss_type": "grpo", "lr": 1e-6, "epochs": 1.0, "batch_size": 6, "accumulate": 8,
        "max_prompt": 512, "max_tokens": 16384,
    },
}  # fmt: skip


def _preset(help: str, name: str) -> Any:
    """An option that a preset may set: its field is None until then."""
    others = [f"; {preset}: {values[name]:g}" for preset, values in PRESETS.items() if values[name] != RL_DEFAULTS[name]]
    default = RL_DEFAULTS[name]
    return option(help, None, shown=f"{'none' if default is None else default}{''.join(others)}")


@dataclass(frozen=True, kw_only=True)
class RL(Training):
    """Improve a policy by GRPO on r = (1 - beta) * r_out + beta * r_hat: right answers, and a reward model's r_hat."""

    model: str = option("Policy: a bundled name, a folder or a hub id.", "arith-policy")
    system: str | None = option("System prompt.", None, shown="the chat template's")
    preset: Literal["paper"] | None = option("Settings of arXiv 2506.18896; given options override them.", None, shown="none")
    beta: float = _preset("Weight of the reward model; 0 is GRPO on right answers alone.", "beta")
    group: int = _preset("Completions of a problem, whose rewards are compared.", "group")
    kl: float = _preset("Coefficient of the KL divergence from the policy as it was.", "kl")
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo"] = _preset("As TRL names them.", "loss_type")
    lr: float = _preset("Learning rate, at its peak.", "lr")
    epochs: float = _preset("Times over the problems.", "epochs")
    batch_size: int = _preset("Completions of a device's batch.", "batch_size")
    accumulate: int = _preset("Batches to an optimizer step.", "accumulate")
    max_prompt: int | None = _preset("Tokens of a prompt; problems with longer ones are left out.", "max_prompt")
    max_tokens: int = _preset("New tokens of a completion, at most.", "max_tokens")
    temperature: float = option("Of completions.", 1.0)
    scorer: str = option("Reward model: a bundled name, a folder or a hub id; or another of `tts scorers`.", "arith-prm")
    scorer_format: str | None = option("How it reads a trace; `tts scorers` lists the formats.", None, shown="the model's own")
    scorer_engine: str = option("What runs it: transformers or vllm in this process, or server.", "transformers")
    scorer_url: str | None = option("Of vLLM's pooling server, for --scorer-engine server.", None, shown=False)
    scorer_arg: list[str] = option("An argument of the scorer, as in window=true; repeatable.", factory=list, shown=False)
    score_over: Part | None = option("The part of a trajectory that is rated.", None, shown="the model's own, else all")
    alpha: float = option("Weight of the final reward in r_hat = aggregate(steps) + alpha * final.", 1.0)
    aggregate: Aggregate = option("How step rewards become one number.", "mean")
    benchmark: str = option("Problems to learn on, with answers: as in `tts run`, or arith:train.", "arith:train")
    question_field: str | None = option("What the data calls the question.", None, shown="problem")
    answer_field: str | None = option("What the data calls the reference answer.", None, shown="answer")
    id_field: str | None = option("What the data calls the id.", None, shown="id")
    split: str | None = option("Of a data set of the hub.", None, shown="the benchmark's own, else test")
    data_dir: Path | None = option("A local copy of what lies on the hub.", None, shown=False)
    grader: str | None = option(
        "math, letter, numeric, exact, or your own: file.py:function.", None, shown="the benchmark's own, else math"
    )
    limit: int | None = option("Problems to learn on.", None, shown="100 of arith, all of a file")
    eval_benchmark: str | None = option("Held-out problems, with answers.", None, shown="none")
    eval_split: str | None = option("Of a data set of the hub.", None, shown="the benchmark's own, else test")
    eval_limit: int | None = option("Held-out problems, each solved once.", None, shown="100 of arith, all of a file")
    eval_steps: int = option("Optimizer steps from an evaluation to the next.", 10)
    window: int = option("Evaluations that the guard against reward hacking looks over; 0 is none.", 4)
    rollouts: Literal["transformers", "engine", "vllm", "vllm-server"] = option(
        "What draws completions: TRL with transformers, tts's own engine (one device), vLLM in this process, or its server.",
        "transformers",
    )
    vllm_url: str | None = option("Server of --rollouts vllm-server (`trl vllm-serve`).", None, shown="http://0.0.0.0:8000")
    vllm_memory: float = option("Share of the GPU's memory that --rollouts vllm takes.", 0.3)
    log_steps: int = option("Optimizer steps from a line of the log to the next.", 1)

    def __post_init__(self) -> None:
        for name, default in {**RL_DEFAULTS, **PRESETS.get(self.preset or "", {})}.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)  # the one way to fill in fields of a frozen dataclass
        super().__post_init__()
        check(
            self, beta=SHARE, group=(lambda n: n >= 2, "at least 2: rewards are compared within a group"), kl=NOT_NEGATIVE,
            max_prompt=AT_LEAST_1, max_tokens=AT_LEAST_1, temperature=POSITIVE, limit=AT_LEAST_1, eval_limit=AT_LEAST_1,
            eval_steps=AT_LEAST_1, window=(lambda n: n == 0 or n >= 2, "0 or at least 2"),
            vllm_memory=(lambda share: 0 < share <= 1, "above 0 and at most 1"),
            alpha=(lambda value: abs(value) < float("inf"), "a finite number"),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainPRM(Training):
    """Train a process reward model on labelled traces."""

    data: Path = argument("JSONL from tts label, or public step labels in the columns of TRL, Math-Shepherd or PRM800K.")
    model: str = option("Policy whose body it starts from; with --head step also a PRM to go on with.", "arith-policy")
    head: Literal["step", "trace", "both"] = option(
        "step rates steps, and the trace as one step; trace rates the trace alone; both has a head for each.", "step"
    )
    loss: Literal["mse", "ce"] = option("mse, as in the paper, or ce: cross-entropy, for hard labels and soft ones.", "mse")
    lambda_step: float = option("Weight of the mean loss of a trace's steps.", 1.0)
    lambda_final: float = option("Weight of the loss of the trace as a whole.", 1.0)
    over: Part = option("The part of a trajectory that is shown and rated.", "all")
    max_length: int | None = option("Tokens of a trace; longer ones are left out.", None, shown="the model's context")
    packing: bool = option("Put a batch into one row instead of padding it.", False)
    eval: Path | None = option("Labelled traces to evaluate on; several of one problem, with correct, give best-of-n.", None)
    eval_steps: int | None = option(
        "Optimizer steps from an evaluation, and its checkpoint, to the next.", None, shown="--save-steps"
    )
    metric: Literal["loss", "step_auc", "calibration_error", "best_of_n"] = option(
        "What the best checkpoint, which --eval keeps, is best in.", "loss"
    )
    patience: int | None = option("Evaluations without a better one before training stops.", None, shown="never stop")
    field: list[str] = option("What the files call a field, as in problem=question; repeatable.", factory=list, shown=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self, lambda_step=NOT_NEGATIVE, lambda_final=NOT_NEGATIVE, max_length=AT_LEAST_1, eval_steps=AT_LEAST_1,
            patience=AT_LEAST_1,
        )  # fmt: skip
        if self.eval is None and (given := [name for name in ("eval_steps", "patience") if getattr(self, name) is not None]):
            raise InputError(f"--{given[0].replace('_', '-')} is about evaluations; say on what with --eval")
        needed = {"step": self.lambda_step + self.lambda_final, "trace": self.lambda_final}
        if not needed.get(self.head, self.lambda_step * self.lambda_final):
            raise InputError(
                f"--lambda-step {self.lambda_step:g} --lambda-final {self.lambda_final:g} leave --head {self.head} untrained"
            )


@dataclass(frozen=True, kw_only=True)
class Select:
    """Choose traces of a pool to train on: rank them by reward, filter, and keep the best."""

    pool: Path = argument("JSONL of traces, with rewards from tts score or without; or a run's results.jsonl.")
    out: Path = option("File to write.")
    by: str = option("r_hat, response (its steps alone), random, all, or a field of numbers, as in stats.tokens.", "r_hat")
    top: str | None = option("How many to keep, or a share of the pool, as in 10%.", None, shown="all")
    threshold: float | None = option("Keep what scores at least this.", None)
    per_problem: int | None = option("Traces of a problem to keep, at most.", None)
    dedup: bool = option("Of traces that differ in white space alone, keep the best.", False)
    alpha: float = option("Weight of the final reward in r_hat = aggregate(steps) + alpha * final.", 1.0)
    aggregate: Aggregate = option("How step rewards become one number.", "mean")
    scorer: str | None = option(
        "Score the pool first: a reward model, or another of tts scorers.", None, shown="the pool's rewards, else arith-prm"
    )
    scorer_format: str | None = option("How it reads a trace; see tts scorers.", None, shown="by its name or config")
    scorer_engine: str = option("What runs it: transformers or vllm in this process, or server.", "transformers")
    scorer_url: str | None = option("Of vLLM's pooling server, for --scorer-engine server.", None)
    scorer_arg: list[str] = option("An argument of the scorer, as in dtype=bfloat16; repeatable.", factory=list, shown=False)
    score_over: Part | None = option("The part of a trajectory that it rates.", None, shown="the model's own, else all")
    model: str = option("The policy, for scorers that ask it.", "arith-policy")
    field: list[str] = option("What the file calls a field, as in problem=question; repeatable.", factory=list, shown=False)
    seed: int = option("Of --by random.", 0)
    plot: Path | None = option("PNG to write: histograms of scores and lengths.", None)
    resume: bool = option("Go on with a scoring that was stopped.", False)
    as_json: bool = option("Print one JSON object and nothing else.", False, flag="--json")

    def __post_init__(self) -> None:
        finite = (lambda value: abs(value) < float("inf"), "a finite number")
        number, share = re.compile(r"0*[1-9]\d{0,14}"), re.compile(r"\d{1,3}(\.\d{1,9})?%")
        check(
            self, per_problem=AT_LEAST_1, alpha=finite, threshold=finite, seed=NOT_NEGATIVE,
            top=(
                lambda top: bool(number.fullmatch(top) or (share.fullmatch(top) and 0 < float(top[:-1]) <= 100)),
                "a number of traces, such as 1000, or a share of the pool, such as 10%",
            ),
            plot=(lambda path: path.suffix.lower() == ".png", "a file name that ends in .png"),
        )  # fmt: skip
        if self.by in ("random", "all"):
            if self.threshold is not None:
                raise InputError(f"--by {self.by} gives no scores for --threshold to compare; leave that away, or use --top")
            if self.scorer is not None:
                raise InputError(f"--by {self.by} needs no rewards; leave --scorer away")
        if self.by == "response" and (self.aggregate == "final" or self.score_over == "think"):
            raise InputError("--by response needs rewards of the response's steps; leave --aggregate and --score-over away")
        about = ("scorer_format", "scorer_engine", "scorer_url", "scorer_arg", "score_over")
        if self.scorer is None and (given := [name for name in about if getattr(self, name) not in (None, [], "transformers")]):
            raise InputError(f"--{given[0].replace('_', '-')} says how a scorer is to score; name it with --scorer")
