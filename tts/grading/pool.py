"""Grading of final answers, which of them are equivalent and which are right, in worker processes that can be killed.

Model output is untrusted: `9**9**9` or a megabyte of LaTeX can hang a computer algebra system. Graders therefore run in
separate processes. A process that exceeds the time limit is killed, and the answer it worked on counts as no answer.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tts import interrupts
from tts.grading.boxes import UNCLOSED, boxed
from tts.grading.rules import get_grader
from tts.trajectory import split, steps
from tts.types import Candidate

SECONDS = 5.0
"""Time limit for one answer, in seconds."""
STARTUP = 60.0
"""Time limit for a worker to import math-verify or a custom grader, in seconds."""
WORKERS = 2
"""Processes that a grader may start; the second one starts only when two problems are judged at the same time."""
MAX_CHARACTERS = 10_000
"""Maximum length of an answer, and of the end of a response that is searched for one, in characters."""
INTEGER = re.compile(r"-?[0-9]{1,30}")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer of one candidate, and whether it is right."""

    answer: str | None
    """The last boxed expression of the response, or else the answer that the grader reads from it; None without an answer.

    A response that was cut off has an answer only if its last box is closed.
    """
    group: int | None
    """Number that candidates with equivalent answers share; None without an answer."""
    correct: bool | None
    """Whether the answer is right; None if the problem has no reference answer."""


class _Text(NamedTuple):
    """What is graded of a response. Responses with the same boxed expression are graded once."""

    text: str
    boxed: bool


class Grader:
    """Judges answers with the grader that their problem names, in processes that start on first use.

    Args:
        seconds: Time limit for one answer, in seconds. Default 5.
        workers: Maximum number of processes. Default 2.
    """

    def __init__(self, seconds: float = SECONDS, workers: int = WORKERS) -> None:
        self.seconds = seconds
        self._workers = [_Worker(seconds) for _ in range(workers)]
        self._idle: asyncio.LifoQueue[_Worker] = asyncio.LifoQueue()  # last in, first out: that one is running
        for worker in self._workers:
            self._idle.put_nowait(worker)

    async def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """One verdict per candidate of one problem, in order. Raises RuntimeError if a custom grader fails."""
        if not candidates:
            return []
        problem = candidates[0].problem
        whole = get_grader(problem.grader).whole
        texts = [_graded(candidate, whole) for candidate in candidates]
        distinct = [text for text in dict.fromkeys(texts) if text is not None]
        verdicts = _as_integers(distinct, problem.answer) if problem.grader == "math" else None
        if verdicts is None:
            worker = await self._idle.get()
            try:
                verdicts = await worker.judge(problem.grader, problem.answer, distinct)
            finally:
                self._idle.put_nowait(worker)
        return [_nothing(problem.answer) if text is None else verdicts[text] for text in texts]

    async def close(self) -> None:
        """End the worker processes."""
        for worker in self._workers:
            await worker.close()


class _Worker:
    """A process that grades one request at a time, and is restarted after it had to be killed."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._process: asyncio.subprocess.Process | None = None

    async def judge(self, grader: str, gold: str | None, texts: list[_Text]) -> dict[_Text, Verdict]:
        verdicts: dict[_Text, Verdict] = {}
        firsts: list[_Text] = []  # of each group the text that started it
        try:
            while todo := texts[len(verdicts) :]:
                await self._send({"grader": grader, "gold": gold, "texts": todo, "firsts": firsts})
                for text in todo:
                    result = await self._receive(self.seconds)
                    if result is None:  # this answer hung or crashed it; a new process grades the others
                        verdicts[text] = _nothing(gold)
                        break
                    if isinstance(result, dict):
                        raise RuntimeError(f"the grader {grader} failed on {text.text[-60:]!r}: {result['error']}")
                    answer, group, correct = result
                    if group == len(firsts):
                        firsts.append(text)
                    verdicts[text] = Verdict(answer, group, None if gold is None else correct)
        except BaseException:  # interrupted: an unread result would be taken for the next request's
            await self.close()
            raise
        return verdicts

    async def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
                await process.wait()
            interrupts.release(process.pid)

    async def _send(self, request: dict[str, Any]) -> None:
        """Send a request and wait until the worker has loaded the grader. A worker that has died meanwhile is replaced once."""
        for _ in range(2):
            if self._process is None or self._process.returncode is not None:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "tts.grading.worker",
                    stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                    limit=64 * 1024 * 1024, start_new_session=True,  # only the parent handles Ctrl-C
                )  # fmt: skip
                interrupts.adopt(self._process.pid)
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
                await self._process.stdin.drain()
            except ConnectionError:
                await self.close()
                continue
            if await self._receive(STARTUP) == "ready":
                return
        raise RuntimeError("the grading worker did not start; try: python -m tts.grading.worker")

    async def _receive(self, seconds: float) -> Any:
        """The worker's next line, parsed; None if it died or had to be killed."""
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(seconds):  # wait_for of Python 3.11 forgets a cancellation that comes with a result
                line = await self._process.stdout.readline()
        except (TimeoutError, ConnectionError):
            line = b""
        if line:
            return json.loads(line)
        await self.close()
        return None


def _graded(candidate: Candidate, whole: bool) -> _Text | None:
    """What is graded of a candidate's response; None without an answer.

    An expression in the thinking is not an answer, nor is what a response that was cut off ends in.
    """
    _, response = split(candidate.text)
    finished = candidate.finish == "stop"
    box = boxed(response, finished)
    if not response.strip() or box == UNCLOSED or (box is None and not finished):
        return None
    if whole:
        return _Text(response, False)
    if box is not None:
        return _Text(box, True) if len(box) <= MAX_CHARACTERS else None
    return _Text("\n\n".join(steps(response))[-MAX_CHARACTERS:], False)


def _nothing(gold: str | None) -> Verdict:
    return Verdict(None, None, None if gold is None else False)


def _as_integers(texts: list[_Text], gold: str | None) -> dict[_Text, Verdict] | None:
    """A verdict for each text if every answer is a boxed integer, which needs no computer algebra; otherwise None."""
    if not all(text.boxed and INTEGER.fullmatch(text.text) for text in (*texts, _Text(gold or "0", True))):
        return None
    groups = {number: group for group, number in enumerate(dict.fromkeys(int(text.text) for text in texts))}
    return {
        text: Verdict(text.text, groups[int(text.text)], None if gold is None else int(text.text) == int(gold))
        for text in texts
    }
