"""The process in which graders run: it reads one JSON request per line and writes one JSON line per text of the request.

    {"grader": "math", "gold": "1/2", "texts": [["0.5", true]], "firsts": []}  →  "ready", then ["0.5", 0, true]

It exits at the end of its input, so that it does not outlive a parent that is killed.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any

from tts.grading.rules import GRADERS, Rules, get_grader

MEMORY = 4 * 1024**3
"""Limit on the address space of this process, in bytes."""


@lru_cache(maxsize=8)
def loaded(name: str) -> Rules:
    """The grader, after one use: what it imports on first use must not count towards the time limit of an answer."""
    rules = get_grader(name)
    if (answer := _probe(name)) is not None:
        rules.right(answer, "\\frac12")
    return rules


@lru_cache(maxsize=8)
def _probe(name: str) -> Any:
    """An answer to compare others with; None for a grader that is not built in, which may expect anything."""
    return get_grader(name).read("0.5", True) if name in GRADERS.builtin else None


def judge(request: dict[str, Any]) -> Iterator[Any]:
    """Yield [answer, group number, whether it is right] for each text, or {"error": …} if a custom grader fails.

    `firsts` in the request has the text that started each group so far; an answer that is equivalent to none of theirs starts a
    new group.
    """
    rules, gold = loaded(request["grader"]), request["gold"]
    firsts = [rules.read(*text) for text in request["firsts"]]
    probe = _probe(request["grader"])
    for text, boxed in request["texts"]:
        try:
            answer = rules.read(text, boxed)
            if answer is None:
                yield [None, None, False]
                continue
            # an answer that hangs in comparisons should do so here, where the parent knows which answer it is
            right = rules.right(answer, gold) if gold is not None else rules.same(answer, answer if probe is None else probe)
            number = next((i for i, first in enumerate(firsts) if rules.same(answer, first)), len(firsts))
            shown = str(answer)
        except Exception as error:
            yield [None, None, False] if request["grader"] in GRADERS.builtin else {"error": f"{type(error).__name__}: {error}"}
            continue
        if number == len(firsts):
            firsts.append(answer)
        yield [shown, number, bool(right)]


def main() -> None:
    """Answer requests until the end of the input."""
    logging.disable(logging.CRITICAL)  # math-verify logs every expression it cannot parse
    with suppress(ImportError, ValueError, OSError):  # some systems lack this limit; the time limit always applies
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    out, sys.stdout = sys.stdout, sys.stderr  # output of libraries must not be taken for a result
    for line in sys.stdin:
        request = json.loads(line)
        loaded(request["grader"])
        print(json.dumps("ready"), file=out, flush=True)
        for result in judge(request):
            print(json.dumps(result), file=out, flush=True)


if __name__ == "__main__":
    main()
