"""Problems to token ids and back, the same for every engine that takes token ids."""

from __future__ import annotations

from collections.abc import Sequence

from tts.errors import InputError
from tts.models import chat, checkpoints
from tts.types import Problem


class Prompter:
    """A model's tokenizer and chat template. A base model without a template gets the problem's text as it is."""

    def __init__(self, model: str, system: str | None = None) -> None:
        self.tokenizer, self.system = checkpoints.load_tokenizer(model), system
        self._decode = checkpoints.decoder(self.tokenizer)

    async def tells_steps(self) -> bool:
        """Every engine that takes token ids here does."""
        return True

    def encode(self, problem: Problem) -> tuple[int, ...]:
        """The prompt's token ids, ending where the assistant begins to speak."""
        if not self.tokenizer.chat_template:
            text = problem.prompt if self.system is None else f"{self.system}\n\n{problem.prompt}"
            return tuple(self.tokenizer.encode(text))
        turns = [chat.Turn("system", [self.system])] if self.system is not None else []
        turns.append(chat.Turn("user", [problem.prompt]))
        return tuple(chat.encode(self.tokenizer, chat.render(self.tokenizer, turns, open_turn=True)).ids)

    def check_stops(self, stops: Sequence[str]) -> None:
        """Raise InputError for a stop string that this model's text can never hold."""
        for stop in stops:
            back = self.decode(self.tokenizer.encode(stop, add_special_tokens=False))
            if not stop or stop not in back:
                held = f"comes back as {back!r}" if back else "is left out of the text"
                raise InputError(
                    f"the stop string {stop!r} can never appear: in this model's tokens it {held}; use one of ordinary text"
                )

    def tokenize(self, text: str) -> tuple[int, ...]:
        """Token ids of text that is put behind a prefix; nothing is added to it."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        return self._decode(list(token_ids))
