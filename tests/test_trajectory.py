from tts.trajectory import parse, steps


def test_thinking_and_response_are_separated():
    trajectory = parse("<think>\na\n\nb\n</think>\n\nc\n\nd")
    assert trajectory.thinking == ("a", "b")
    assert trajectory.response == ("c", "d")


def test_a_template_that_opens_thinking_in_the_prompt_reads_the_same():
    assert parse("a\n\nb\n</think>\n\nc") == parse("<think>a\n\nb</think>c")


def test_unclosed_thinking_has_no_response():
    assert parse("<think>\na\n\nThe answer is \\boxed{1}").response == ()


def test_text_without_tags_is_all_response():
    assert parse("a\n\nb") == ((), ("a", "b"))


def test_windows_line_ends_and_empty_steps():
    assert steps("a\r\n\r\nb\n\n\n\n \n\nc\n\n") == ("a", "b", "c")
