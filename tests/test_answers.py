from __future__ import annotations

import asyncio
import json

import pytest

from tts.data.traces import parse_line
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
        ("\\boxed{7} and \\boxed{8", None),
        ("The answer is 5: \\boxed{5", None),
        ("The answer goes into \\boxed{}. It is 5.", "5"),
        ("", None),
    ],
)
async def test_the_answer_is_the_last_one_in_the_response(grader, text, answer):
    assert (await grader.judge(candidates([text])))[0].answer == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So we get \\boxed{5}. Let me check", "5"),
        ("The answer is 5", None),
        ("\\boxed{7} and then \\boxed{8", None),
        ("\\boxed{7}. The final answer is $4$", "7"),
        ("<think>It is \\boxed{3}. But", None),
        ("<think>It is \\boxed{3}.</think>\n\nIt is 3", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("grader_name", ["math", "numeric", "exact"])
@pytest.mark.parametrize("finish", ["length", "step"])
async def test_a_response_that_was_cut_off_has_no_answer_unless_it_closed_its_last_box(
    grader, text, answer, grader_name, finish
):
    [verdict] = await grader.judge([Candidate(Problem("p", "?", "5", grader_name), (Step(text, (1,), finish),))])
    assert (verdict.answer, verdict.group, verdict.correct) == (answer, None if answer is None else 0, answer == "5")


async def test_a_trace_that_was_cut_off_has_no_answer_either(grader):
    run = {"id": 1, "problem": "p", "answer": "5", "candidates": [{"steps": ["It is 5"], "finish": "length"}]}
    alone = {"id": 1, "problem": "p", "answer": "5", "text": "It is 5"}
    for row, correct in ((run, False), (alone | {"finish": "length"}, False), (alone, True)):
        [trace] = parse_line(json.dumps(row), 1, {})
        assert [verdict.correct for verdict in await grader.judge([trace.candidate])] == [correct]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{1}, \\boxed{2}, \\boxed{3}", "1, 2, 3"),
        ("\\boxed{(2,2)} \\quad\\text{and}\\quad \\boxed{(6,2)}", "(2,2), (6,2)"),
        ("$y_1 = \\boxed{5}$ for part (a), and $y_2 = \\boxed{6}$ for part (b)", "5, 6"),
        ("\\boxed{5}. So, again: \\boxed{5}", "5"),
        ("\\boxed{1} no, \\boxed{2}", "2"),
        ("\\boxed{1}, or rather \\boxed{2}", "2"),
        ("\\boxed{\\frac12} = \\boxed{0.5}", "0.5"),
        ("\\boxed{3/4}, so $m + n$ is \\boxed{7}", "7"),
        ("First \\boxed{1}." + " Then we compute something else." * 3 + " It is \\boxed{2}", "2"),
        ("We have \\boxed{200}. The final answer is $10,455$. I hope it is correct.", "10,455"),
        ("We have \\boxed{200}. The final answer is what I put in the box.", "200"),
        ("\\fbox{5}", "5"),
        ("\\boxed {5}", "5"),
    ],
)
async def test_boxes_next_to_each_other_are_one_answer_unless_the_later_one_corrects_the_other(grader, text, answer):
    assert (await grader.judge(candidates([text])))[0].answer == answer


async def test_without_a_reference_nothing_is_right_or_wrong(grader):
    verdicts = await grader.judge(candidates(["\\boxed{1}", "\\boxed{1.0}"], answer=None))
    assert [v.correct for v in verdicts] == [None, None]
    assert verdicts[0].group == verdicts[1].group


async def test_no_answer_is_wrong_where_there_is_a_reference(grader):
    assert (await grader.judge(candidates(["I do not know"])))[0].correct is False


@pytest.mark.slow
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
