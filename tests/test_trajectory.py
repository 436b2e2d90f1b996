import pytest

from tts.trajectory import TAGS, Tags, is_thinking, parse, split, steps, tags_in, with_tags


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
