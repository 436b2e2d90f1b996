import pytest
from hypothesis import given
from hypothesis import strategies as st

from tts.solving.segment import Segmenter


def chars(tokens):
    return "".join(map(chr, tokens))


def pairs(tokens):
    """Each token is two characters: a boundary can begin inside one token and end inside another."""
    return "".join(chr(token >> 8) + chr(token & 255) for token in tokens)


def test_cuts_after_the_token_that_completes_the_boundary():
    pieces = Segmenter(chars, ["\n\n"]).split([*map(ord, "a\n\n\nb\n\nc")])
    assert [*map(chars, pieces)] == ["a\n\n", "\nb\n\n", "c"]


def test_a_boundary_across_tokens_is_found():
    tokens = [(ord(a) << 8) + ord(b) for a, b in ("ab", "c\n", "\nd", "ef")]
    assert [*map(pairs, Segmenter(pairs, ["\n\n"]).split(tokens))] == ["abc\n\nd", "ef"]


def test_a_boundary_whose_last_character_is_several_tokens_is_found():
    """Tokens are bytes, as byte-level tokenizers have for rare characters; a single one decodes to no character."""

    def decode(tokens):
        return bytes(tokens).decode("utf-8", "replace")

    tokens, segmenter = [*"one。two。".encode()], Segmenter(decode, ["。"])
    assert [*map(decode, segmenter.split(tokens))] == ["one。", "two。"]
    assert [segmenter.ends(tokens[:end]) for end in (4, 5, 6)] == [False, False, True]


@given(st.text(alphabet="ab\n", max_size=40))
def test_pieces_join_to_the_whole_and_have_a_boundary_only_at_their_end(text):
    pieces = [chars(piece) for piece in Segmenter(chars, ["\n\n"]).split([*map(ord, text)])]
    assert "".join(pieces) == text
    assert all("\n\n" not in piece[:-1] for piece in pieces)
    assert all(piece.endswith("\n\n") for piece in pieces[:-1])


@given(st.text(alphabet="ab\n", max_size=40))
def test_cutting_afterwards_equals_stopping_while_drawing(text):
    segmenter, tokens = Segmenter(chars, ["\n\n"]), [*map(ord, text)]
    online, step = [], []
    for token in tokens:
        step.append(token)
        if segmenter.ends(step):
            online.append(tuple(step))
            step = []
    assert [*segmenter.split(tokens)] == online + ([tuple(step)] if step else [])


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ValueError, match="must not be empty"):
        Segmenter(chars, [""])
