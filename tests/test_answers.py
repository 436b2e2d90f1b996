from __future__ import annotations

import asyncio

import pytest

from tts.grading.pool import Grader
from tts.types import Candidate, Problem, Step

HOSTILE = ["9^{9^{9^{9^{9}}}}", "((((9**9)**9)**9)**9)**9", "(10^{10})!", "\\frac{1}{" * 3000, "1" * 50_000]


@pytest.fixture
async def grader():
    grader = Grader(seconds=3)
    yield grader
    await grader.close()


def candidates(texts, answer="\\frac{1}{2}"):
    problem = Problem("p", "?", answer)
    return [Candidate(problem, (Step(text, (1,), "stop"),)) for text in texts]


async def test_equivalent_answers_are_right_and_form_one_group(grader):
    verdicts = await grader.judge(candidates([f"so \\boxed{{{a}}}" for a in ("1/2", "0.5", "\\frac12", "\\dfrac{2}{4}", "2")]))
    assert [v.correct for v in verdicts] == [True, True, True, True, False]
    assert len({v.group for v in verdicts[:4]}) == 1
    assert verdicts[4].group != verdicts[0].group


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{1} no, \\boxed{2}", "2"),
        ("\\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("<think>\\boxed{3}</think>\n\nIt is \\boxed{4}", "4"),
        ("<think>\\boxed{3}", None),
        ("The answer is 42.", "42"),
        ("I do not know", None),
        ("\\boxed{7} and \\boxed{8", "7"),
        ("", None),
    ],
)
async def test_the_answer_is_the_last_one_in_the_response(grader, text, answer):
    assert (await grader.judge(candidates([text])))[0].answer == answer


async def test_without_a_reference_nothing_is_right_or_wrong(grader):
    verdicts = await grader.judge(candidates(["\\boxed{1}", "\\boxed{1.0}"], answer=None))
    assert [v.correct for v in verdicts] == [None, None]
    assert verdicts[0].group == verdicts[1].group


async def test_no_answer_is_wrong_where_there_is_a_reference(grader):
    assert (await grader.judge(candidates(["I do not know"])))[0].correct is False


async def test_hostile_answers_neither_hang_nor_affect_the_others(grader):
    texts = ["\\boxed{0.5}", *(f"\\boxed{{{h}}}" for h in HOSTILE), "\\boxed{1/2}"]
    verdicts = await grader.judge(candidates(texts))
    assert [v.correct for v in verdicts] == [True, *[False] * len(HOSTILE), True]
    assert verdicts[0].group == verdicts[-1].group
    assert (await grader.judge(candidates(["\\boxed{0.5}"])))[0].correct is True


async def test_a_megabyte_of_latex_is_not_an_answer(grader):
    verdicts = await grader.judge(candidates(["\\boxed{" + "\\sqrt{x}+" * 120_000 + "}", "\\sqrt{" * 150_000, "\\boxed{0.5}"]))
    assert [v.correct for v in verdicts] == [False, False, True]


async def test_a_worker_that_dies_is_replaced(grader):
    assert (await grader.judge(candidates(["\\boxed{0.5}"])))[0].correct
    [process] = [worker._process for worker in grader._workers if worker._process]
    process.kill()
    await process.wait()
    assert (await grader.judge(candidates(["\\boxed{1/2}"])))[0].correct


async def test_a_cancelled_request_does_not_affect_the_next(grader, monkeypatch):
    await grader.judge(candidates(["\\boxed{0.1}"]))
    [worker] = [worker for worker in grader._workers if worker._process]
    asked, receive = asyncio.Event(), worker._receive

    async def receive_and_tell(seconds):
        if seconds == grader.seconds:  # not that of the start
            asked.set()
        return await receive(seconds)

    monkeypatch.setattr(worker, "_receive", receive_and_tell)
    task = asyncio.create_task(grader.judge(candidates([f"\\boxed{{{HOSTILE[0]}}}"])))
    await asked.wait()
    task.cancel()
    assert (await grader.judge(candidates(["\\boxed{0.5}"])))[0].correct is True


async def test_integers_need_no_worker(grader):
    fresh = Grader()
    texts = ["\\boxed{12}", "so \\boxed{ 12 }", "\\boxed{012}", "\\boxed{-12}", "", "\\boxed{13}"]
    for answer in ("12", None):
        problem = Problem("p", "?", answer)
        candidates = [Candidate(problem, (Step(text, (1,), "stop"),)) for text in texts]
        directly = await fresh.judge(candidates)
        assert not any(worker._process for worker in fresh._workers)
        [*with_algebra, _] = await grader.judge([*candidates, Candidate(problem, (Step("\\boxed{\\frac12}", (1,), "stop"),))])
        assert directly == with_algebra  # the fraction sent them all to math-verify, which says the same
