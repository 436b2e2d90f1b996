"""Settings of runs, sweeps and scoring, composed of groups of options that other commands share.

Every field is an option of the command line, a keyword in Python, and a row of the reference; `kept` fields are what a run's
results depend on (`tts.options`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le

from tts.data.traces import FIELDS
from tts.delimiters import DEFAULT, delimiter
from tts.demo import POLICY, PRM
from tts.engines import load_engine
from tts.errors import InputError
from tts.evals.benchmarks import Benchmark, load_benchmark
from tts.models.recommended import FILE, recommended
from tts.models.templates import has, read_prompt_template
from tts.options import (
    Addresses,
    Arguments,
    Count,
    Natural,
    NotNegative,
    Option,
    Positive,
    Proportion,
    Settings,
    Share,
    convert,
    option,
    options_of,
)
from tts.scorers import load_scorer
from tts.types import NO_INSTRUCTION, PARAMETERS, Aggregate, Engine, Part, Sampling, Scorer, counts_final

Method = Literal["auto", "bytes", "statistics"]
Penalty = Annotated[float, Ge(-2), Le(2)]
"""The range of OpenAI's API, which servers check."""


@dataclass(frozen=True, kw_only=True)
class PolicyOptions(Settings):
    """The model that solves problems, and how it is asked."""

    topic: ClassVar[str] = "Policy"

    model: str = option(POLICY, names="model")
    """Policy: a bundled name, a folder or a hub id."""
    instruction: str | None = option(None, shown="the data's own")
    """How to answer, in words that follow each problem; none for no instruction."""
    system: str | None = option(None, shown="the chat template's")
    """System prompt."""
    prompt_template: str | None = option(None, shown="the model's chat template")
    """File with the whole prompt for a base model, such as worked examples and then {problem} and {instruction}."""
    chat_template_args: Arguments = option(factory=dict, flag="--chat-template-arg")
    """Argument of the chat template, such as enable_thinking=false; repeatable."""

    def __post_init__(self) -> None:
        super().__post_init__()
        settled: dict[str, str] = {}
        if self.instruction is not None:
            settled["instruction"] = self.instruction.strip() or NO_INSTRUCTION
        if self.prompt_template is not None:  # its text, so that a run is known by what its policy was shown
            settled["prompt_template"] = read_prompt_template(self.prompt_template)
            shown = has(settled["prompt_template"], "instruction")
            if not shown and settled.setdefault("instruction", NO_INSTRUCTION) != NO_INSTRUCTION:
                raise InputError(
                    "--instruction has no place in --prompt-template; add {instruction} to the template, or omit it"
                )
        for name, value in settled.items():
            object.__setattr__(self, name, value)  # the one way to set a field of a frozen dataclass

    @property
    def files(self) -> str:
        """The model whose files are on this machine or the hub."""
        return self.model

    @property
    def prompting(self) -> dict[str, Any]:
        """The arguments of `tts.models.prompts.Prompter` that are not its defaults, besides the model."""
        given = {name: getattr(self, name) for name in ("system", "prompt_template", "chat_template_args")}
        return {name: value for name, value in given.items() if value not in (None, {})}


@dataclass(frozen=True, kw_only=True)
class EngineOptions(PolicyOptions):
    """The policy and what runs it."""

    topic: ClassVar[str] = "Policy"

    engine: str = option("transformers", names="plugin")
    """Engine that runs the policy: a name that `tts engines` lists, or file.py:Class."""
    engine_args: Arguments = option(factory=dict, flag="--engine-arg")
    """Option of the engine, such as gpu_memory_utilization=0.9; repeatable."""
    url: Addresses = option(factory=list, kept=False)
    """Address of the server, for engines that are a client of one; repeatable for several servers of one model."""
    adapter: str | None = option(None, names="model")
    """LoRA adapter of the policy: a folder or a hub id."""

    @property
    def files(self) -> str:
        return str(self.engine_args.get("tokenizer") or self.model)  # the model behind a server's name for it

    def load_engine(self) -> Engine:
        """Start the engine. Raises InputError."""
        adapter = {"adapter": self.adapter} if self.adapter is not None else {}
        return load_engine(self.engine, self.model, url=self.url, options={**self.engine_args, **adapter, **self.prompting})


@dataclass(frozen=True, kw_only=True)
class ScorerOptions(Settings):
    """The reward model and how its rewards become one number."""

    topic: ClassVar[str] = "Reward model"

    scorer: str = option(PRM, names="model")
    """Reward model: a bundled name, a folder or a hub id; or another scorer that `tts scorers` lists, or file.py:Name."""
    scorer_format: str | None = option(None, shown="recognised by name or config", names="plugin")
    """How the reward model reads a trace: a name that `tts formats` lists, or file.py:NAME."""
    scorer_engine: str = "transformers"
    """What runs the reward model: transformers or vllm in this process, or server."""
    scorer_url: Addresses = option(factory=list, kept=False)
    """Address of vLLM's pooling server, for --scorer-engine server; repeatable for several servers of one model."""
    scorer_args: Arguments = option(factory=dict, flag="--scorer-arg")
    """Option of the scorer, such as dtype=bfloat16 or window=false; repeatable."""
    score_over: Part | None = option(None, shown="the model's own, else all")
    """Part of a trajectory that is rated."""
    alpha: float = 1.0
    """Weight of the final reward in r_hat = aggregate(step rewards) + alpha * final reward."""
    aggregate: Aggregate = "mean"
    """How step rewards become one number."""

    def load_scorer(self, *, policy: PolicyOptions | None = None, defaults: Mapping[str, Any] | None = None) -> Scorer:
        """Load the scorer; `policy` is for scorers that ask the policy, `defaults` for the scorer's own options."""
        policy = policy or PolicyOptions()
        return load_scorer(
            self.scorer, format=self.scorer_format, over=self.score_over, final=counts_final(self.alpha, self.aggregate),
            engine=self.scorer_engine, url=self.scorer_url, policy=policy.model, prompting=policy.prompting,
            options={**(defaults or {}), **self.scorer_args},
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StepOptions(Settings):
    """How solutions are split into steps."""

    topic: ClassVar[str] = "Steps"

    step_delimiter: str | None = option(None, shown="the trace's own, else blank-line")
    """What ends a step: blank-line, line, sentence, reasonflux (which is blank-line), or a string of your own, in which \\n
    stands for a line end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step_delimiter is not None:  # one name for each rule, so that equal runs have equal settings
            object.__setattr__(self, "step_delimiter", delimiter(self.step_delimiter).name)


@dataclass(frozen=True, kw_only=True)
class DataOptions(Settings):
    """The problems and how answers to them are compared."""

    topic: ClassVar[str] = "Problems"

    benchmark: str = "arith"
    """Problems: a name that `tts benchmarks` lists; a JSONL, CSV or Parquet file; a folder; a hub id; or file.py:name."""
    benchmark_args: Arguments = option(factory=dict, flag="--benchmark-arg")
    """Option of a benchmark that is a function, as name=value; repeatable."""
    question_field: str | None = option(None, shown="problem")
    """Field of the data with the question."""
    answer_field: str | None = option(None, shown="answer")
    """Field of the data with the reference answer."""
    id_field: str | None = option(None, shown="id")
    """Field of the data with the id."""
    split: str | None = option(None, shown="the benchmark's own, else test")
    """Data set split to load."""
    data_dir: str | None = None
    """Local copy of a data set that is on the hub."""
    grader: str | None = option(None, shown="the benchmark's own, else math", names="plugin")
    """How answers are compared: a name that `tts graders` lists, or file.py:function."""
    limit: Count | None = option(None, shown="100 of arith, all of others")
    """Number of problems, taken from the start."""

    def load_benchmark(self, **more: Any) -> Benchmark:
        """Read the problems. Raises InputError."""
        return load_benchmark(
            self.benchmark, self.limit, question_field=self.question_field, answer_field=self.answer_field,
            id_field=self.id_field, split=self.split, data_dir=self.data_dir, grader=self.grader, options=self.benchmark_args,
            **more,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(PolicyOptions):
    """How tokens are drawn.

    What is not given has a neutral value with every engine, or that of the model's generation_config.json, by choice. Either
    way the value stands in its field, and so in run.json.
    """

    topic: ClassVar[str] = "Sampling"

    seed: int = 0
    """Random seed; the same seed gives the same results."""
    temperature: NotNegative = option(None, otherwise=1.0)
    """Sampling temperature; 0 is greedy."""
    top_p: Proportion = option(None, otherwise=1.0)
    """Probability mass of nucleus sampling."""
    top_k: Natural = option(None, otherwise=0)
    """Number of the likeliest tokens to draw from; 0 for all."""
    min_p: Share = option(None, otherwise=0.0)
    """Smallest probability of a token that is drawn, as a share of the likeliest token's."""
    repetition_penalty: Positive = option(None, otherwise=1.0)
    """Factor against tokens that the prompt or the candidate has already; 1 for none."""
    presence_penalty: Penalty = option(None, otherwise=0.0)
    """Amount taken off the logit of a token that the candidate has already; 0 for none."""
    frequency_penalty: Penalty = option(None, otherwise=0.0)
    """Amount taken off the logit of a token for each time that the candidate has it already; 0 for none."""
    min_tokens: Natural = option(None, otherwise=0)
    """New tokens of a candidate before its text may end; text from --stop ends it before that."""
    max_tokens: Count = 2048
    """New tokens of a candidate, at most."""
    stop: list[str] = option(factory=list)
    """Text at which a solution ends, for base models: how the next example would begin, such as Problem:; repeatable."""
    generation_config: Literal["none", "model"] = "none"
    """Values of sampling options that are not given: none for neutral ones, or model for those of the model's
    generation_config.json."""

    def __post_init__(self) -> None:
        super().__post_init__()
        left = [o for o in options_of(type(self)) if o.otherwise is not None and getattr(self, o.name) is None]
        own = recommended(self.files) if left and self.generation_config == "model" else {}
        for o in left:
            value = convert(o, own[o.name], f"{FILE} of {self.files}: ") if o.name in own else o.otherwise
            object.__setattr__(self, o.name, value)  # the one way to set a field of a frozen dataclass
        if self.min_tokens > self.max_tokens:
            raise InputError(f"--min-tokens is {self.min_tokens}; --max-tokens, which is {self.max_tokens}, should be above it")

    @property
    def sampling(self) -> Sampling:
        shape = {name: getattr(self, name) for name in PARAMETERS}
        return Sampling(**shape, max_tokens=self.max_tokens, stop=tuple(self.stop))

    def note_recommended(self) -> None:
        """Log a warning, once, where the model's generation_config.json recommends values and neutral ones are used instead."""
        unused = {o.flag: value for o, value in self._passed_over() if value != o.otherwise}
        if unused and self.generation_config == "none":
            flags = " ".join(f"{flag} {value}" for flag, value in unused.items())
            _warn_once(f"{FILE} of {self.files} recommends {flags}, which is not used; give that, or --generation-config model")

    def _passed_over(self) -> Iterator[tuple[Option, Any]]:
        """Options that have their neutral value, with what the model recommends; not those without an effect on greedy text."""
        own = recommended(self.files, required=False)
        for o in options_of(type(self)):
            inert = self.temperature == 0 and o.name in ("top_p", "top_k", "min_p")
            if o.name in own and getattr(self, o.name) == o.otherwise and not inert:
                with suppress(InputError):  # a value that is none recommends nothing
                    yield o, convert(o, own[o.name])


@lru_cache  # once for each text, though a sweep has many runs
def _warn_once(text: str) -> None:
    logging.getLogger(__name__).warning("tts: %s", text)


@dataclass(frozen=True, kw_only=True)
class LimitOptions(Settings):
    """What a problem and a run may cost."""

    topic: ClassVar[str] = "Limits"

    budget: Count | None = option(None, shown="no limit")
    """Tokens to generate for a problem, at most."""
    run_budget: Count | None = option(None, shown="no limit")
    """Tokens to generate in the whole run, at most; which problems get them depends on the order."""
    seconds: Positive | None = option(None, shown="no limit")
    """Time for a problem, in seconds; then the best candidate so far is chosen."""


@dataclass(frozen=True, kw_only=True)
class ResumeOptions(Settings):
    """What may be different when an output is resumed."""

    topic: ClassVar[str] = "Resume"

    accept_changes: bool = option(False, kept=False)
    """Resume although data, a model or a plug-in file has changed since the start; the hashes of both versions are kept."""


@dataclass(frozen=True, kw_only=True)
class RunSettings(EngineOptions, ScorerOptions, StepOptions, DataOptions, SamplingOptions, LimitOptions, ResumeOptions):
    """A run: a benchmark solved with a strategy."""

    topic: ClassVar[str] = "Run"

    strategy: str = option("bon", names="plugin")
    """Strategy: a name that `tts strategies` lists, or file.py:Class. Its own options are flags, such as --n 16."""
    options: Arguments = option(factory=dict, cli=False)
    """The strategy's options."""
    step_delimiter: str = DEFAULT
    """What ends a step, for searches and reward models: blank-line, line, sentence, reasonflux (which is blank-line), or a
    string of your own, in which \\n stands for a line end."""
    shuffle: bool = option(False, topic="Problems")
    """Shuffle the problems, by --seed, before taking the first ones."""
    repeat: Count = option(1, topic="Problems")
    """Times to solve each problem; accuracy is the mean."""
    concurrency: Count = option(64, kept=False)
    """Problems under way at once; results do not depend on it."""
    out: Path | None = option(None, short="-o", shown="runs/TIME-STRATEGY-BENCHMARK", kept=False)
    """Run folder to create."""
    resume: Path | None = option(None, kept=False)
    """Run folder to resume, under the settings it was started with."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resume is not None and self.out is not None:
            raise InputError("--resume continues in its own folder; omit --out")


@dataclass(frozen=True, kw_only=True)
class TraceOptions(Settings):
    """A file of traces."""

    topic: ClassVar[str] = "Traces"

    fields: Arguments = option(factory=dict, flag="--field")
    """Name that the file has for a field of a trace, as in problem=question; repeatable."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [name for name in self.fields if name not in FIELDS]:
            raise InputError(f"--field {unknown[0]} is not a field of a trace; these are: {', '.join(FIELDS)}")

    @property
    def names(self) -> dict[str, str]:
        """Fields of `tts.data.traces.FIELDS` to what the file calls them."""
        return {name: str(value) for name, value in self.fields.items()}


@dataclass(frozen=True, kw_only=True)
class ScoreSettings(ScorerOptions, StepOptions, TraceOptions, PolicyOptions, ResumeOptions):
    """Score every trace of a file: id, step_rewards, final, total."""

    topic: ClassVar[str] = "Traces"

    traces: Path = option(positional=True, names="lines")
    """JSONL of traces: problem, and text, steps, or thinking and response; or a run's results.jsonl."""
    out: Path | None = option(None, short="-o", shown="standard output", kept=False)
    """File to write."""
    resume: bool = option(False, kept=False)
    """Continue an --out that was started under the same settings."""
    limit: Count | None = option(None, shown="all", kept=False)
    """Number of traces to score."""
    bare: bool = False
    """Write the rewards alone, without the trace's own fields."""
    model: str = option(POLICY, names="model")
    """Policy, for scorers that ask it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resume and self.out is None:
            raise InputError("--resume continues a file; name it with --out")
