"""What servers answer, checked at the border and brought into one form: legal and common shapes are read, all else refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tts.engines.http import BusyError, ServerError
from tts.types import Finish

ENDED = frozenset(("stop", "eos", "eos_token", "end_turn", "stop_sequence", "end", "complete", "finished", "tool_calls"))
CUT = frozenset(("length", "max_tokens", "model_length", "max_output_tokens"))
"""Finish reasons, in lower case. All others, and none, mean that the choice failed."""


def _part_text(part: Any, kinds: tuple[str, ...]) -> Iterator[str]:
    """The texts of some kinds in a part of a message, which may have parts of its own."""
    if isinstance(part, dict) and part.get("type", "text") in kinds:
        for name in ("text", "thinking", "reasoning"):
            yield from [value] if isinstance(value := part.get(name), str) else _texts(value, ("text", *kinds))


def _texts(parts: Any, kinds: tuple[str, ...]) -> Iterator[str]:
    for part in parts if isinstance(parts, list) else ():
        yield from _part_text(part, kinds)


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Message(_Lenient):
    content: str | list[Any] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None

    @property
    def thinking(self) -> str:
        listed = "".join(_texts(self.content, ("thinking", "reasoning")))
        return self.reasoning_content or self.reasoning or listed

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(_texts(self.content, ("text", "output_text")))


Number = Annotated[float | None, BeforeValidator(lambda value: value if isinstance(value, int | float) else None)]


class _Place(_Lenient):
    token: str
    logprob: Number = None
    top_logprobs: list[_Place] | None = None


class _Logprobs(_Lenient):
    """Of a completion, lists over tokens; of a chat completion, `content`."""

    token_logprobs: list[Number] | None = None
    top_logprobs: list[dict[str, Number] | None] | None = None
    content: list[_Place] | None = None

    @property
    def drawn(self) -> list[float | None]:
        return [place.logprob for place in self.content] if self.content else self.token_logprobs or []

    @property
    def likeliest(self) -> list[dict[str, float]]:
        """For each position the likeliest tokens; none for a position without any."""
        found: list[Any] = self.top_logprobs or []
        if self.content:
            found = [{one.token: one.logprob for one in place.top_logprobs or ()} for place in self.content]
        return [{token: value for token, value in (place or {}).items() if value is not None} for place in found]


class _Choice(_Lenient):
    index: int | None = None
    text: str | None = None
    message: _Message | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    matched_stop: int | str | list[Any] | None = None
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None


Tokens = Annotated[int | None, BeforeValidator(lambda value: value if isinstance(value, int) and value >= 0 else None)]


class _Details(_Lenient):
    cached_tokens: Tokens = None


class _Usage(_Lenient):
    prompt_tokens: Tokens = None
    completion_tokens: Tokens = None
    prompt_tokens_details: _Details | None = None


class _Answer(_Lenient):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


class Choice(NamedTuple):
    """A choice that did not fail."""

    text: str
    thinking: str
    finish: Finish
    """stop also where a stop string was found: see `matched`."""
    matched: str | None
    """The stop string that was found; None for the end of the text, or where the server does not say."""
    tells: bool
    """Whether the server says what it stopped at."""
    token_ids: tuple[int, ...] | None
    logprobs: tuple[float, ...]
    """Of the drawn tokens, as far as the server gives them."""
    likeliest: tuple[dict[str, float], ...]

    @property
    def key(self) -> tuple[str, str]:
        """What two equal samples have in common."""
        return self.thinking, self.text


class Answer(NamedTuple):
    """The answer to one request."""

    choices: tuple[Choice, ...]
    failed: tuple[str, ...]
    """Why each of the other choices failed, in the server's words."""
    prompt_tokens: int | None
    cached_tokens: int
    generated_tokens: int | None


def reader(where: str, *, chat: bool) -> Callable[[Any], Answer]:
    """A function that reads the answers of an address. It raises BusyError for one without choices, else ServerError."""

    def read(answer: Any) -> Answer:
        if isinstance(answer, dict) and not answer.get("choices"):
            raise BusyError(f"{where} answered without choices")
        try:
            checked = _Answer.model_validate(answer)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"])) or "the answer"
            raise ServerError(f"{where} did not answer as an OpenAI-compatible server: {place}: {first['msg']}") from None
        chosen, failed = [], []
        for choice in sorted(checked.choices, key=lambda choice: choice.index or 0):
            if (choice.message if chat else choice.text) is None:
                noun = "message" if chat else "text"
                raise ServerError(f"{where} returned a choice without {noun}; is it an OpenAI-compatible server?")
            if (reason := _failure(choice)) is not None:
                failed.append(reason)
            else:
                chosen.append(_choice(choice))
        usage = checked.usage or _Usage()
        cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else None
        return Answer(tuple(chosen), tuple(failed), usage.prompt_tokens, cached or 0, usage.completion_tokens)

    return read


def _failure(choice: _Choice) -> str | None:
    """Why a choice is no solution; None if it is one."""
    message, reason = choice.message, choice.finish_reason
    if message is not None and message.refusal:
        return f"refusal: {message.refusal}"
    if reason is None or reason.lower() not in ENDED | CUT:
        return f"finish reason {reason or 'null'}"
    if message is not None and not message.text and not message.thinking and reason.lower() in ENDED:
        return "no content"
    return None


def _choice(choice: _Choice) -> Choice:
    message, places = choice.message, choice.logprobs or _Logprobs()
    drawn = places.drawn
    known = all(value is not None and math.isfinite(value) for value in drawn)
    matched = choice.stop_reason if choice.stop_reason is not None else choice.matched_stop
    return Choice(
        text=message.text if message is not None else choice.text or "",
        thinking=message.thinking if message is not None else "",
        finish="length" if str(choice.finish_reason).lower() in CUT else "stop",
        matched=matched if isinstance(matched, str) else None,
        tells=bool(choice.model_fields_set & {"stop_reason", "matched_stop"}),
        token_ids=tuple(choice.token_ids) if choice.token_ids is not None else None,
        logprobs=tuple(value for value in drawn if value is not None) if known else (),
        likeliest=tuple(places.likeliest),
    )
