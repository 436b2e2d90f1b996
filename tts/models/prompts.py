"""Problems to token ids and back, shared by all engines that take token ids."""

from __future__ import annotations

from collections.abc import Sequence

from tts.errors import InputError
from tts.models import chat, checkpoints
from tts.types import Problem


class Prompter:
    """A model's tokenizer and chat template. Without a template, as for a base model, the prompt is the problem's text.

    Args:
        model: A bundled model's name, a folder or a hub id.
        system: The system prompt, if any.

    Raises:
        InputError: The tokenizer cannot be loaded.
    """

    def __init__(self, model: str, system: str | None = None) -> None:
        self.tokenizer, self.system = checkpoints.load_tokenizer(model), system
        self._decode = checkpoints.decoder(self.tokenizer)
        self.skips_special = not checkpoints.kept_tags(self.tokenizer)
        """Whether a backend can omit special tokens from the text in which it looks for stop strings, as `decode` does."""

    async def tells_steps(self) -> bool:
        """Return True: all engines that take token ids report why they stopped."""
        return True

    def encode(self, problem: Problem) -> tuple[int, ...]:
        """Return the prompt's token ids, up to where the assistant's message begins."""
        if not self.tokenizer.chat_template:
            text = problem.prompt if self.system is None else f"{self.system}\n\n{problem.prompt}"
            return tuple(self.tokenizer.encode(text))
        turns = [chat.Turn("system", [self.system])] if self.system is not None else []
        turns.append(chat.Turn("user", [problem.prompt]))
        return tuple(chat.encode(self.tokenizer, chat.render(self.tokenizer, turns, open_turn=True)).ids)

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
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens other than thinking tags."""
        return self._decode(list(token_ids))
