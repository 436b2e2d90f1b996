"""The process in which math-verify meets untrusted text: one JSON request a line in, one JSON result a line out.

It ends when its input does, so a parent that is killed leaves no orphan.
"""

from __future__ import annotations

import json
import logging
import sys
from contextlib import suppress
from functools import lru_cache
from typing import Any

from math_verify import parse, verify

from tts.answers import boxed

MEMORY = 4 * 1024**3
"""Address space that an expression may make this process grow to, in bytes."""
LONGEST = 10_000
"""Characters of an answer that are still taken for one."""


def extract(text: str) -> str | None:
    """The final answer as written."""
    answer = boxed(text)
    if answer is None:
        found = parse(text[-LONGEST:], parsing_timeout=None)
        answer = str(found[-1]) if found else None
    if not answer or len(answer) > LONGEST:
        return None
    parsed(answer)  # if that hangs, it hangs here, where the parent can tell whose answer it is
    return answer


@lru_cache(maxsize=4096)
def parsed(answer: str) -> list[Any]:
    """What math-verify makes of an answer; empty where it makes nothing of it."""
    return list(parse(f"\\boxed{{{answer}}}", parsing_timeout=None))


@lru_cache(maxsize=65536)
def equal(gold: str, answer: str) -> bool:
    """Whether an answer is the same text as the reference or mathematically equivalent."""
    return gold.strip() == answer.strip() or bool(verify(parsed(gold), parsed(answer), timeout_seconds=None))


def group(answers: list[str]) -> list[int]:
    """A class number for each answer: that of the first class with an equivalent first member."""
    firsts: list[str] = []
    numbers = []
    for answer in answers:
        number = next((i for i, first in enumerate(firsts) if equal(first, answer)), len(firsts))
        if number == len(firsts):
            firsts.append(answer)
        numbers.append(number)
    return numbers


def respond(request: dict[str, Any]) -> list[Any]:
    """One result per text or answer in the request."""
    match request["op"]:
        case "extract":
            return [extract(text) for text in request["texts"]]
        case "group":
            return group(request["answers"])
        case "verify":
            return [equal(request["gold"], answer) for answer in request["answers"]]
    raise ValueError(f"unknown op {request['op']!r}")


def main() -> None:
    """Answer requests until the input ends."""
    logging.disable(logging.CRITICAL)  # math-verify logs every expression it cannot parse
    with suppress(ImportError, ValueError, OSError):  # not every system has this limit; the time limit holds on all
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    out, sys.stdout = sys.stdout, sys.stderr  # nothing that a library prints may look like a result
    equal("\\frac12", "0.5")  # imports what sympy imports late, before the clock runs
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(respond(json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    main()
