"""Final answers: which of them are the same, and which are right, decided in worker processes that can be killed.

Model output is untrusted: `9**9**9` or a megabyte of LaTeX can hang a computer algebra system. So math-verify runs in
a process of its own, which is killed when it takes too long, and the answer that hung it counts as no answer.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tts.types import Candidate

SECONDS = 5.0
"""Time limit for one answer; a batch gets this once and a little for each answer in it."""
STARTUP = 60.0
"""Time limit for a worker to import math-verify."""
INTEGER = re.compile(r"-?[0-9]{1,30}")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one candidate answers."""

    answer: str | None
    """As written in the final response: the last boxed expression, else the last expression; None where there is none."""
    group: int | None
    """Candidates with equal numbers give equivalent answers."""
    correct: bool | None
    """None where the problem has no reference answer."""


class Grader:
    """Judges answers with math-verify in a worker process, started on first use and restarted when it had to be killed."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()

    async def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """One verdict per candidate of one problem, in order."""
        if not candidates:
            return []
        texts = [_final_text(candidate) for candidate in candidates]
        distinct = list(dict.fromkeys(texts))
        gold = candidates[0].problem.answer
        if (verdicts := _as_integers(distinct, gold)) is None:
            verdicts = await self._as_mathematics(distinct, gold)
        return [verdicts[text] for text in texts]

    async def _as_mathematics(self, distinct: list[str], gold: str | None) -> dict[str, Verdict]:
        """A verdict for each text, by math-verify."""
        async with self._lock:
            answers = await self._ask_each({"op": "extract"}, "texts", distinct)
            known = list(dict.fromkeys(answer for answer in answers if answer is not None))
            groups = await self._group(known)
            right = await self._ask_each({"op": "verify", "gold": gold}, "answers", known) if gold is not None else []
        group_of, right_of = dict(zip(known, groups, strict=True)), dict(zip(known, right, strict=False))
        return {
            text: Verdict(
                answer,
                None if answer is None else group_of[answer],
                None if gold is None else bool(answer is not None and right_of[answer]),
            )
            for text, answer in zip(distinct, answers, strict=True)
        }

    async def close(self) -> None:
        if self._process and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        self._process = None

    async def _group(self, answers: list[str]) -> list[int]:
        """A class number per answer; one that hangs when it is compared is a class of its own."""
        result = await self._ask({"op": "group", "answers": answers}, len(answers))
        if result is not None:
            return list(result)
        alone = [a for a in answers if await self._ask({"op": "group", "answers": [a, "0"]}, 1) is None]
        tame = [a for a in answers if a not in alone]
        if not alone or not tame:
            return list(range(len(answers)))
        group_of = dict(zip(tame, await self._group(tame), strict=True))
        return [group_of[a] if a in group_of else len(answers) + i for i, a in enumerate(answers)]

    async def _ask_each(self, request: dict[str, Any], key: str, values: list[str]) -> list[Any]:
        """One result per value; where the batch takes too long, one request each, to find the value that hangs."""
        result = await self._ask({**request, key: values}, len(values))
        if result is not None:
            return list(result)
        if len(values) == 1:
            return [None]
        return [result for value in values for result in await self._ask_each(request, key, [value])]

    async def _ask(self, request: dict[str, Any], size: int) -> Any:
        """The worker's result, or None where it had to be killed or died."""
        process = await self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            await process.stdin.drain()
            line = await asyncio.wait_for(process.stdout.readline(), self.seconds + 0.02 * size)
        except (TimeoutError, ConnectionError):
            line = b""
        except BaseException:  # cancelled halfway: an answer that nobody read would be taken for the next one's
            process.kill()
            self._process = None
            raise
        if line:
            return json.loads(line)
        await self.close()
        return None

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tts.answers_worker",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                limit=64 * 1024 * 1024, start_new_session=True,  # Ctrl-C is the parent's to handle
            )  # fmt: skip
            assert self._process.stdout
            ready = await asyncio.wait_for(self._process.stdout.readline(), STARTUP)
            if ready != b"ready\n":
                raise RuntimeError("the grading worker did not start; try: python -m tts.answers_worker")
        return self._process


def boxed(text: str) -> str | None:
    """The content of the last complete `\\boxed{…}`, braces matched."""
    start = text.rfind("\\boxed{")
    while start >= 0:
        depth, begin = 1, start + len("\\boxed{")
        for end in range(begin, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if not depth:
                return text[begin:end].strip()
        start = text.rfind("\\boxed{", 0, start)
    return None


def _as_integers(texts: list[str], gold: str | None) -> dict[str, Verdict] | None:
    """A verdict for each text where every answer is boxed and a plain integer, which needs no algebra; else None.

    An empty text, the response of a trace that never stopped thinking, has no answer.
    """
    answers = {text: boxed(text) for text in texts if text}
    if not all(answer is not None and INTEGER.fullmatch(answer) for answer in (*answers.values(), gold or "0")):
        return None
    numbers = {text: int(answer or 0) for text, answer in answers.items()}
    groups = {number: group for group, number in enumerate(dict.fromkeys(numbers.values()))}
    verdicts = {
        text: Verdict(answers[text], groups[number], None if gold is None else number == int(gold))
        for text, number in numbers.items()
    }
    return {text: verdicts.get(text, Verdict(None, None, None if gold is None else False)) for text in texts}


def _final_text(candidate: Candidate) -> str:
    """The response alone: an expression in a thinking trajectory is no answer."""
    return "\n\n".join(candidate.trajectory.response)
