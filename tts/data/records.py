"""Records: the row of a problem in results.jsonl, and its parts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, PlainSerializer, TypeAdapter

from tts.data.files import ESCAPE
from tts.delimiters import DEFAULT
from tts.grading.pool import Verdict
from tts.types import Aggregate, Branch, Finish, Problem, Result, Reward, Usage, Window

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One candidate as a run folder keeps it."""

    steps: tuple[str, ...]
    """Text of each step as it was drawn."""
    tokens: tuple[int, ...]
    """Number of tokens of each step."""
    finish: Finish
    score: float
    """The strategy's score, by which it chose."""
    rewards: tuple[float | None, ...] | None
    """One reward per thinking step, then one per response step, of the part that was scored, None for a step without a verdict;
    None without a reward model."""
    final: float | None
    """Reward of the whole trace; None if the reward model gives none."""
    answer: str | None
    """Final answer; None if there is none."""
    group: int | None
    """Equal for equivalent answers to the same problem; None without an answer."""
    correct: bool | None
    """Whether the answer is right; None if the problem has no reference answer."""
    final_missing: bool = False
    """Whether the reward model was asked for `final` and gave no verdict."""
    windows: tuple[Window, ...] = ()
    """How the reward model read a candidate that is longer than its context; empty where it read it in one piece."""

    @property
    def text(self) -> str:
        """The whole candidate."""
        return "".join(self.steps)

    def reward(self, alpha: float = 1.0, how: Aggregate = "mean") -> Reward:
        """The reward with a run's alpha and aggregate; without a reward model, one that is not rated."""
        return Reward(
            self.rewards or (), self.final, alpha=alpha, how=how, final_missing=self.final_missing, windows=self.windows
        )


def _read_branch(value: Any) -> Any:
    """In files a branch has one `fate`, with the reason after a colon (`pruned: repeats a sibling`)."""
    if isinstance(value, dict) and isinstance(fate := value.get("fate"), str):
        kind, _, reason = fate.partition(": ")
        return {**value, "fate": kind, "reason": reason}
    return value


def _write_branch(branch: Branch) -> dict[str, Any]:
    row = asdict(branch) | {"fate": branch.outcome}
    del row["reason"]
    return row


SavedBranch = Annotated[Branch, BeforeValidator(_read_branch), PlainSerializer(_write_branch)]


@dataclass(frozen=True, slots=True)
class Record:
    """The row of one problem in results.jsonl. A problem that failed has an error and no candidates."""

    id: str
    problem: str
    """Text of the problem."""
    answer: str | None
    """Reference answer; None if there is none."""
    candidates: tuple[Attempt, ...]
    choice: int | None
    """Index of the chosen candidate; None if the problem failed."""
    correct: bool | None
    """Whether the chosen answer is right; None if the problem failed or has no reference answer."""
    usage: Usage
    """Tokens and calls. `cached` is 0 here: it depends on timing and is kept in timings.jsonl."""
    error: str | None = None
    """Type and message of the exception; None if the problem was solved."""
    tree: tuple[SavedBranch, ...] = ()
    """Search tree; empty for strategies that do not search."""
    instruction: str = ""
    """What the policy was told besides the problem; empty for nothing."""
    step_delimiter: str = DEFAULT
    """What ends a step of its solutions."""

    @classmethod
    def solved(cls, problem: Problem, result: Result, verdicts: Sequence[Verdict], usage: Usage) -> Record:
        """The row of a solved problem; `verdicts` has one verdict per candidate."""
        rewards: Sequence[Reward | None] = result.rewards or [None] * len(result.candidates)
        attempts = tuple(
            Attempt(
                steps=tuple(step.text for step in candidate.steps),
                tokens=tuple(len(step.token_ids) for step in candidate.steps),
                finish=candidate.finish,
                score=score,
                rewards=reward.steps if reward else None,
                final=reward.final if reward else None,
                final_missing=reward is not None and reward.final_missing,
                windows=reward.windows if reward else (),
                answer=verdict.answer,
                group=verdict.group,
                correct=verdict.correct,
            )
            for candidate, reward, score, verdict in zip(result.candidates, rewards, result.scores, verdicts, strict=True)
        )
        return cls(
            problem.id,
            problem.prompt,
            problem.answer,
            attempts,
            result.choice,
            verdicts[result.choice].correct,
            replace(usage, cached=0),
            tree=tuple(result.tree),
            instruction=problem.instruction,
            step_delimiter=problem.step_delimiter,
        )

    @classmethod
    def failed(cls, problem: Problem, error: Exception, usage: Usage) -> Record:
        """The row of a problem that raised an exception."""
        message = f"{type(error).__name__}: {error}".strip()
        usage = replace(usage, cached=0)
        return cls(
            problem.id, problem.prompt, problem.answer, (), None, None, usage, message,
            instruction=problem.instruction, step_delimiter=problem.step_delimiter,
        )  # fmt: skip

    @property
    def outcome(self) -> Outcome:
        """The row without its candidates."""
        return Outcome(self.id, self.problem, self.correct, self.usage, self.error)

    @classmethod
    def from_json(cls, line: str | bytes) -> Record:
        """Parse a line of results.jsonl. Raises ValueError if it is not a row."""
        return parse_as(cls, line)

    def to_line(self) -> bytes:
        """The row as it stands in results.jsonl, without the line end."""
        return self.to_json().encode(errors=ESCAPE)

    def to_json(self) -> str:
        """The row as one line of JSON."""
        row = _adapter(Record).dump_python(self)
        del row["usage"]["cached"]
        for attempt in row["candidates"]:
            if not attempt["windows"]:
                del attempt["windows"]
        for name in ("tree", "instruction"):
            if not row[name]:
                del row[name]
        if row["step_delimiter"] == DEFAULT:
            del row["step_delimiter"]
        return json.dumps(row, ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A row without its candidates, which are nearly all of its bytes: what counting and comparing needs."""

    id: str
    problem: str
    correct: bool | None
    usage: Usage
    error: str | None = None

    @classmethod
    def from_json(cls, line: bytes) -> Outcome:
        """Parse a line of results.jsonl, but for its candidates. Raises ValueError if it is not a row."""
        # in a JSON text, quotes are escaped, so these bytes are not part of one; a row in another form is parsed as a whole
        begin, end = line.find(b', "candidates": ['), line.rfind(b'], "choice": ')
        return parse_as(cls, line[:begin] + line[end + 1 :] if 0 < begin < end else line)


@cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def parse_as(cls: type[T], line: str | bytes) -> T:
    """A line of JSON as an instance of a dataclass. Raises ValueError if it is not one."""
    adapter: TypeAdapter[T] = _adapter(cls)  # type: ignore[arg-type]  # classes can be hashed
    try:
        return adapter.validate_json(line)  # twice as fast as json.loads, but it refuses halves of surrogate pairs
    except ValueError:
        return adapter.validate_python(json.loads(line))
