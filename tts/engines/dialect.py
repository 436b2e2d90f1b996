"""What a server does not take, learned from its refusals."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from tts.engines.http import BadRequestError, excerpt

NEEDED = frozenset(("model", "prompt", "messages", "stop", "max_tokens", "max_completion_tokens", "chat_template_kwargs"))
"""What is not left out, however a server refuses it: without it, the answer would be to another question."""


class Dialect:
    """How requests to a server differ from OpenAI's API. Each difference is learned once, and said in `notices`.

    Args:
        url: The server's name in notices.
        drop: Parameters that are not sent.
        rename: Other names of parameters.
    """

    def __init__(self, url: str, drop: Iterable[str] = (), rename: Mapping[str, str] | None = None) -> None:
        self.url, self.dropped, self.renamed = url, set(drop), dict(rename or {})
        self.many = "n" not in self.dropped
        """Whether one request can have several choices that differ."""
        self.notices: list[str] = []

    def write(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The request as the server takes it."""
        left = {name: value for name, value in body.items() if name not in self.dropped}
        if left.get("n") == 1 or not self.many:  # what one request does not bring, others are made for
            left.pop("n", None)
        return {self.renamed.get(name, name): value for name, value in left.items()}

    def single(self, why: str) -> None:
        """Ask for one choice at a time from now on."""
        if self.many:
            self.many = False
            self.note(f"the server at {self.url} {why}; each candidate is a request of its own, with its own seed")

    def note(self, notice: str) -> None:
        """Keep a notice, unless it is known."""
        if notice not in self.notices:
            self.notices.append(notice)

    def learn(self, refusal: BadRequestError, sent: Mapping[str, Any]) -> bool:
        """Find out from a refusal what the server does not take. Return whether another request is worth trying."""
        said = refusal.said
        if "max_tokens" in sent and "max_completion_tokens" in said:
            self.renamed["max_tokens"] = "max_completion_tokens"
            self.note(f"the server at {self.url} takes max_completion_tokens instead of max_tokens")
            return True
        if sent.get("n", 1) > 1 and re.search(r"(?<![\w-])n(?![\w-])", said):
            self.single("refuses n > 1")
            return True
        named = sorted((found.start(), name) for name in sent if name not in NEEDED for found in [_find(name, said)] if found)
        if not named:
            return False
        names = [name for _, name in named]
        name = "top_p" if {"temperature", "top_p"} <= set(names) else names[0]
        known = {new: old for old, new in self.renamed.items()}
        self.dropped.add(known.get(name, name))
        self.note(f"the server at {self.url} refuses {name} ({excerpt(said)}); it is not sent any more")
        return True


def _find(name: str, text: str) -> re.Match[str] | None:
    return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)
