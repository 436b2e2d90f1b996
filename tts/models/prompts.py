"""Problems to token ids and back, shared by all engines that take token ids."""

from __future__ import annotations

import inspect
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from tts.errors import InputError
from tts.models import chat, checkpoints
from tts.models.chat import Fragment
from tts.models.templates import fragments, read_prompt_template
from tts.types import Problem

LOG = logging.getLogger(__name__)


class Prompter:
    """A model's tokenizer, and what the model is shown of a problem.

    That is the problem's full prompt (the question and its instruction) in the model's chat template. A model without a
    chat template, as a base model, is shown the full prompt as it is, or the text of `prompt_template`. Control tokens that
    are spelt out in a problem stay text.

    Args:
        model: A bundled model's name, a folder or a hub id.
        system: The system prompt, if any.
        prompt_template: The whole prompt, in place of a chat template: a text with {problem}, and {instruction} if the
            instruction is to be shown; or a file with such a text.
        chat_template_args: Arguments of the chat template, such as {"enable_thinking": False}.

    Raises:
        InputError: The tokenizer or the template cannot be loaded, or an argument has no meaning for this model.
    """

    def __init__(
        self,
        model: str,
        system: str | None = None,
        prompt_template: str | None = None,
        chat_template_args: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer, self.system = checkpoints.load_tokenizer(model), system
        self.template = None if prompt_template is None else read_prompt_template(prompt_template)
        self.chat_args = check_chat_args(chat_template_args)
        self._decode = checkpoints.decoder(self.tokenizer)
        self.skips_special = not checkpoints.kept_tags(self.tokenizer)
        """Whether a backend can omit special tokens from the text in which it looks for stop strings, as `decode` does."""
        if self.template is not None:
            _check_alone(system, self.chat_args)
        elif self.chat_args:
            _check_used(model, str(self.tokenizer.chat_template or ""), tuple(self.chat_args))

    async def tells_steps(self) -> bool:
        """Return True: all engines that take token ids report why they stopped."""
        return True

    @property
    def in_chat(self) -> bool:
        """Whether problems are put into a chat template."""
        return self.template is None and bool(self.tokenizer.chat_template)

    def encode(self, problem: Problem) -> tuple[int, ...]:
        """Return the prompt's token ids, up to where the assistant's message begins."""
        if self.in_chat:
            turns = [chat.Turn("system", [self.system])] if self.system is not None else []
            turns.append(chat.Turn("user", [problem.full_prompt]))
            return tuple(chat.encode(self.tokenizer, chat.render(self.tokenizer, turns, open_turn=True, **self.chat_args)).ids)
        text: list[Fragment] = [problem.full_prompt] if self.system is None else [f"{self.system}\n\n{problem.full_prompt}"]
        if self.template is not None:
            text = fragments(self.template, problem=problem.prompt, instruction=problem.instruction)
        ids = chat.encode(self.tokenizer, text).ids
        first = [token for token in self.tokenizer.encode("")[:1] if token == self.tokenizer.bos_token_id]
        return tuple(ids if ids[:1] == first else first + ids)

    def check_stops(self, stops: Sequence[str]) -> None:
        """Raise InputError for a stop string that can never appear in this model's decoded text."""
        for stop in stops:
            back = self.decode(self.tokenizer.encode(stop, add_special_tokens=False))
            if not stop or stop not in back:
                becomes = f"is decoded as {back!r}" if back else "is omitted from the decoded text"
                raise InputError(
                    f"the stop string {stop!r} can never appear: with this model's tokenizer it {becomes}; use ordinary text"
                )

    def tokenize(self, text: str) -> tuple[int, ...]:
        """Return the token ids of text that is appended to a prefix, without special tokens."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=False, verbose=False))  # long texts are read in windows

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens other than thinking tags."""
        return self._decode(list(token_ids))

    def spelled(self, likeliest: Iterable[tuple[int, float]]) -> dict[str, float]:
        """Return token ids and their log-probabilities by the text of each token alone; tokens of equal text count together."""
        found: dict[str, float] = {}
        for token, logprob in likeliest:
            text = self.decode([token])
            found[text] = math.log(math.exp(found[text]) + math.exp(logprob)) if text in found else logprob
        return found


def check_chat_args(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the arguments of a chat template. Raises InputError for one that only the caller of the template can set."""
    from transformers import PreTrainedTokenizerBase

    taken = set(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) | {"messages"}
    if reserved := [name for name in given or {} if name in taken]:
        raise InputError(f"--chat-template-arg {reserved[0]} is set by tts itself; omit it")
    return dict(given or {})


def _check_alone(system: str | None, chat_args: Mapping[str, Any]) -> None:
    """Raise InputError where a prompt template is given together with what belongs to a chat template."""
    given = "--system" if system is not None else "--chat-template-arg" if chat_args else None
    if given is not None:
        raise InputError(
            f"{given} is for the model's chat template, which --prompt-template replaces; omit it, or write its text into"
            " the prompt template"
        )


@lru_cache  # once for each model, though engine and scorer may both ask
def _check_used(model: str, template: str, names: tuple[str, ...]) -> None:
    """Log a warning for arguments that the model's chat template never mentions. Raises InputError if it has none."""
    if not template:
        raise InputError(f"--chat-template-arg {names[0]} has no meaning for {model!r}, which has no chat template; omit it")
    if unused := [name for name in names if not re.search(rf"\b{name}\b", template)]:
        LOG.warning("tts: the chat template of %s does not use %s, which changes nothing", model, " and ".join(unused))
