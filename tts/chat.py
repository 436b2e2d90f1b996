"""Chat turns to token ids, exactly as the model's template has them, with nothing in a text able to forge a control token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from tts.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Turn(NamedTuple):
    """One message. Its parts are joined as they are; an int is a control token that stands between texts."""

    role: str
    parts: Sequence[str | int]


_MARK = "\ue000{}\ue001"  # private-use characters: what a template does to a message must not depend on its text
_MARKED = re.compile("\ue000(\\d+)\ue001")


def encode(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], *, open_turn: bool) -> list[int]:
    """Token ids of a conversation; `open_turn` ends it where the assistant begins to speak.

    Texts are tokenised together with the template around them, as if the template had been rendered with them, except
    that a control token spelt out in a text (`<extra_0>`, `<|im_end|>`) is cut in two, so that it stays text.
    """
    if not tokenizer.chat_template:
        raise InputError(f"{tokenizer.name_or_path} has no chat template, and a conversation was to be encoded")
    messages = [{"role": turn.role, "content": _MARK.format(i)} for i, turn in enumerate(turns)]
    rendered = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_turn))
    placed = {part for turn in turns for part in turn.parts if isinstance(part, int)}
    forgeable = {*tokenizer.all_special_tokens, *tokenizer.convert_ids_to_tokens(sorted(placed))}
    control = re.compile("|".join(map(re.escape, sorted(forgeable, key=len, reverse=True))) or r"(?!)")
    pieces = [""]
    for i, literal_or_index in enumerate(_MARKED.split(rendered)):
        if i % 2 == 0:
            pieces[-1] += literal_or_index
            continue
        for part in turns[int(literal_or_index)].parts:
            if isinstance(part, int):
                pieces[-1] += str(tokenizer.convert_ids_to_tokens(part))
            else:
                head, *rest = _cut(part, control)
                pieces[-1] += head
                pieces += rest
    return [token for piece in pieces if piece for token in tokenizer.encode(piece, add_special_tokens=False)]


def _cut(text: str, control: re.Pattern[str]) -> list[str]:
    """`text` in pieces, parted after the first character of every control token in it."""
    cuts = [0, *(match.start() + 1 for match in control.finditer(text)), len(text)]
    return [text[a:b] for a, b in pairwise(cuts)]
