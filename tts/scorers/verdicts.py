"""A language model's verdict on a question: the labels of a scale, read at once or after the model has thought."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from tts.errors import InputError
from tts.solving.generator import cut_opener, derive_seed
from tts.trajectory import is_thinking, response_of
from tts.types import Engine, Problem, Sampling, Step

YES_NO = "yes/no"
"""The scale of two labels."""
LARGEST = 100
"""Highest end of a scale of numbers."""
LABEL_TOKENS = 8
"""Tokens drawn to read a verdict: a label may have several, and a model may write "Verdict: **" in front of it."""
TOP = 20
"""Likeliest tokens that engines are asked for."""
WRITING = Sampling(temperature=0.6, top_p=0.95)
"""How a judge thinks; models that think repeat themselves when they are greedy (arXiv 2501.12948)."""
CUE = "\n\nVerdict:"
"""What is put behind a text without a verdict, to get one."""

_LEAD = r"(?:verdict|answer|rating|score|grade|judge?ment)\b\W*(?:(?:is|of)\b\W*)?"


class Scale:
    """The labels that a verdict may have, and the value of each in [0, 1].

    Args:
        name: "yes/no", or the ends of a scale of whole numbers, as "1-5" or "0-10": the lowest is 0, the highest 1.

    Raises:
        InputError: It is neither.
    """

    def __init__(self, name: str = YES_NO) -> None:
        self.name = name
        self.values: Mapping[str, float] = {"yes": 1.0, "no": 0.0}
        self.numeric = name != YES_NO
        if self.numeric:
            ends = re.fullmatch(r"(\d+)-(\d+)", str(name))
            self.low, self.high = (int(ends[1]), int(ends[2])) if ends else (0, 0)
            if not self.low < self.high <= LARGEST:
                raise InputError(
                    f"the scale is {name!r}; expected {YES_NO}, or two numbers up to {LARGEST} such as 1-5 or 0-10"
                )
            self.values = {str(i): (i - self.low) / (self.high - self.low) for i in range(self.low, self.high + 1)}

    def begins(self, text: str) -> tuple[str | None, bool]:
        """The label with which `text` begins, after signs and words as in "**Verdict:** ", if any; and whether that is certain.

        A text that ends with "1" may go on to be a "10", where the scale has that.
        """
        found = self._first.match(text)
        if found is None:
            return None, False
        label = found[1].lower()
        open_end = found.end(1) == len(text) and any(other != label and other.startswith(label) for other in self.values)
        return label, not open_end

    def find(self, text: str) -> tuple[str, int] | None:
        """The label that a longer text gives as its verdict, and where it stands; None if there is none.

        It begins the text, or follows the last "Verdict:", "the rating is" and the like, or ends the text.
        """
        if (found := self._first.match(text)) is None:
            *_, found = None, *self._named.finditer(text)
            found = found or self._last.search(text)
        return (found[1].lower(), found.start(1)) if found else None

    @cached_property
    def _first(self) -> re.Pattern[str]:
        return re.compile(rf"\W*(?:(?:the\s+)?{_LEAD})?{self._label}", re.IGNORECASE)

    @cached_property
    def _named(self) -> re.Pattern[str]:
        return re.compile(rf"\b(?:{_LEAD}|boxed\W*){self._label}", re.IGNORECASE)

    @cached_property
    def _last(self) -> re.Pattern[str]:
        return re.compile(rf"{self._label}\W*$", re.IGNORECASE)

    @property
    def _label(self) -> str:
        if not self.numeric:
            return r"\b(yes|no)\b"
        of = rf"(?:\s*/\s*{self.high}|\s+out\s+of\s+{self.high})?"  # 7/10
        return rf"(?<![\d.,/-])({'|'.join(sorted(self.values, key=len, reverse=True))}){of}(?![\d/]|[.,]\d)"


class Verdict(NamedTuple):
    """What a judge says to one question."""

    value: float | None
    """In [0, 1]; None if it gave no verdict."""
    tokens: int
    """Tokens read and written for it."""


class Examiner:
    """Asks a language model questions whose answers are on a scale.

    A value is the expectation over the scale's labels, whose probabilities are normalised to a sum of 1. They are those of the
    likeliest tokens, where the engine reports them, else of the tokens drawn. If it reports none, labels count as often as they
    are drawn. A question has a verdict if at least half of the draws begin with a label.

    A model that does not answer at once is given tokens to write, and its verdict is read after its thinking. One that does not
    finish its thinking gives no verdict.

    Args:
        engine: What runs the model.
        scale: The labels.
        think: Tokens that the model may write before its verdict, where it does not give it at once.
        critique: Whether it writes before every verdict.
        draws: Verdicts drawn for each question.
        seed: Random seed.
    """

    def __init__(
        self, engine: Engine, scale: Scale, *, think: int = 4096, critique: bool = False, draws: int = 4, seed: int = 0
    ) -> None:
        self.engine, self.scale, self.think, self.critique, self.draws, self.seed = engine, scale, think, critique, draws, seed

    async def ask(self, prompt: str) -> Verdict:
        """The verdict of the model on a question."""
        prefix = self.engine.encode(Problem("judge", prompt))
        opener = cut_opener(self.engine, prefix)[1]  # a chat template may open the thinking
        if opener is None and not self.critique:
            at_once = await self._draw(prefix)
            if at_once.value is not None or not self.think:
                return at_once
            written = await self._write(prefix, "")
            return written._replace(tokens=written.tokens + at_once.tokens)
        return await self._write(prefix, opener.text if opener else "")

    async def _draw(self, prefix: Sequence[int]) -> Verdict:
        """The verdict that stands next."""
        seed = derive_seed(self.seed, "judge", *prefix)
        sampling = Sampling(max_tokens=LABEL_TOKENS, seed=seed, logprobs=True, top=TOP)
        drawn = (await self.engine.generate(prefix, self.draws, sampling)).steps
        return Verdict(self.expectation(drawn), len(prefix) + sum(len(step.token_ids) for step in drawn))

    async def _write(self, prefix: tuple[int, ...], opened: str) -> Verdict:
        """The verdict after what the model writes first; `opened` is the tag with which the prompt opens its thinking."""
        sampling = Sampling(
            WRITING.temperature, WRITING.top_p, self.think, seed=derive_seed(self.seed, "judge", "think", *prefix)
        )
        continues = await self.engine.tells_steps()
        drawn = (await self.engine.generate(prefix, 1 if continues else self.draws, sampling)).steps
        spent = len(prefix) + sum(len(step.token_ids) for step in drawn)
        texts = [opened + step.text for step in drawn]
        if not continues:  # as a server's chat: the verdict cannot be drawn again from where it stands
            said = [self.scale.find(response_of(text)) for text in texts if not is_thinking(text)]
            values = [self.scale.values[found[0]] for found in said if found]
            return Verdict(sum(values) / len(values) if 2 * len(values) >= len(drawn) else None, spent)
        [step], [text] = drawn, texts
        if is_thinking(text):
            return Verdict(None, spent)
        place = self._place(text)
        if place is not None:
            verdict = await self._draw((*prefix, *self._up_to(step.token_ids, place - len(opened))))
            if verdict.value is not None:
                return verdict._replace(tokens=spent + verdict.tokens)
            spent += verdict.tokens
        tail = step.token_ids[:-1] if step.finish == "stop" else step.token_ids  # without the token that ends a text
        verdict = await self._draw((*prefix, *tail, *self.engine.tokenize(CUE)))
        return verdict._replace(tokens=spent + verdict.tokens)

    def _place(self, text: str) -> int | None:
        """Where the label of a text's verdict stands, after its thinking."""
        response = response_of(text)
        found, start = self.scale.find(response), text.rfind(response)
        return start + found[1] if found and start >= 0 else None

    def _up_to(self, tokens: Sequence[int], end: int) -> Sequence[int]:
        """The tokens whose text ends at `end` characters or before."""
        return tokens[: bisect_right(range(len(tokens)), end, key=lambda i: len(self.engine.decode(tokens[: i + 1])))]

    def expectation(self, drawn: Sequence[Step]) -> float | None:
        """The expected value of verdicts drawn from one place; None if less than half of them are on the scale."""
        labels = [self.scale.begins(step.text)[0] for step in drawn]
        known = [label for label in labels if label is not None]
        if not known or 2 * len(known) < len(drawn):
            return None
        if any(step.logprobs is None for step in drawn):
            return sum(self.scale.values[label] for label in known) / len(known)
        mass = self._mass(drawn)
        total = sum(mass.values())
        if not total:
            return None
        if len(mass) == 1 and not self.scale.numeric and not all(step.top for step in drawn):
            [(label, p)] = mass.items()  # the label that was never drawn gets the rest
            return p if label == "yes" else 1 - p
        return sum(p * self.scale.values[label] for label, p in mass.items()) / total

    def _mass(self, drawn: Sequence[Step]) -> dict[str, float]:
        """The probability of each label, over all spellings that were drawn or are among the likeliest tokens."""
        after: dict[tuple[int, ...], dict[str, float]] = {}  # tokens so far: what the text may be with one more, and its p
        for step in drawn:
            text, p = "", 1.0
            for i, logprob in enumerate(step.logprobs or ()):
                last = i + 1 == len(step.token_ids)
                longer = step.text if last else self.engine.decode(step.token_ids[: i + 1])
                likeliest = step.top[i] if step.top and i < len(step.top) else {}
                spelled = {text + word: p * math.exp(q) for word, q in likeliest.items()} or {longer: p * math.exp(logprob)}
                after[step.token_ids[:i]] = after.get(step.token_ids[:i], {}) | spelled
                text, p = longer, p * math.exp(logprob)
                if self.scale.begins(text)[1]:
                    break
        expanded = {self.engine.decode(tokens) for tokens in after if tokens}
        mass: dict[str, float] = {}
        for choices in after.values():
            for text, p in choices.items():
                label, certain = self.scale.begins(text)
                if label is not None and (certain or text not in expanded):
                    mass[label] = mass.get(label, 0.0) + p
        return mass
