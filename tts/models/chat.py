"""Text to token ids, as a model's template or a reward model's format has it, with nothing in a text able to forge a token.

What is encoded is a sequence of parts: texts, control tokens, and marks. A mark stands between texts without leaving a token.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from enum import Enum
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from tts.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase


class Mark(Enum):
    """What may stand between texts without leaving a token."""

    READ = "the position of the last token before this is wanted"
    CUT = "what is before and behind is tokenised apart"


class Template(str):
    """Text in which control tokens are meant: a template's own, not a user's or a model's."""

    __slots__ = ()


Fragment = str | int | Mark
"""A text, a control token's id, or a mark."""


class Turn(NamedTuple):
    """One message; its parts are joined as they are."""

    role: str
    parts: Sequence[Fragment]


class Encoded(NamedTuple):
    """Token ids, and the position of each READ."""

    ids: list[int]
    positions: list[int]


_PLACE = "\ue000{}\ue001"  # private-use characters: what a template does to a message must not depend on its text
_PLACED = re.compile("\ue000(\\d+)\ue001")


def render(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], *, open_turn: bool) -> list[Fragment]:
    """A conversation in the model's chat template; `open_turn` ends it where the assistant begins to speak."""
    if not tokenizer.chat_template:
        raise InputError(f"{tokenizer.name_or_path} has no chat template, and a conversation was to be encoded")
    messages = [{"role": turn.role, "content": _PLACE.format(i)} for i, turn in enumerate(turns)]
    rendered = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_turn))
    parts: list[Fragment] = []
    for i, literal_or_index in enumerate(_PLACED.split(rendered)):
        if i % 2 == 0:
            parts.append(Template(literal_or_index))
        else:
            parts += turns[int(literal_or_index)].parts
    return parts


def encode(tokenizer: PreTrainedTokenizerBase, parts: Sequence[Fragment]) -> Encoded:
    """Token ids of parts, and where they are to be read.

    Texts that follow each other are tokenised together, as the official code of a model tokenises a string that it has put
    together, except that a control token spelt out in a text (`<extra_0>`, `<|im_end|>`) is cut in two, so that it stays text.
    """
    control = _control(tokenizer, {part for part in parts if isinstance(part, int)})
    pieces, reads = [""], list[tuple[int, int]]()
    for part in parts:
        if part is Mark.CUT:
            pieces.append("")
        elif part is Mark.READ:
            reads.append((len(pieces) - 1, len(pieces[-1])))
        elif isinstance(part, int):
            pieces[-1] += str(tokenizer.convert_ids_to_tokens(part))
        elif isinstance(part, Template):
            pieces[-1] += part
        elif isinstance(part, str):
            head, *cut_off = _cut(part, control)
            pieces[-1] += head
            pieces += cut_off
    wanted: dict[int, list[int]] = {}
    for where, offset in reads:
        wanted.setdefault(where, []).append(offset)
    encoded = Encoded([], [])
    for number, piece in enumerate(pieces):
        before = len(encoded.ids)
        if offsets := wanted.get(number):
            tokens = _plain(tokenizer).encode(piece, add_special_tokens=False)
            starts = [start for start, _ in tokens.offsets]
            encoded.ids.extend(tokens.ids)
            encoded.positions.extend(before + bisect_left(starts, offset) - 1 for offset in offsets)
        elif piece:
            encoded.ids.extend(tokenizer.encode(piece, add_special_tokens=False))
    return encoded


_controls: WeakKeyDictionary[PreTrainedTokenizerBase, dict[frozenset[int], re.Pattern[str]]] = WeakKeyDictionary()
_plains: WeakKeyDictionary[PreTrainedTokenizerBase, Tokenizer] = WeakKeyDictionary()


def _control(tokenizer: PreTrainedTokenizerBase, placed: set[int]) -> re.Pattern[str]:
    """Every control token's spelling, those of `placed` among them."""
    known = _controls.setdefault(tokenizer, {})
    if (pattern := known.get(frozenset(placed))) is None:
        # a tokenizer may name some of its control tokens only, and list the others as added ones
        spelt = {*tokenizer.all_special_tokens, *tokenizer.convert_ids_to_tokens(sorted(placed))}
        spelt |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        pattern = re.compile("|".join(map(re.escape, sorted(spelt, key=len, reverse=True))) or r"(?!)")
        known[frozenset(placed)] = pattern
    return pattern


def _plain(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The same tokenizer without what comes after tokenising: a post-processor may trim white space off the offsets."""
    if (plain := _plains.get(tokenizer)) is None:
        from tokenizers import Tokenizer, processors

        if not tokenizer.is_fast:
            raise InputError(f"{tokenizer.name_or_path} has no tokenizer.json, which telling the steps of a trace apart needs")
        plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        plain.post_processor = processors.ByteLevel(trim_offsets=False)
        _plains[tokenizer] = plain
    return plain


def _cut(text: str, control: re.Pattern[str]) -> list[str]:
    """`text` in pieces, parted after the first character of every control token in it."""
    cuts = [0, *(match.start() + 1 for match in control.finditer(text)), len(text)]
    return [text[a:b] for a, b in pairwise(cuts)]
