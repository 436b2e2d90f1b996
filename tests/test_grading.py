"""Graders, on answers as models write them, in the real worker with its time limit."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import tts
from tts.grading.pool import Grader, _Worker, boxed
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
        ("1,000", ["1000", "1{,}000"], ["1"]),
    ],
)
async def test_mathematics(judge, reference, same, other):
    verdicts = await judge([f"so \\boxed{{{text}}}" for text in (*same, *other)], reference)
    assert [v.correct for v in verdicts] == [True] * len(same) + [False] * len(other)
    assert len({v.group for v in verdicts[: len(same)]}) == 1


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("so \\boxed{B}", "B"),
        ("so \\boxed{\\text{(B)}}, not (C)", "B"),
        ("\\boxed{b}", "B"),
        ("Answer: B", "B"),
        ("**Answer: (B)**", "B"),
        ("The answer is B, since (C) is wrong.", "B"),
        ("The answer is C. No, wait: the answer is B.", "B"),
        ("(A) is wrong, so it is (B).", "B"),
        ("It follows.\n\n**B**", "B"),
        ("The answer is a number", None),
        ("The answer is I think not there", None),
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
        ("math:nothing", "math has no grader 'nothing' (a function (answer, reference) -> bool, or Rules); it has: acos"),
    ],
)
def test_an_unknown_grader_is_refused(name, complaint):
    with pytest.raises(tts.InputError) as refused:
        get_grader(name)
    assert complaint in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("how", ["math", "letter", "numeric", "exact"])
async def test_hostile_answers_are_stopped_in_time_and_do_not_affect_the_others(judge, how):
    good = "\\boxed{7.0}" if how != "letter" else "\\boxed{(B)}"
    verdicts = await judge([good, *HOSTILE, "\\boxed{7.0 }", good], {"letter": "B"}.get(how, "7.0"), how)
    assert (verdicts[0].correct, verdicts[-1].correct) == (True, True)
    assert not any(v.correct for v in verdicts[1 : 1 + len(HOSTILE)])
    assert verdicts[0].group == verdicts[-1].group


def test_boxes_that_stay_open_are_found_in_one_pass():
    assert boxed("\\boxed{1}" + "\\boxed{" * 150_000) == "1"
    assert boxed("\\boxed{\\frac{1}{2}} and \\boxed{a{b}") == "\\frac{1}{2}"
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
