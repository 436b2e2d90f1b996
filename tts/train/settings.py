"""Settings of the training commands: a dataclass each, whose fields are the command's options.

This file stays free of torch, so that `tts --help` does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from tts.demo import POLICY
from tts.engines import load_engine
from tts.errors import InputError
from tts.options import Arguments, Count, Natural, NotNegative, Positive, Share, option
from tts.runs.settings import (
    DataOptions,
    EngineOptions,
    PolicyOptions,
    ResumeOptions,
    SamplingOptions,
    ScorerOptions,
    StepOptions,
    TraceOptions,
)  # fmt: skip
from tts.train.label.checkers import CHECKERS
from tts.types import Engine, Part


@dataclass(frozen=True, kw_only=True)
class LabelSettings(StepOptions, TraceOptions, EngineOptions, SamplingOptions, ResumeOptions):
    """Label traces for training a PRM: alignment, quality, coherence, their combination, and the trajectory reward."""

    topic: ClassVar[str] = "Labels"

    traces: Path = option(positional=True, names="data")
    """JSONL of traces: problem, answer, and text, steps, or thinking and response; or a run's results.jsonl."""
    out: Path = option(short="-o", kept=False)
    """File to write."""
    quality: str = option("rollout", names="plugin")
    """Quality of a step: rollout (share of completions from there that are right), judge (a language model's rating), or a
    checker: a name that `tts checkers` lists, or file.py:function."""
    targets: Literal["combined", "quality", "hard"] = "combined"
    """Target of a step: combined is the paper's (alignment, quality and coherence weighted by their softmax); quality is that
    term alone; hard is whether it reaches --threshold."""
    threshold: Share = 0.5
    """Quality from which a hard label is 1."""
    final: Literal["template", "outcome", "none"] = "template"
    """Target of the trace: template (share of right answers under a template extracted from it), outcome (whether its own
    answer is right), or none."""
    expert: str | None = option(None, shown="the policy", names="model")
    """Model that judges steps and extracts templates."""
    expert_engine: str = option("transformers", names="plugin")
    """Engine that runs the expert."""
    expert_args: Arguments = option(factory=dict, flag="--expert-arg")
    """Option of the expert's engine, as name=value; repeatable."""
    expert_url: str | None = option(None, kept=False)
    """Address of the expert's server."""
    judge_prompt: str | None = option(None, shown="built in", names="data")
    """File with a prompt for the judge."""
    encoder: str | None = option(None, shown="the policy's hidden states", names="model")
    """Model that embeds steps: a sentence-transformers model or any other."""
    match: Literal["max", "matched"] = "max"
    """Response step that a thinking step is compared with: the most similar one, or the one at the same relative position."""
    tau: Positive = 0.1
    """Temperature of coherence."""
    negatives: Count = 16
    """Number of steps of other problems that a step's coherence is compared with."""
    positive_outside: bool = False
    """Omit the step itself from the sum in coherence."""
    normalize: Literal["unit", "clip", "none"] = "unit"
    """unit scales every term to [0, 1] before they are combined; clip clips the combination of the raw terms to [0, 1]."""
    n: Count = option(8, short="-n")
    """Completions of a prefix, and answers under a template."""
    grader: str = option("math", names="plugin")
    """How answers are compared: a name that `tts graders` lists, or file.py:function."""
    layout: Literal["rows", "trl"] = "rows"
    """Layout of the output: trl writes prompt, completions and labels, the columns of TRL's data sets."""
    limit: Count | None = option(None, shown="all", kept=False)
    """Number of traces to label."""
    cache: Path | None = option(None, shown="OUT.cache", kept=False)
    """File in which ratings and rollouts are kept."""
    resume: bool = option(False, kept=False)
    """Continue an --out that was started under the same settings."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quality not in ("rollout", "judge") and self.quality not in CHECKERS and ":" not in self.quality:
            raise InputError(
                f"--quality is {self.quality!r}; it should be rollout, judge, {', '.join(CHECKERS)}, or file.py:function"
            )
        if self.prompt_template is not None and self.expert is None and (self.quality == "judge" or self.final == "template"):
            raise InputError(
                "--prompt-template is for solving problems, but the policy would also judge or extract templates; name another"
                " model for that with --expert, or use --final outcome and --quality rollout"
            )

    def load_expert(self) -> Engine:
        """Start the engine of the expert, which has to be named. Raises InputError."""
        assert self.expert is not None
        return load_engine(self.expert_engine, self.expert, url=self.expert_url, options=self.expert_args)


Optimizer = Literal["adamw", "muon"]
Schedule = Literal["cosine", "linear", "constant", "constant_with_warmup"]


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(ResumeOptions):
    """What every training has: where its model goes, how long it is trained, and with what optimizer."""

    topic: ClassVar[str] = "Training"

    out: Path = option(short="-o", kept=False)
    """Folder to create: the model, its checkpoints and its log."""
    epochs: Positive = 1.0
    """Passes over the data."""
    max_steps: Count | None = option(None, shown="set by --epochs")
    """Optimizer steps; overrides --epochs."""
    batch_size: Count = 8
    """Rows in a device's batch."""
    accumulate: Count = 1
    """Batches per optimizer step."""
    lr: Positive = 1e-5
    """Peak learning rate."""
    warmup: Share = 0.03
    """Share of the steps over which the learning rate rises."""
    schedule: Schedule = "cosine"
    """How the learning rate falls."""
    optimizer: Optimizer = "adamw"
    """muon updates hidden matrices with Muon and the rest with AdamW."""
    weight_decay: NotNegative = 0.0
    """Decoupled weight decay."""
    lora: Count | None = option(None, shown="train all weights")
    """Rank of LoRA adapters, which are merged at the end."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    bf16: bool = False
    """Compute in bfloat16, with weights in float32."""
    device: str = option("auto", kept=False)
    """auto, cpu, cuda or mps."""
    save_steps: Count = option(200, kept=False)
    """Optimizer steps between checkpoints; the newest two are kept."""
    log_steps: Count = option(10, kept=False)
    """Optimizer steps between lines of the log."""
    seed: int = 0
    """Random seed; the same seed gives the same training."""
    resume: bool = option(False, kept=False)
    """Resume --out from its newest checkpoint."""


@dataclass(frozen=True, kw_only=True)
class SFTSettings(TrainingSettings, TraceOptions, PolicyOptions):
    """Fine-tune a policy on chosen traces, with the loss on the completions alone."""

    topic: ClassVar[str] = "Data"

    traces: Path = option(positional=True, names="data")
    """JSONL of traces: problem, and text, steps, or thinking and response; or a run's results.jsonl."""
    max_length: Count | None = option(None, shown="the model's context")
    """Tokens of prompt and completion; longer traces are omitted."""
    packing: bool = False
    """Put several traces into one row; they do not attend to each other."""
    eval: Path | None = option(None, names="data")
    """Traces to evaluate the loss on."""
    eval_steps: Count = 100
    """Optimizer steps between evaluations."""


RL_DEFAULTS: dict[str, Any] = {
    "beta": 0.5, "group": 8, "kl": 0.001, "loss_type": "grpo", "lr": 1e-6, "epochs": 1.0, "batch_size": 64, "accumulate": 1,
    "max_prompt": None, "max_tokens": 512,
}  # fmt: skip
"""Values of the options that a preset may set, where neither the command line nor the preset gives one."""

PRESETS: dict[str, dict[str, Any]] = {
    # arXiv 2506.18896, as its repository has it; the problems of a step are not published
    "paper": {
        "beta": 0.75, "group": 6, "kl": 0.001, "loss_type": "grpo", "lr": 1e-6, "epochs": 1.0, "batch_size": 6, "accumulate": 8,
        "max_prompt": 512, "max_tokens": 16384,
    },
}  # fmt: skip


def _preset(name: str) -> Any:
    """An option that a preset may set: its field is None until then."""
    others = [f"; {preset}: {values[name]:g}" for preset, values in PRESETS.items() if values[name] != RL_DEFAULTS[name]]
    default = RL_DEFAULTS[name]
    return option(None, shown=f"{'none' if default is None else default}{''.join(others)}")


@dataclass(frozen=True, kw_only=True)
class RLSettings(TrainingSettings, PolicyOptions, ScorerOptions, StepOptions, DataOptions):
    """Improve a policy by GRPO on r = (1 - beta) * r_out + beta * r_hat: right answers, and a reward model's r_hat."""

    topic: ClassVar[str] = "Reinforcement"

    preset: Literal["paper"] | None = None
    """Settings of arXiv 2506.18896; options that are given override them."""
    beta: Share = _preset("beta")
    """Weight of the reward model; 0 is GRPO on right answers alone."""
    group: Annotated[int, Ge(2)] = _preset("group")
    """Completions of a problem, whose rewards are compared with each other."""
    kl: NotNegative = _preset("kl")
    """Coefficient of the KL divergence from the initial policy."""
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo"] = _preset("loss_type")
    """Loss, by TRL's name for it."""
    lr: Positive = _preset("lr")
    """Peak learning rate."""
    epochs: Positive = _preset("epochs")
    """Passes over the problems."""
    batch_size: Count = _preset("batch_size")
    """Completions in a device's batch."""
    accumulate: Count = _preset("accumulate")
    """Batches per optimizer step."""
    max_prompt: Count | None = _preset("max_prompt")
    """Tokens of a prompt; problems with longer ones are omitted."""
    max_tokens: Count = _preset("max_tokens")
    """New tokens of a completion, at most."""
    temperature: Positive = 1.0
    """Sampling temperature of completions."""
    benchmark: str = "arith:train"
    """Problems to learn on, with answers: a name that `tts benchmarks` lists, a file, a hub id, or file.py:name."""
    eval_benchmark: str | None = None
    """Held-out problems, with answers."""
    eval_split: str | None = option(None, shown="the benchmark's own, else test")
    """Data set split of the held-out problems."""
    eval_limit: Count | None = option(None, shown="100 of arith, all of others")
    """Number of held-out problems, each solved once."""
    eval_steps: Count = 10
    """Optimizer steps between evaluations."""
    window: Natural = 4
    """Evaluations that the guard against reward hacking looks at, 2 or more; 0 turns it off."""
    rollouts: Literal["transformers", "engine", "vllm", "vllm-server"] = "transformers"
    """What draws completions: TRL with transformers, tts's own engine (one device), vLLM in this process, or vLLM's server."""
    vllm_url: str | None = option(None, shown="http://0.0.0.0:8000", kept=False)
    """Address of the server for --rollouts vllm-server (`trl vllm-serve`)."""
    vllm_memory: Annotated[float, Gt(0), Le(1)] = 0.3
    """Share of the GPU's memory that --rollouts vllm takes."""
    log_steps: Count = option(1, kept=False)
    """Optimizer steps between lines of the log."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, default in {**RL_DEFAULTS, **PRESETS.get(self.preset or "", {})}.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)  # the one way to fill in fields of a frozen dataclass
        if self.window == 1:
            raise InputError("--window is 1; it should be 0 or at least 2")


@dataclass(frozen=True, kw_only=True)
class TrainPRMSettings(TrainingSettings, TraceOptions):
    """Train a process reward model on labelled traces."""

    topic: ClassVar[str] = "Reward model"

    data: Path = option(positional=True, names="data")
    """JSONL from `tts label`, or public step labels in the columns of TRL, Math-Shepherd or PRM800K."""
    model: str = option(POLICY, names="model")
    """Policy whose body it starts from; with --head step also a PRM to train further."""
    head: Literal["step", "trace", "both"] = "step"
    """step rates steps, and the trace as one step; trace rates the trace alone; both has a head for each."""
    loss: Literal["mse", "ce"] = "mse"
    """mse, as in the paper, or ce: cross-entropy, for hard labels and soft ones."""
    lambda_step: NotNegative = 1.0
    """Weight of the mean loss of a trace's steps."""
    lambda_final: NotNegative = 1.0
    """Weight of the loss of the trace as a whole."""
    over: Part = "all"
    """Part of a trajectory that is shown and rated."""
    max_length: Count | None = option(None, shown="the model's context")
    """Tokens of a trace; longer ones are omitted."""
    packing: bool = False
    """Pack a batch into one row instead of padding it."""
    eval: Path | None = option(None, names="data")
    """Labelled traces to evaluate on; several of one problem, with `correct`, give best-of-n."""
    eval_steps: Count | None = option(None, shown="--save-steps")
    """Optimizer steps between evaluations, each with a checkpoint."""
    metric: Literal["loss", "step_auc", "calibration_error", "best_of_n"] = "loss"
    """Metric by which the best checkpoint is kept, with --eval."""
    patience: Count | None = option(None, shown="never stop early")
    """Evaluations without improvement after which training stops."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eval is None and (given := [name for name in ("eval_steps", "patience") if getattr(self, name) is not None]):
            raise InputError(f"--{given[0].replace('_', '-')} needs data to evaluate on; name it with --eval")
        needed = {"step": self.lambda_step + self.lambda_final, "trace": self.lambda_final}
        if not needed.get(self.head, self.lambda_step * self.lambda_final):
            raise InputError(
                f"--lambda-step {self.lambda_step:g} --lambda-final {self.lambda_final:g} leave --head {self.head} untrained"
            )


@dataclass(frozen=True, kw_only=True)
class SelectSettings(TraceOptions, ScorerOptions, PolicyOptions, ResumeOptions):
    """Choose traces of a pool to train on: rank them by reward, filter, and keep the best."""

    topic: ClassVar[str] = "Selection"

    pool: Path = option(positional=True, names="data")
    """JSONL of traces, with rewards from `tts score` or without; or a run's results.jsonl."""
    out: Path = option(short="-o", kept=False)
    """File to write."""
    by: str = "r_hat"
    """Ranking: r_hat, response (its steps alone), random, all, or a numeric field such as stats.tokens."""
    top: str | None = option(None, shown="all")
    """Number of traces to keep, or a share of the pool such as 10%."""
    threshold: float | None = None
    """Lowest score to keep."""
    per_problem: Count | None = None
    """Traces of one problem to keep, at most."""
    dedup: bool = False
    """Keep only the best of traces that differ in white space alone."""
    scorer: str | None = option(None, shown="the pool's rewards, else arith-prm", names="model")  # type: ignore[assignment]
    """Score the pool first, with this reward model or another scorer that `tts scorers` lists."""
    model: str = option(POLICY, names="model")
    """Policy, for scorers that ask it."""
    seed: Natural = 0
    """Random seed of --by random."""
    plot: Path | None = option(None, kept=False)
    """PNG to write: histograms of scores and lengths."""
    resume: bool = option(False, kept=False)
    """Resume a scoring that was stopped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        number, share = re.compile(r"0*[1-9]\d{0,14}"), re.compile(r"\d{1,3}(\.\d{1,9})?%")
        if self.top is not None and not (
            number.fullmatch(self.top) or (share.fullmatch(self.top) and 0 < float(self.top[:-1]) <= 100)
        ):
            raise InputError(
                f"--top is {self.top}; it should be a number of traces, such as 1000, or a share of the pool, such as 10%"
            )
        if self.plot is not None and self.plot.suffix.lower() != ".png":
            raise InputError(f"--plot is {self.plot}; it should be a file name that ends in .png")
        if self.by in ("random", "all"):
            if self.threshold is not None:
                raise InputError(f"--by {self.by} gives no scores for --threshold to compare; omit that, or use --top")
            if self.scorer is not None:
                raise InputError(f"--by {self.by} needs no rewards; omit --scorer")
        if self.by == "response" and (self.aggregate == "final" or self.score_over == "think"):
            raise InputError("--by response needs rewards of the response's steps; omit --aggregate and --score-over")
        about: dict[str, Any] = {
            "scorer_format": None,
            "scorer_engine": "transformers",
            "scorer_url": [],
            "scorer_args": {},
            "score_over": None,
        }
        if self.scorer is None and (given := [name for name, none in about.items() if getattr(self, name) != none]):
            raise InputError(f"--{given[0].removesuffix('s').replace('_', '-')} is about a scorer; name it with --scorer")
