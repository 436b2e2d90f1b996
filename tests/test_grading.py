"""Graders, on answers as models write them, in the real worker with its time limit."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import tts
from tts.grading.boxes import UNCLOSED, boxed
from tts.grading.pool import Grader, _Worker
from tts.grading.rules import get_grader
from tts.types import Candidate, Problem, Step

HOSTILE = [
    "\\boxed{9**9**9**9}",
    "\\boxed{9^{9^{9^{9}}}}",
    "\\boxed{10000000!}",
    "\\boxed{" + "(" * 10_000 + "1" + ")" * 10_000 + "}",
    "(" * 10_000 + "1" + ")" * 10_000,
    "\\boxed{" + "(" * 4_000 + "1" + ")" * 4_000 + "}",
    "\\boxed{" * 150_000,
    "\\boxed{" + "\\frac{1}{x}+" * 90_000 + "}",
    "\\frac{1}{2}+" * 90_000,
]


@pytest.fixture
async def judge():
    grader = Grader(seconds=3)

    async def judge(texts, answer, how="math"):
        problem = Problem("p", "?", answer, how)
        return await grader.judge([Candidate(problem, (Step(text, (1,), "stop"),)) for text in texts])

    yield judge
    await grader.close()


@pytest.mark.parametrize(
    ("reference", "same", "other"),
    [
        ("\\frac{1}{2}", ["1/2", "0.5", "\\frac12", "\\dfrac{2}{4}", "$\\frac12$"], ["2", "-1/2", "0.51"]),
        ("\\{1,2\\}", ["\\{2, 1\\}", "1,2", "\\{4/2,1\\}"], ["\\{1,3\\}", "[1,2]"]),
        ("[0,1)", ["[0, 1)", "[0,2/2)"], ["[0,1]", "(0,1)", "[0,2)"]),
        ("(-\\infty,2]\\cup[3,4)", ["[3,4)\\cup(-\\infty, 2]"], ["(-\\infty,2]"]),
        ("5", ["5\\text{ cm}", "5 cm", "5.0", "x = 5", "\\$5", "5^\\circ"], ["6\\text{ cm}"]),
        ("50\\%", ["50%", "50\\%", "0.5"], ["5\\%"]),
        ("2\\sqrt{2}", ["\\sqrt8", "\\frac{4}{\\sqrt2}"], ["\\sqrt2", "2.83"]),
        ("(x+1)^2", ["x^2+2x+1"], ["x^2+1"]),
        (
            "1,000",
            ["1000", "1{,}000", "1\\,000", "1 000", "1\\ 000", "1,\\!000", "x = 1,000", "\\(1,000\\)"],
            ["1", "0", "1\\,001"],
        ),
        ("12{,}500", ["12500", "12{,}500.", "12 500 \\text{ km}"], ["12", "500"]),
        ("500", ["{,}500"], ["{,}501"]),
        (
            "42",
            ["42.", "\\mathbf{42}", "\\boldsymbol{42}", "**42**", "\\text{42}", "$42.$", "\\textbf{42 cm}"],
            ["4.2", "42.1"],
        ),
        ("x+1", ["x + 1.", "\\boldsymbol{x+1}", "y = x+1"], ["x-1."]),
        ("2+3i", ["2+3\\mathrm{i}", "3i + 2"], ["5", "2+3"]),
        ("1-\\frac1e", ["1 - \\frac{1}{\\mathrm{e}}", "1-{\\rm e}^{-1}"], ["1", "1 + \\frac{1}{\\mathrm{e}}"]),
        ("$(2,1)$, $(1,2)$", ["(1,2), (2,1)", "\\{(2,1),(1,2)\\}"], ["(1,2)"]),
    ],
)
async def test_mathematics(judge, reference, same, other):
    verdicts = await judge([f"so \\boxed{{{text}}}" for text in (*same, *other)], reference)
    assert [v.correct for v in verdicts] == [True] * len(same) + [False] * len(other)
    assert len({v.group for v in verdicts[: len(same)]}) == 1


@pytest.mark.parametrize(
    ("text", "answer", "reference"),
    [
        ("The answer is **5**.", "5", "5"),
        ("It is **5**.", "5", "5"),
        ("7/8.", "7/8", "\\frac78"),
        ("So it is 2^10.", "2^10", "1024"),
        ("$1 - \\frac{1}{e}$", "1 - \\frac{1}{e}", "1 - \\frac{1}{\\mathrm{e}}"),
        ("$7\\pi.$", "7\\pi", "7\\pi"),
        ("The answer is 4a-2.", "4a-2", "4a-2"),
        ("The answer is \\$1,000.", "\\$1,000", "1000"),
        ("The answer is \\dfrac{1}{2}", "\\dfrac{1}{2}", "0.5"),
        ("The answer is that 3 of them are green.", "3", "3"),
        ("There are 1 000 of them", "1000", "1000"),
        ("$x = 5$ and $x = 6$", "x = 5 and x = 6", "\\{5, 6\\}"),
    ],
)
async def test_what_math_verify_parsed_without_a_box_is_kept(judge, text, answer, reference):
    alone, boxed_too = await judge([text, f"\\boxed{{{reference}}}"], reference)
    assert (alone.answer, alone.correct, alone.group) == (answer, True, boxed_too.group)


async def test_a_reference_with_one_comma_may_be_two_numbers_or_a_decimal(judge):
    assert [v.correct for v in await judge(["\\boxed{1.22}", "\\boxed{\\{22, 1\\}}", "\\boxed{122}"], "1,22")] == [
        True,
        True,
        False,
    ]


async def test_votes_do_not_depend_on_which_form_of_an_answer_comes_first(judge):
    forms = ["\\boxed{5}", "\\boxed{x = 5}", "It is $x = 5$.", "The answer is 5."]
    for texts in (forms, forms[::-1]):
        assert {verdict.group for verdict in await judge(texts, None)} == {0}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("so \\boxed{B}", "B"),
        ("so \\boxed{Option B}", "B"),
        ("so \\boxed{\\textbf{(B) } 12 \\text{ eV}}", "B"),
        ("so \\boxed{\\text{(B)}}, not (C)", "B"),
        ("\\boxed{b}", "B"),
        ("The answer must be B.", "B"),
        ("The answer is a number", None),
        ("\\boxed{42}", None),
    ],
)
async def test_letters(judge, text, letter):
    [verdict] = await judge([text], "B", "letter")
    assert (verdict.answer, verdict.correct) == (letter, letter == "B")


async def test_votes_for_a_letter_are_one_vote_however_written(judge):
    verdicts = await judge(["\\boxed{A}", "Answer: (A)", "the answer is B"], None, "letter")
    assert [v.group for v in verdicts] == [0, 0, 1]
    assert [v.correct for v in verdicts] == [None] * 3


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("\\boxed{1,234.5}", True),
        ("\\boxed{1{,}234.5 \\text{ kg}}", True),
        ("\\boxed{1\\,234.5}", True),
        ("it is 1 234.5", True),
        ("it costs 3 times that, \\$1,234.50", True),
        ("\\boxed{1234.5001}", True),
        ("\\boxed{m = 1.2345e3}", True),
        ("\\boxed{2469/2}", True),
        ("\\boxed{\\frac{2469}{2}}", True),
        ("\\boxed{1234.5\\%}", True),
        ("\\boxed{1234.6}", False),
        ("\\boxed{1234.5/0}", False),
        ("none", False),
        ("\\boxed{" + "9" * 5000 + "}", False),
    ],
)
async def test_numbers(judge, text, right):
    assert [v.correct for v in await judge([text], "1234.5", "numeric")] == [right]


async def test_exact_text(judge):
    texts = ["I say\n\nParis ", "\\boxed{Paris}", "\\boxed{paris}", "\\boxed{ New   York }"]
    assert [v.correct for v in await judge(texts, "Paris", "exact")] == [True, True, False, False]
    assert [v.correct for v in await judge(texts, "New York", "exact")] == [False, False, False, True]


async def test_a_custom_grader_gets_the_box_or_the_last_line(judge):
    Path("mine.py").write_text("def near(answer, reference):\n    return abs(float(answer) - float(reference)) < 2\n")
    verdicts = await judge(["\\boxed{11}", "It is\n\n9.5", "\\boxed{13}", "\\boxed{11}"], "10", "mine.py:near")
    assert [v.answer for v in verdicts] == ["11", "9.5", "13", "11"]
    assert [v.correct for v in verdicts] == [True, True, False, True]
    assert [v.group for v in verdicts] == [0, 1, 2, 0]


PROOF = """
def complete(answer, reference, response):
    return answer == reference and response.rstrip().endswith("QED")
"""
CODE = """
class Program:
    'Programs are right if they print the reference.'

    def read(self, response):
        return response.partition("```python\\n")[2].partition("```")[0] or None

    def right(self, answer, reference):
        return reference in answer

    def same(self, answer, other):
        return answer.split() == other.split()
"""


async def test_a_custom_grader_may_take_the_whole_response_as_the_model_wrote_it(judge):
    Path("proof.py").write_text(PROOF)
    texts = ["<think>QED</think>\\boxed{5}\n\n\n  QED ", "\\boxed{5}", "\\boxed{4} QED", "It is\n5"]
    verdicts = await judge(texts, "5", "proof.py:complete")
    assert [v.answer for v in verdicts] == ["5", "5", "4", "5"]
    assert [v.correct for v in verdicts] == [True, False, False, False]
    assert [v.group for v in verdicts] == [0, 0, 1, 0]
    Path("kept.py").write_text("def kept(answer, reference, response):\n    return response == reference\n")
    program = "def f():\n\n\n    return 1\n"
    assert [v.correct for v in await judge([program], program, "kept.py:kept")] == [True]
    Path("near.py").write_text(
        "def near(answer, reference, tolerance=2):\n    return abs(int(answer) - int(reference)) < tolerance\n"
    )
    assert [v.correct for v in await judge(["\\boxed{6}"], "5", "near.py:near")] == [True]


async def test_a_class_may_define_how_answers_are_read_and_which_are_the_same(judge):
    Path("code.py").write_text(CODE)
    fenced = ["Try\n```python\nprint(1)\n```\n\nDone.", "```python\n\n  print(1)\n```", "```python\nprint(2)\n```", "print(1)"]
    verdicts = await judge(fenced, "print(1)", "code.py:Program")
    assert [v.answer for v in verdicts] == ["print(1)\n", "\n  print(1)\n", "print(2)\n", None]
    assert [v.correct for v in verdicts] == [True, True, False, False]
    assert [v.group for v in verdicts] == [0, 0, 1, None]
    assert [v.group for v in await judge(fenced, None, "code.py:Program")] == [0, 0, 1, None]


async def test_a_group_survives_the_worker_that_found_it(judge):
    Path("votes.py").write_text(
        "class Votes:\n"
        "    def right(self, answer, reference):\n"
        "        while answer == 'x': pass\n"
        "        return answer == reference\n"
        "    def same(self, answer, other):\n"
        "        return answer.lower() == other.lower()\n"
    )
    verdicts = await judge(["\\boxed{a}", "\\boxed{x}", "\\boxed{A}", "\\boxed{b}"], "a", "votes.py:Votes")
    assert [(v.group, v.correct) for v in verdicts] == [(0, True), (None, False), (0, False), (1, False)]


async def test_a_custom_grader_that_hangs_loses_one_answer_and_one_that_fails_is_named(judge):
    Path("slow.py").write_text("def check(answer, reference):\n    while answer == 'x': pass\n    return answer == reference\n")
    verdicts = await judge(["\\boxed{x}", "\\boxed{a}"], "a", "slow.py:check")
    assert [(v.answer, v.correct) for v in verdicts] == [(None, False), ("a", True)]
    Path("bad.py").write_text("def check(answer, reference):\n    return answer / 2\n")
    with pytest.raises(RuntimeError, match=r"the grader bad.py:check failed on 'a': TypeError"):
        await judge(["\\boxed{a}"], "a", "bad.py:check")
    assert [v.correct for v in await judge(["\\boxed{0.5}"], "1/2")] == [True]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("mth", "no grader named 'mth'. Did you mean 'math'? Known: math, letter, numeric, exact."),
        ("gone.py:f", "no file gone.py to load the grader f from"),
        ("no.such.module:f", "cannot import no.such.module for the grader f"),
        (
            "math:nothing",
            "math has no grader 'nothing' (a function (answer, reference) -> bool, or a class that defines right(",
        ),
    ],
)
def test_an_unknown_grader_is_refused(name, complaint):
    with pytest.raises(tts.InputError) as refused:
        get_grader(name)
    assert complaint in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("how", ["math", "letter", "numeric", "exact"])
async def test_hostile_answers_are_stopped_in_time_and_do_not_affect_the_others(judge, how):
    good = "\\boxed{7.0}" if how != "letter" else "\\boxed{(B)}"
    verdicts = await judge([good, *HOSTILE, "\\boxed{7.0 }", good], {"letter": "B"}.get(how, "7.0"), how)
    assert (verdicts[0].correct, verdicts[-1].correct) == (True, True)
    assert not any(v.correct for v in verdicts[1 : 1 + len(HOSTILE)])
    assert verdicts[0].group == verdicts[-1].group


def test_boxes_that_stay_open_are_found_in_one_pass():
    assert boxed("\\boxed{1}" + "\\boxed{" * 150_000) == UNCLOSED
    assert boxed("\\boxed{\\frac{1}{2}} and \\boxed{a{b}") == UNCLOSED
    assert boxed("\\boxed{a{b} and \\boxed{\\frac{1}{2}}") == "\\frac{1}{2}"
    assert boxed("\\boxed{1 \\boxed{2} 3}") == "2"
    assert boxed("} \\boxed{3} }") == "3"


@pytest.mark.parametrize("turns", range(6))
async def test_a_cancellation_that_comes_with_a_result_is_not_lost(turns):
    """Whatever has become of the line in the meantime: a task that went on would solve all that is left of a benchmark."""
    reader = asyncio.StreamReader()
    worker = _Worker(seconds=60)
    worker._process = SimpleNamespace(stdout=reader)
    task = asyncio.create_task(worker._receive(60))
    await asyncio.sleep(0.01)
    reader.feed_data(b'"ready"\n')
    for _ in range(turns):
        await asyncio.sleep(0)
    if task.cancel():  # False where it had ended
        with pytest.raises(asyncio.CancelledError):
            await task


def test_the_worker_ends_with_its_input():
    done = subprocess.run([sys.executable, "-m", "tts.grading.worker"], input="", capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
