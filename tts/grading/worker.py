"""The process in which graders meet untrusted text: one JSON request a line in, one JSON line for each of its texts out.

    {"grader": "math", "gold": "1/2", "texts": [["0.5", true]], "firsts": []}  →  "ready", then ["0.5", 0, true]

It ends when its input does, so a parent that is killed leaves no orphan.
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
"""Address space that an expression may make this process grow to, in bytes."""


@lru_cache(maxsize=8)
def loaded(name: str) -> Rules:
    """A grader that has been used once, so that what it imports late is not on an answer's time."""
    rules = get_grader(name)
    if name in GRADERS.builtin:
        rules.same("\\frac12", "0.5")
    return rules


def judge(request: dict[str, Any]) -> Iterator[Any]:
    """For each text: [answer, number of its class, whether it is right], or {"error": …} where a custom grader fails.

    `firsts` holds the first member of each class; the list grows as classes are found.
    """
    rules, gold, firsts = loaded(request["grader"]), request["gold"], list(request["firsts"])
    for text, boxed in request["texts"]:
        try:
            answer = rules.read(text, boxed)
            if answer is None:
                yield [None, None, False]
                continue
            # what hangs when it is compared should hang here, where the parent can tell whose answer it is
            right = rules.right(answer, gold) if gold is not None else rules.same(answer, "0")
            number = next((i for i, first in enumerate(firsts) if rules.same(answer, first)), len(firsts))
        except Exception as error:
            yield [None, None, False] if request["grader"] in GRADERS.builtin else {"error": f"{type(error).__name__}: {error}"}
            continue
        if number == len(firsts):
            firsts.append(answer)
        yield [answer, number, bool(right)]


def main() -> None:
    """Answer requests until the input ends."""
    logging.disable(logging.CRITICAL)  # math-verify logs every expression it cannot parse
    with suppress(ImportError, ValueError, OSError):  # not every system has this limit; the time limit holds on all
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    out, sys.stdout = sys.stdout, sys.stderr  # nothing that a library prints may look like a result
    for line in sys.stdin:
        request = json.loads(line)
        loaded(request["grader"])
        print(json.dumps("ready"), file=out, flush=True)
        for result in judge(request):
            print(json.dumps(result), file=out, flush=True)


if __name__ == "__main__":
    main()
