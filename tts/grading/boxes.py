"""The boxed answer of a response: what `\\boxed{…}` holds, and which boxes belong together."""

from __future__ import annotations

import re
from typing import NamedTuple

UNCLOSED = ""
"""What `boxed` returns for a text whose last box is never closed."""

_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|[{}]")
_SEPARATOR = re.compile(r"\b(?:and|or)\b|[,;]")
_RESTATED = re.compile(
    r"\b(?:no|not|wait|actually|instead|rather|sorry|mistake|correct(?:ed|ion)?|so|thus|hence|therefore|i\.e|that is)\b"
    r"|^[\s$]*(?:=|≈|→|⇒|\\approx|\\to|\\rightarrow|\\Rightarrow|\\implies)[\s$]*$",
    re.IGNORECASE,
)
_FINAL = re.compile(
    r"final answer is:?\s*(?:\$([^$\n]{1,500})\$|\\\((.{1,500}?)\\\)|(-?\d[\d.,/]{0,30}?)(?=[.,]?(?:\s|$)))",
    re.IGNORECASE,
)
NEAR, FAR = 10, 70
"""Boxes with fewer characters between them than `NEAR` belong together; up to `FAR`, those that a separator connects."""


class _Box(NamedTuple):
    start: int
    end: int
    content: str


def boxed(text: str, finished: bool = True) -> str | None:
    """The last boxed answer of a text: None without a box, `UNCLOSED` if the last box is never closed.

    As in math-verify, boxes that follow each other closely are one answer: `\\boxed{1}, \\boxed{2}` is `1, 2`. Unlike there,
    a box that corrects or restates the one before (`\\boxed{1}. Wait, \\boxed{2}`; `\\boxed{1/2} = \\boxed{0.5}`) stands alone.
    Empty boxes are ignored. The time is linear in the length of the text.

    Args:
        text: The response.
        finished: Whether the text is complete. If so, `The final answer is $5$` after the last box replaces its content.
    """
    opened: list[re.Match[str]] = []
    boxes: list[_Box] = []
    for brace in _BRACE.finditer(text):
        if brace[0] != "}":
            opened.append(brace)
        elif opened and (start := opened.pop())[0] != "{" and (content := text[start.end() : brace.start()].strip()):
            boxes.append(_Box(start.start(), brace.end(), content))
    last = max(boxes, default=None)
    if any(brace[0] != "{" and (last is None or brace.start() > last.start) for brace in opened):
        return UNCLOSED
    if last is None:
        return None
    if finished and (stated := _FINAL.findall(text, last.end)):
        return "".join(stated[-1]).strip()
    together = [last]
    for box in sorted(boxes, reverse=True)[1:]:
        if not _belongs(box, together[0], text[box.end : together[0].start]):
            break
        together.insert(0, box)
    return ", ".join(dict.fromkeys(box.content for box in together))


def _belongs(box: _Box, after: _Box, between: str) -> bool:
    if box.end > after.start or _RESTATED.search(between):
        return False
    return len(between) < NEAR or (len(between) < FAR and box.content != after.content and bool(_SEPARATOR.search(between)))
