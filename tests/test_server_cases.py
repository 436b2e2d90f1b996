"""Servers as they are: the quirks of ../shared/cases, and what comes out of a run on each."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import tts
from tests.test_server import impatient  # noqa: F401  # a fixture
from tts.data.store import RunStore
from tts.errors import InputError

CASES = Path(__file__).parents[2] / "shared" / "cases"
pytestmark = pytest.mark.skipif(not CASES.exists(), reason=f"NOT RUN: the servers of {CASES} are not here")


@contextmanager
def started(script: str, port: int):
    process = subprocess.Popen([sys.executable, CASES / script, "900"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/x/v1/models", timeout=5).close()
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def chat():
    with started("chat_server.py", 8791) as url:
        yield url


@pytest.fixture(scope="module")
def completions():
    with started("completions_server.py", 8792) as url:
        yield url


def solve(url: str, **settings):
    """The summary, row and notices of a run on one problem."""
    Path("one.jsonl").write_text('{"problem": "What is 1+1?", "answer": "2"}\n')
    summary = tts.run("majority", n=4, engine="server", url=url, benchmark="one.jsonl", out="r", **settings)
    [record] = RunStore.open(Path("r")).records()
    return summary, record, json.loads(Path("r/run.json").read_text()).get("notices", [])


AGAIN = "each candidate is a request of its own, with its own seed"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("quirk", "notice"),
    [
        ("n-ignored", f"answers n = 4 with 1; {AGAIN}"),
        ("n-400", f"refuses n > 1; {AGAIN}"),
        ("max-completion", "takes max_completion_tokens instead of max_tokens"),
        ("temp-400", "refuses temperature (Unsupported value: 'temperature' does not support 0.7"),
        ("temp-top-p", "refuses top_p (`temperature` and `top_p` cannot both be specified"),
        ("seed-422", "refuses seed (body.seed: Extra inputs are not permitted); it is not sent any more"),
        ("same", f"answers n > 1 with equal samples under one seed; {AGAIN}"),
        ("usage-null", "does not say how many tokens it generated"),
        ("usage-none", "does not say how many tokens it generated"),
        *((quirk, None) for quirk in ("529", "524", "err200", "null-choices", "empty200")),
        *((quirk, None) for quirk in ("list-content", "models-list", "models-null", "models-500")),
    ],
)
def test_a_chat_server_is_used_as_far_as_it_goes_and_what_it_lacks_is_said_once(chat, quirk, notice):
    drawing = {"temperature": 0.7, "top_p": 0.9} if quirk.startswith("temp") else {}
    summary, record, notices = solve(f"{chat}/{quirk}", model="m", engine_args={"api": "chat"}, **drawing)
    assert (summary.failed, summary.accuracy.value) == (0, 1.0)
    assert [(attempt.finish, attempt.answer) for attempt in record.candidates] == [("stop", "2")] * 4
    assert [notice in said for said in notices] == [True] if notice else notices == []
    if quirk == "same":
        assert len({attempt.text for attempt in record.candidates}) == 4, "each has a seed of its own"
    if quirk == "list-content":
        assert record.candidates[0].text.startswith("<think>\n1+1\n</think>")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("quirk", "reason"),
    [("choice-error", "finish reason error"), ("filter", "finish reason content_filter"), ("abort", "finish reason abort"),
     ("null-content", "no content"), ("refusal", "refusal: I can't help with that")],
)  # fmt: skip
def test_choices_that_failed_are_drawn_again_and_in_the_end_the_row_says_why(chat, quirk, reason):
    summary, record, _ = solve(f"{chat}/{quirk}", model="m", engine_args={"api": "chat"})
    assert (summary.failed, record.candidates) == (1, ())
    assert record.error.endswith(f"6 times in a row: {reason}" if quirk != "refusal" else f"{reason}.")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("quirk", "finish", "text"), [("cut", "length", "let me"), ("only-thinking", "stop", "</think>\n\n")])
def test_thinking_without_content_is_no_answer(chat, quirk, finish, text):
    summary, record, _ = solve(f"{chat}/{quirk}", model="m", engine_args={"api": "chat"})
    assert summary.accuracy.value == 0
    assert {(attempt.finish, attempt.answer) for attempt in record.candidates} == {(finish, None)}
    assert record.candidates[0].text.endswith(text)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("quirk", ["fffd", "special", "lp-null", "lp-short", "vllm-abort"])
def test_completions_that_are_odd_do_not_fail_a_problem(completions, quirk):
    summary, record, notices = solve(f"{completions}/{quirk}", model="arith-policy")
    assert summary.failed == 0
    assert len(record.candidates) == 4
    assert record.candidates[0].finish == ("length" if quirk == "fffd" else "stop")
    assert bool(notices) == (quirk == "special")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("quirk", "reason"), [("abort", "finish reason abort"), ("nofinish", "finish reason null")])
def test_completions_without_an_end_are_no_solutions(completions, quirk, reason):
    _, record, _ = solve(f"{completions}/{quirk}", model="arith-policy")
    assert record.error.endswith(reason)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("path", "settings", "complaint"),
    [
        ("x", {"model": "m", "strategy": "beam"}, "offers only whole chat completions; this strategy extends"),
        ("x/v2", {"model": "m"}, "/x/v2/chat/completions answered 404: not found; --model is 'm', and it serves: m"),
    ],
)
def test_what_cannot_work_is_said_before_the_first_problem(chat, path, settings, complaint):
    strategy = settings.pop("strategy", "majority")
    with pytest.raises(InputError, match=complaint):
        tts.run(strategy, n=4, engine="server", url=f"{chat}/{path}", limit=3, out="r", **settings)
    assert not Path("r").exists()
