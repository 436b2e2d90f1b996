"""Prompts to token ids, following a chat template or a reward model's format.

A prompt is a sequence of fragments: texts, ids of control tokens, and marks, which produce no token. Text from a user or a
model cannot forge a control token: one that is spelt out in a text is tokenised as ordinary text.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from enum import Enum
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from tts.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase


class Mark(Enum):
    """A fragment that produces no token."""

    READ = "return the position of the last token before this"
    CUT = "tokenise what comes before and what comes after separately"


class Template(str):
    """Text in which control tokens keep their meaning: the template's own text, as opposed to a user's or a model's."""

    __slots__ = ()


Fragment = str | int | Mark
"""One element of a prompt: a text, the id of a control token, or a mark."""


class Turn(NamedTuple):
    """One message of a conversation."""

    role: str
    """system, user or assistant."""
    content: Sequence[Fragment]
    """Fragments, joined without anything in between."""


class Encoded(NamedTuple):
    """An encoded prompt."""

    ids: list[int]
    positions: list[int]
    """For each READ, the index in `ids` of the last token before it."""


_PLACE = "\ue000{}\ue001"  # private-use characters stand in for a message, so that a template cannot act on its text
_PLACED = re.compile("\ue000(\\d+)\ue001")


def render(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], *, open_turn: bool, **arguments: Any) -> list[Fragment]:
    """Put a conversation into the model's chat template.

    Args:
        tokenizer: The model's tokenizer.
        turns: The messages.
        open_turn: Whether to end where the assistant's next message begins.
        **arguments: Arguments of the template, such as enable_thinking.

    Raises:
        InputError: The tokenizer has no chat template, or the template refuses the messages or an argument.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise InputError(f"the tokenizer of {tokenizer.name_or_path} has no chat template, which encoding a conversation needs")
    messages = [{"role": turn.role, "content": _PLACE.format(i)} for i, turn in enumerate(turns)]
    try:
        rendered = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_turn, **arguments))
    except (TemplateError, TypeError, ValueError) as error:
        raise InputError(f"the chat template of {tokenizer.name_or_path} failed: {error}") from error
    fragments: list[Fragment] = []
    for i, literal_or_index in enumerate(_PLACED.split(rendered)):
        if i % 2 == 0:
            fragments.append(Template(literal_or_index))
        else:
            fragments += turns[int(literal_or_index)].content
    return fragments


def encode(tokenizer: PreTrainedTokenizerBase, fragments: Sequence[Fragment]) -> Encoded:
    """Encode a prompt.

    Consecutive texts are tokenised together, as a model's official code tokenises a string that it has concatenated. The only
    exception is a control token that is spelt out in a text (`<extra_0>`, `<|im_end|>`): it is cut in two to remain text.

    Args:
        tokenizer: The model's tokenizer.
        fragments: The prompt. An int in it is the id of a control token.

    Raises:
        InputError: There is a READ, and the tokenizer is not a fast one.
    """
    control = _control(tokenizer, {fragment for fragment in fragments if isinstance(fragment, int)})
    strings, reads = [""], list[tuple[int, int]]()
    for fragment in fragments:
        if fragment is Mark.CUT:
            strings.append("")
        elif fragment is Mark.READ:
            reads.append((len(strings) - 1, len(strings[-1])))
        elif isinstance(fragment, int):
            strings[-1] += str(tokenizer.convert_ids_to_tokens(fragment))
        elif isinstance(fragment, Template):
            strings[-1] += fragment
        elif isinstance(fragment, str):
            head, *cut_off = _cut(fragment, control)
            strings[-1] += head
            strings += cut_off
    wanted: dict[int, list[int]] = {}
    for where, offset in reads:
        wanted.setdefault(where, []).append(offset)
    encoded = Encoded([], [])
    for number, string in enumerate(strings):
        before = len(encoded.ids)
        if offsets := wanted.get(number):
            tokens = _with_offsets(tokenizer).encode(string, add_special_tokens=False)
            starts = [start for start, _ in tokens.offsets]
            encoded.ids.extend(tokens.ids)
            encoded.positions.extend(before + bisect_left(starts, offset) - 1 for offset in offsets)
        elif string:
            encoded.ids.extend(tokenizer.encode(string, add_special_tokens=False, verbose=False))  # callers check the length
    return encoded


def token_starts(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the index in `text` at which each of its tokens begins. Raises InputError if the tokenizer is not a fast one."""
    return [start for start, _ in _with_offsets(tokenizer).encode(text, add_special_tokens=False).offsets]


_controls: WeakKeyDictionary[PreTrainedTokenizerBase, dict[frozenset[int], re.Pattern[str]]] = WeakKeyDictionary()
_offsetters: WeakKeyDictionary[PreTrainedTokenizerBase, Tokenizer] = WeakKeyDictionary()


def _control(tokenizer: PreTrainedTokenizerBase, placed: set[int]) -> re.Pattern[str]:
    """Return a pattern of the spellings of all control tokens, including those of the ids `placed`."""
    known = _controls.setdefault(tokenizer, {})
    if (pattern := known.get(frozenset(placed))) is None:
        # a tokenizer may list only some of its control tokens as special, and the others as added tokens
        spelt = {*tokenizer.all_special_tokens, *tokenizer.convert_ids_to_tokens(sorted(placed))}
        spelt |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        pattern = re.compile("|".join(map(re.escape, sorted(spelt, key=len, reverse=True))) or r"(?!)")
        known[frozenset(placed)] = pattern
    return pattern


def _with_offsets(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Return the same tokenizer without its post-processor, which may trim white space from the offsets of tokens."""
    if (offsetter := _offsetters.get(tokenizer)) is None:
        from tokenizers import Tokenizer, processors

        if not tokenizer.is_fast:
            raise InputError(f"{tokenizer.name_or_path} has no tokenizer.json, which locating the steps of a trace needs")
        offsetter = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        offsetter.post_processor = processors.ByteLevel(trim_offsets=False)
        _offsetters[tokenizer] = offsetter
    return offsetter


def _cut(text: str, control: re.Pattern[str]) -> list[str]:
    """Split `text` after the first character of each control token in it."""
    cuts = [0, *(match.start() + 1 for match in control.finditer(text)), len(text)]
    return [text[a:b] for a, b in pairwise(cuts)]
