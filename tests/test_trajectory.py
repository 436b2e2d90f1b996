import pytest
from hypothesis import given
from hypothesis import strategies as st

from tts.delimiters import PRESETS, delimiter
from tts.errors import InputError
from tts.trajectory import TAGS, Tags, is_one_step, is_thinking, parse, split, steps, tags_in, with_tags


@pytest.fixture(params=TAGS, ids=lambda tags: tags.open)
def tags(request) -> Tags:
    return request.param


def test_thinking_and_response_are_separated(tags):
    trajectory = parse(f"{tags.open}\na\n\nb\n{tags.close}\n\nc\n\nd")
    assert trajectory.thinking == ("a", "b")
    assert trajectory.response == ("c", "d")


def test_a_template_that_opens_thinking_in_the_prompt_reads_the_same(tags):
    assert parse(f"a\n\nb\n{tags.close}\n\nc") == parse("<think>a\n\nb</think>c")


def test_unclosed_thinking_has_no_response(tags):
    text = f"{tags.open}\na\n\nThe answer is \\boxed{{1}}"
    assert parse(text) == (("a", "The answer is \\boxed{1}"), ())
    assert is_thinking(text)
    assert not is_thinking(text + tags.close)
    assert split(text)[1] == ""
    assert split(f"{text}{tags.close}\n\n2")[1] == "\n\n2"


def test_text_without_tags_is_all_response():
    assert parse("a\n\nb") == ((), ("a", "b"))
    assert (tags_in("a [x] <y>"), is_thinking("a"), split("a")) == (None, False, ("", "a"))


def test_the_pair_of_the_first_tag_counts_and_others_are_text(tags):
    text = f"{tags.open}Is it </answer>, <think> or [/THINK]?{tags.close}Yes: write {tags.open} and </thinking>."
    other = next(pair for pair in TAGS[:2] if pair != tags)
    assert tags_in(f"{tags.open} {other.open} {other.close}") == tags
    if tags not in TAGS[:2]:
        assert parse(text).response == (f"Yes: write {tags.open} and </thinking>.",)
        assert parse(text).thinking == ("Is it </answer>, <think> or [/THINK]?",)


def test_tags_around_the_response_are_not_a_step():
    solution = "<|begin_of_thought|>\n\na\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\nb\n\n<|end_of_solution|>"
    assert parse(solution) == (("a",), ("b",))


def test_every_step_is_a_part_of_the_text(tags):
    text = f"Sure. {tags.open}a b{tags.close}c <|end_of_solution|> d"
    assert parse(text) == (("Sure.", "a b"), ("c", "d"))
    assert all(step in text for step in parse(text).steps)


def test_text_in_the_normal_form_has_think_tags(tags):
    assert with_tags(f"{tags.open}\na\n{tags.close}\n\nb") == "<think>\na\n</think>\n\nb"
    assert with_tags(f"a\n{tags.close}\n\nuse {tags.open}") == f"a\n</think>\n\nuse {tags.open}"
    assert with_tags("<think>a", tags) == f"{tags.open}a"
    assert with_tags("a", tags) == "a"


def test_windows_line_ends_and_empty_steps():
    assert steps("a\r\n\r\nb\n\n\n\n \n\nc\n\n") == ("a", "b", "c")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("reasonflux", "a\nb\n\nc", ("a\nb", "c")),
        ("line", "a\r\nb\n\n\nc. D\n", ("a", "b", "c. D")),
        ("\\n", "a\nb", ("a", "b")),
        ("###", "a### b\n\nc ###", ("a", "b\n\nc")),
        ("sentence", "It is 3.5, e.g. here. So 5! = 120! Is it? Yes.\nx = 1\n\nDone", (
            "It is 3.5, e.g. here.", "So 5! = 120!", "Is it?", "Yes.", "x = 1", "Done"
        )),
        ("sentence", "1. Add 2. Then\n(b) Take 3. 4 are left\n12.", ("1. Add 2.", "Then", "(b) Take 3.", "4 are left", "12.")),
        ("sentence", "先加二。再乘三！ 得 $9$. \\(x\\) is 9", ("先加二。", "再乘三！", "得 $9$.", "\\(x\\) is 9")),
    ],
)  # fmt: skip
def test_steps_end_where_the_delimiter_says(name, text, expected):
    assert delimiter(name).split(text) == expected
    assert parse(f"{text}</think>{text}", delimiter(name)) == (expected, expected)


def test_each_rule_has_one_name_and_an_empty_delimiter_is_refused():
    names = {"reasonflux": "blank-line", "\\n\\n": "blank-line", "\n": "line", "line": "line", "\\n##": "\n##"}
    assert {given: delimiter(given).name for given in names} == names
    with pytest.raises(InputError, match="must not be empty; choose blank-line, line, sentence, reasonflux, or a string"):
        delimiter("")


def test_a_text_in_progress_has_no_step_that_may_be_cut_short():
    """The token that completes ". " is often the next sentence's first word."""
    sentence = delimiter("sentence")
    for text in ("It is 5. The", "It is 5. 1. The", "It is 5.\nThe sum of e.g. "):
        assert parse(text, sentence, in_progress=True).response == ("It is 5.",)
        assert parse(f"<think>{text}", sentence, in_progress=True).thinking == ("It is 5.",)
    assert parse("<think>So. 5</think>5.\nThe", sentence, in_progress=True) == (("So.", "5"), ("5.",))
    assert parse("a\n\nb", in_progress=True).response == ("a", "b")


@given(st.text(alphabet="aA1.! ?。\n(", max_size=40), st.integers(0, 40), st.sampled_from([*PRESETS.values()]))
def test_what_follows_changes_no_sentence_that_has_ended(text, at, by):
    if by.looks_ahead:
        before, whole = by.split(text[:at], in_progress=True), by.split(text)
        assert whole[: len(before)] == before
    assert "".join(by.split(text)).replace("\n", "").replace(" ", "") == text.replace("\n", "").replace(" ", "")


def test_whether_a_text_has_one_step():
    assert is_one_step("a\nb")
    assert not is_one_step("a\nb", delimiter("line"))
    assert not is_one_step("a</think>b")
    assert is_one_step("<think>\n\n</think>\n\na")
    assert not is_one_step("")
    assert not is_one_step("word " * 2000 + "\n\nend")
    assert not is_one_step("a\n\nb\n\n" * 2000)
