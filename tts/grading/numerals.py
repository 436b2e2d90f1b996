"""Separators of thousands, as people write them: `1\\,000`, `1 000`, `1{,}000`."""

from __future__ import annotations

import re

_THIN = r"(?:\\[,;:! ]|~|[ \u00a0\u2009\u202f])"
_SPACED = re.compile(rf"(?<![\d.,])\d{{1,3}}(?:{_THIN}\d{{3}})+(?!\d|{_THIN}\d)")
_SPACE = re.compile(_THIN)
_BRACED_COMMA = re.compile(r"(?:\{,\}\\!|\{,\}|,\\!)(?=\d{3}(?!\d))")


def unseparated(text: str) -> str:
    """The text without the separators that cannot be anything else. A plain comma stays, as it may be that of a list."""
    return _SPACED.sub(lambda number: _SPACE.sub("", number[0]), _BRACED_COMMA.sub("", text))
