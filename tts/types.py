"""The nouns: problems, candidates, what generates them, what scores them, and how a strategy ranks them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Protocol

from annotated_types import Ge

from tts.delimiters import DEFAULT, Delimiter, delimiter
from tts.trajectory import Trajectory, parse

if TYPE_CHECKING:
    from tts.solving.generator import Generator

Count = Annotated[int, Ge(1)]
"""The type of an option that counts something: at least 1."""

Finish = Literal["step", "stop", "length"]
"""Why generation paused: at a step boundary, at the end of the text, or out of tokens."""

Part = Literal["all", "think", "response"]
"""A part of a trajectory: the thinking steps, the response steps, or both."""

Aggregate = Literal["mean", "min", "prod", "last", "sum-logit", "final"]
"""How the rewards of many steps become one number; `final` passes over them."""

Fate = Literal["kept", "returned", "pruned"]
"""What a search did with a branch: continued it, returned the solution that it ends, or dropped it."""

REPEATS = "repeats a sibling"
"""Why a branch was pruned that has the same tokens as an earlier child of its parent."""

NO_INSTRUCTION = "none"
"""What --instruction is where a problem is to be asked without one."""

CERTAIN = 1e-9
"""How close to 0 or 1 a probability may come in a logit."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A question, and its reference answer where one is known. `id` is unique within a benchmark."""

    id: str
    prompt: str
    """The question alone: what reward models read, and what results.jsonl keeps."""
    answer: str | None = None
    grader: str = "math"
    """How answers are compared: a name of `tts.grading.rules`, or a function of your own as file.py:function."""
    instruction: str = ""
    """How the policy is to answer, such as "put your final answer within \\boxed{}"; empty for no instruction."""
    step_delimiter: str = field(default=DEFAULT, repr=False)
    """What ends a step of its solutions, as --step-delimiter names it (`tts.delimiters`)."""

    @property
    def ends(self) -> Delimiter:
        """The rule that `step_delimiter` names."""
        return delimiter(self.step_delimiter)

    @property
    def full_prompt(self) -> str:
        """What the policy is asked, before a chat template: the question, and the instruction after a blank line."""
        return f"{self.prompt}\n\n{self.instruction}" if self.instruction else self.prompt

    def instructed(self, instruction: str | None) -> Problem:
        """The problem under another instruction, as --instruction names it: a text, NO_INSTRUCTION, or None for its own."""
        if instruction is None:
            return self
        return replace(self, instruction="" if instruction == NO_INSTRUCTION else instruction)

    def divided(self, step_delimiter: str | None) -> Problem:
        """The problem with another delimiter of steps, or with its own where None is given."""
        return self if step_delimiter is None else replace(self, step_delimiter=step_delimiter)


@dataclass(frozen=True, slots=True)
class Step:
    """Generated tokens up to a pause. `text` is what `token_ids` decode to, as `Engine.decode` does it."""

    text: str
    token_ids: tuple[int, ...]
    finish: Finish
    logprobs: tuple[float, ...] | None = None
    """Of each token under the model itself, before temperature and truncation; where `Sampling.logprobs` asked for it."""
    top: tuple[Mapping[str, float], ...] | None = field(default=None, compare=False)
    """For each token, log-probabilities of the likeliest tokens in its place, by their text; where `Sampling.top` asked for it
    and the engine reports them."""
    confidence: tuple[float, ...] | None = field(default=None, compare=False)
    """For each token, minus the mean log-probability of the likeliest tokens in its place (DeepConf, arXiv 2508.15260): it is
    high where the model leaves no alternatives. Where `Sampling.confidence` asked for it and the engine reports it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A partial or complete solution. Immutable: `candidate + step` branches without copying."""

    problem: Problem
    steps: tuple[Step, ...] = ()

    def __add__(self, step: Step) -> Candidate:
        return replace(self, steps=(*self.steps, step))

    @property
    def text(self) -> str:
        return "".join(step.text for step in self.steps)

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(token for step in self.steps for token in step.token_ids)

    @property
    def finish(self) -> Finish:
        """`step` while there is more to come."""
        return self.steps[-1].finish if self.steps else "step"

    @property
    def done(self) -> bool:
        return self.finish != "step"

    def cut_off(self) -> Candidate:
        """The same, ended as `length`."""
        if not self.steps:
            return self + Step("", (), "length")
        return replace(self, steps=(*self.steps[:-1], replace(self.steps[-1], finish="length")))

    @property
    def trajectory(self) -> Trajectory:
        """The same text as thinking steps and response steps, which is what a reward model rates."""
        return parse(self.text, self.problem.ends, in_progress=not self.done)

    def part(self, over: Part) -> tuple[str, ...]:
        """The steps of a part of the trajectory."""
        thinking, response = self.trajectory
        return (*(thinking if over != "response" else ()), *(response if over != "think" else ()))


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw tokens. Sibling i of a request draws from seed + i, whatever else shares its batch."""

    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    max_tokens: int = 2048
    """New tokens at the most; the engine stops earlier where its context ends."""
    stop: tuple[str, ...] = ()
    """Strings that end a step. The text keeps them."""
    seed: int = 0
    logprobs: bool = False
    top: int = 0
    """How many of the likeliest tokens to report at each position, by an engine that can."""
    confidence: int = 0
    """How many of the likeliest tokens `Step.confidence` is the mean of, by an engine that can; 0 for none."""
    top_k: int = 0
    """Draw from so many of the likeliest tokens; 0 for all."""
    min_p: float = 0.0
    """Draw no token that is less likely than this share of the likeliest token's probability."""
    repetition_penalty: float = 1.0
    """Divides the logits of tokens in the prefix or drawn since where they are positive, and multiplies them elsewhere."""
    presence_penalty: float = 0.0
    """Taken off the logits of tokens that the candidate has already."""
    frequency_penalty: float = 0.0
    """Taken off a token's logit as often as the candidate has it already."""
    min_tokens: int = 0
    """New tokens before the text may end by itself; stop strings end it before that."""
    written: int = 0
    """Tokens at the end of the prefix that are the candidate's own. The presence and frequency penalties count them."""

    @property
    def likeliest(self) -> int:
        """How many of the likeliest tokens an engine has to look at for `top` and `confidence`."""
        return max(self.top, self.confidence)

    @property
    def penalized(self) -> bool:
        """Whether what is drawn depends on the tokens so far by more than the model."""
        return self.repetition_penalty != 1 or bool(self.presence_penalty or self.frequency_penalty)

    @property
    def raw(self) -> bool:
        """Whether tokens are drawn from the model's own distribution, apart from its tail, or greedily."""
        return self.temperature in (0, 1) and not self.penalized and not self.min_tokens

    def parameters(self, *, neutral: bool = False) -> dict[str, float]:
        """The fields of PARAMETERS that are not at their neutral values, by name: what a request to a server says.

        With `neutral`, all of them, for a server that replaces what a request leaves out by values of its own. A `top_k` of all
        tokens is -1 there.
        """
        values: dict[str, float] = {name: getattr(self, name) for name in PARAMETERS}
        if neutral:
            return {**values, "top_k": self.top_k or -1}
        return {name: value for name, value in values.items() if value != getattr(_NEUTRAL, name)}


PARAMETERS = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "min_tokens",
)  # fmt: skip
"""The fields of Sampling that shape the distribution, under the names that they have in the APIs of vLLM and SGLang."""

_NEUTRAL = Sampling()


@dataclass(frozen=True, slots=True)
class Generation:
    """An engine's answer to one request, with its part of the bill."""

    steps: tuple[Step, ...]
    prompt_tokens: int
    """Length of the prefix, counted once for all siblings."""
    cached_tokens: int = 0
    """How much of the prefix did not have to be computed."""
    generated_tokens: int | None = None
    """What the backend counted, where the steps' token ids do not say it (a server that speaks text)."""
    waited: float = 0.0
    """Seconds until the engine took the request up, where it tells."""


class Engine(Protocol):
    """A backend that continues token sequences.

    A class of your own subclasses this and is called as `cls(model, **options)`: `model` is what --model names, its keyword
    parameters are its options (--engine-arg name=value).
    """

    requires: ClassVar[str | None] = None
    """The package that it runs on, if not one of this project's own; also the extra of tts-toolkit that installs it."""
    address: ClassVar[Literal["none", "optional", "required"]] = "none"
    """Whether it can or must be a server's client, at `--url`; `url` is then a keyword parameter of its class."""

    context: int | None = None
    """Tokens that prefix and continuation may have together; None where that is not known."""
    served: str | None = None
    """What a server says that it runs; None where there is no server, or it has not been asked yet."""
    exact: bool = False
    """Whether equal requests get equal answers to the last bit, whatever else is computed beside them."""

    def check_sampling(self, sampling: Sampling) -> None:
        """Raise InputError if it cannot draw tokens like that. Called before the first problem is solved."""
        return

    @property
    def notices(self) -> Sequence[str]:
        """What it does otherwise than asked, because a server cannot do it, in sentences that people read."""
        return ()

    async def check(self) -> None:
        """Find out whether it can be used, before the first problem. Raises InputError if not."""
        return

    def for_problem(self, problem: Problem) -> Engine:
        """The engine that one problem is solved on: one of several servers, for instance."""
        return self

    async def tells_steps(self) -> bool:
        """Whether it stops at stop strings and reports that, which growing solutions step by step needs."""
        return True

    def encode(self, problem: Problem) -> tuple[int, ...]:
        """Token ids of `problem.full_prompt`, chat template applied."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids. Special tokens are left out, unless they mark the thinking (`tts.trajectory.TAGS`)."""
        ...

    def tokenize(self, text: str) -> tuple[int, ...]:
        """Token ids of text that is put behind a prefix; nothing is added to it."""
        ...

    async def generate(self, prefix: Sequence[int], n: int, sampling: Sampling) -> Generation:
        """Continue `prefix` n ways, each to a stop string, the end of the text, or `max_tokens`."""
        ...

    async def close(self) -> None:
        """Release processes and connections; the engine is not used again."""
        return


def counts_final(alpha: float, how: Aggregate) -> bool:
    """Whether a reward's total depends on its final reward, which costs another reading of the trace."""
    return alpha != 0 or how == "final"


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a trace that was read by itself, with the problem before it, as the trace is longer than the model's context.

    Ranges are half-open and count from 0, over the steps that the reward has, or over the trace's tokens.
    """

    of: Literal["steps", "whole", "tokens"]
    """What was read: the rewards of steps, the reward of the trace as a whole (`final`), or the probabilities of tokens."""
    begin: int
    """The first step or token shown."""
    rated: int
    """The first one that was rated in this window; those before it are its context."""
    end: int
    """The end of both ranges."""
    tokens: int
    """Tokens read, with the problem."""
    omitted: int = 0
    """Tokens cut off the beginning of its only step, which is longer than the context."""


@dataclass(frozen=True)
class Reward:
    """What a reward model says of one candidate (arXiv 2506.18896).

    `steps` has one reward, in [0, 1] for most models, for every thinking step and then every response step of
    `candidate.trajectory`, or is empty where single steps are not rated; `final` rates the trajectory as a whole, where the
    model can. A step is None where the model gave no verdict on it: an unknown reward is not a number.
    """

    steps: tuple[float | None, ...]
    final: float | None = None
    tokens: int = 0
    """Tokens that the reward model read."""
    alpha: float = 1.0
    """Weight of `final` in `total`."""
    how: Aggregate = "mean"
    """How `total` aggregates the steps."""
    final_missing: bool = False
    """Whether the model was asked for `final` and gave no verdict; False where it gives none to any trace."""
    windows: tuple[Window, ...] = ()
    """How a trace was read that is longer than the model's context; empty where it was read in one piece."""

    @property
    def known(self) -> tuple[float, ...]:
        """The rewards of the steps that have a verdict."""
        return tuple(step for step in self.steps if step is not None) if None in self.steps else self.steps  # type: ignore

    @property
    def missing(self) -> int:
        """Verdicts that the model was asked for and did not give."""
        return self.steps.count(None) + self.final_missing

    @property
    def rated(self) -> bool:
        """Whether anything that `total` is made of is known. A candidate that is not rated ranks below those that are."""
        if self.known and self.how != "final":
            return True
        steps, final = self._parts
        return (bool(steps) and self.how != "final") or (final is not None and counts_final(self.alpha, self.how))

    def aggregate(self, how: Aggregate) -> float:
        """The known step rewards as one number; 0 when there are none. `sum-logit` needs them in [0, 1], else ValueError."""
        return _aggregate(self.known, how)

    @cached_property
    def total(self) -> float:
        """r_hat: the aggregated step rewards + alpha * final; where `final` is the aggregate, the final reward alone.

        It is made of what is known. If all steps are without a verdict, the trace counts as one step, rated by `final`; if
        `final` is, by the mean of the steps. It is 0 for a reward that is not `rated`.
        """
        steps, final = self._parts
        weight = 1.0 if self.how == "final" else self.alpha
        return _aggregate(steps, self.how) + weight * (final or 0.0)

    @cached_property
    def share(self) -> float | None:
        """`total` as a share of the largest value possible, if it is made of probabilities.

        None for log-probabilities, lengths, implicit rewards and sums of logits, of which 0 is not the smallest value and none
        the largest; 0 for a reward that is not `rated`.
        """
        steps, final = self._parts
        weight = 1.0 if self.how == "final" else max(0.0, self.alpha)
        most = (bool(steps) and self.how != "final") + (weight if final is not None else 0.0)
        if self.how == "sum-logit" or not 0 <= self.total <= most:
            return None
        return self.total / most if most else 0.0

    @property
    def _parts(self) -> tuple[tuple[float, ...], float | None]:
        """The step rewards and the final reward; one stands for the other where that was asked for and is not known."""
        steps, final = self.known, self.final
        if steps and self.final_missing:
            final = sum(steps) / len(steps)
        elif self.steps and not steps and final is not None:
            steps = (final,)
        return steps, final


def _aggregate(steps: Sequence[float], how: Aggregate) -> float:
    if not steps or how == "final":
        return 0.0
    match how:
        case "mean":
            return sum(steps) / len(steps)
        case "min":
            return min(steps)
        case "prod":
            return math.prod(steps)
        case "last":
            return steps[-1]
        case "sum-logit":
            if not all(0 <= step <= 1 for step in steps):
                raise ValueError(f"sum-logit needs step rewards between 0 and 1, got {min(steps)} to {max(steps)}")
            clipped = (min(max(step, CERTAIN), 1 - CERTAIN) for step in steps)
            return sum(math.log(step / (1 - step)) for step in clipped)


class Scorer(Protocol):
    """A process reward model, or anything else that rates candidates.

    A class of your own subclasses this and defines `score`; its fields, or the keyword parameters of its `__init__`, are its
    options (--scorer-arg name=value). Parameters named `model`, `system`, `prompt_template` and `chat_template_args` get those
    of the run's policy.
    """

    by_step: bool = True
    """Whether its rewards have one entry per step; False where it rates a trace as a whole only."""
    compares: bool = False
    """Whether a candidate's reward depends on the other candidates in the same call, equal ones included."""
    logprobs: bool = False
    """Whether it reads `Step.logprobs`, which the engine then reports."""
    exact: bool = False
    """Whether equal candidates get equal rewards to the last bit, whatever else is computed beside them."""
    over: Part = "all"
    """The part of a trajectory whose steps its rewards are of."""

    @property
    def notices(self) -> Sequence[str]:
        """What it does otherwise than asked, because a server cannot do it, in sentences that people read."""
        return ()

    async def check(self) -> None:
        """Find out whether it can be used, before the first problem. Raises InputError if not."""
        return

    async def score(self, candidates: Sequence[Candidate]) -> list[Reward]:
        """One reward per candidate, in order; higher is better. Its steps are those of the part `over`, or none at all."""
        ...

    async def close(self) -> None:
        """Release processes and connections; the scorer is not used again."""
        return


@dataclass(slots=True)
class Usage:
    """A bill, in tokens and calls."""

    generated: int = 0
    prompt: int = 0
    cached: int = 0
    """The part of `prompt` that the engine did not have to compute."""
    scored: int = 0
    calls: int = 0
    """Requests to the engine."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.generated + other.generated,
            self.prompt + other.prompt,
            self.cached + other.cached,
            self.scored + other.scored,
            self.calls + other.calls,
        )


@dataclass(frozen=True, slots=True)
class Branch:
    """A node of a search tree: the text of one draw, and what the search did with it."""

    parent: int | None
    """Index in the tree; None for a first step. Parents come before their children."""
    round: int
    text: str
    tokens: int
    finish: Finish
    reward: float | None
    """r_hat of the solution up to here; None where it was not scored."""
    fate: Fate
    reason: str = ""
    """Why it was pruned; empty for other fates."""

    @property
    def outcome(self) -> str:
        """The fate as people and files read it: `kept`, `returned`, or `pruned: ` and the reason."""
        return f"{self.fate}: {self.reason}" if self.reason else self.fate


class Preference(NamedTuple):
    """The rule by which one of several candidates is chosen: the largest preference wins.

    A finished candidate is preferred to one that was cut off, then one with a verdict of the reward model to one without, then
    the higher score, then the earlier candidate. Choices, tables and curves over N all follow it.
    """

    finished: bool
    rated: bool
    score: float
    place: int
    """Minus the index of the candidate."""

    @classmethod
    def of(cls, finish: Finish, score: float, index: int, *, rated: bool = True) -> Preference:
        """The preference for candidate number `index`."""
        return cls(finish == "stop", rated, score, -index)


@dataclass(frozen=True)
class Result:
    """Every candidate a strategy ended with, and how it ranks them."""

    candidates: Sequence[Candidate]
    rewards: Sequence[Reward] = ()
    """One per candidate, or none where no reward model was asked."""
    scores: Sequence[float] = ()
    """The strategy's own ranking; the rewards' totals where it gives none."""
    tree: Sequence[Branch] = ()
    """How a search came to its candidates."""
    choice: int = field(init=False)
    """Index of the chosen candidate, by `Preference`."""

    def __post_init__(self) -> None:
        scores = tuple(self.scores) or tuple(reward.total for reward in self.rewards) or (0.0,) * len(self.candidates)
        lengths = {len(self.candidates), len(scores), len(self.rewards) or len(scores)}
        if not self.candidates or len(lengths) > 1:
            raise ValueError(
                f"a Result pairs every candidate with a score and, where there are any, a reward;"
                f" got {len(self.candidates)} candidates, {len(self.rewards)} rewards, {len(scores)} scores"
            )
        rated = [reward.rated for reward in self.rewards] or [True] * len(scores)
        finishes = [candidate.finish for candidate in self.candidates]
        choice = max(range(len(scores)), key=lambda i: Preference.of(finishes[i], scores[i], i, rated=rated[i]))
        for name, value in (("scores", scores), ("choice", choice)):
            object.__setattr__(self, name, value)  # the one way to fill in fields of a frozen dataclass

    @property
    def best(self) -> Candidate:
        return self.candidates[self.choice]


class Strategy(ABC):
    """A way to spend compute on one problem. Subclass as a frozen dataclass: its fields are its options."""

    uses_scorer: ClassVar[bool] = True
    """False saves loading a reward model."""

    @abstractmethod
    async def solve(self, problem: Problem, generator: Generator, scorer: Scorer) -> Result:
        """Spend the compute; return every candidate."""

    def check_sampling(self, sampling: Sampling) -> None:
        """Raise InputError if options have no effect, or no sense, with a run's sampling. Called before anything is loaded."""
        return

    def check_scorer(self, scorer: Scorer) -> None:
        """Raise InputError if the strategy cannot use a scorer's rewards. Called before the first problem is solved."""
        return

    async def solve_after_pilot(self, problem: Problem, generator: Generator, scorer: Scorer, pilot: Result) -> Result:
        """Solve a problem for which `pilot` holds independent samples with their rewards; compute-optimal calls this.

        By default the problem is solved as without a pilot. The samples then join the candidates of a search (a result with a
        tree) that ranks by total reward; the result of any other strategy stays as it is.
        """
        found = await self.solve(problem, generator, scorer)
        if not found.tree or tuple(found.scores) != tuple(reward.total for reward in found.rewards):
            return found
        return Result([*found.candidates, *pilot.candidates], [*found.rewards, *pilot.rewards], tree=found.tree)

    @classmethod
    def options_for(cls, n: int, pilot: int) -> dict[str, Any]:
        """Options with which this strategy spends about n samples on a problem, `pilot` of which have been drawn already.

        By default the option `n`, for a strategy that has one; other strategies run with their own defaults.
        """
        return {"n": n} if "n" in getattr(cls, "__dataclass_fields__", {}) else {}
