"""Texts with {fields} that a model is asked with."""

from __future__ import annotations

import re
from pathlib import Path

from tts.errors import InputError


def fill(template: str, /, **values: str) -> str:
    """The template with its fields filled in, in one pass: a field's name inside a value stays text."""
    return re.sub(r"\{(" + "|".join(values) + r")\}", lambda match: values[match.group(1)], template)


def read_template(template: str, field: str, what: str) -> str:
    """A text with {field} in it, or a file of such a text. Raises InputError, which calls it `what`."""
    if f"{{{field}}}" in template:
        return template
    try:
        text = Path(template).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {what} {template!r}: {reason}") from error
    if f"{{{field}}}" not in text:
        raise InputError(f"{what} {template} has no {{{field}}} in it, where that belongs")
    return text
