"""Prompt templates: texts with {fields}."""

from __future__ import annotations

import re
from pathlib import Path

from tts.errors import InputError


def fill(template: str, /, **values: str) -> str:
    """Replace the template's fields by `values`. A field's name inside a value is not replaced."""
    return re.sub(r"\{(" + "|".join(values) + r")\}", lambda match: values[match.group(1)], template)


def read_template(template: str, field: str, what: str) -> str:
    """Return a template, which is given as a text or as the path of a file.

    Args:
        template: A text that contains {field}; anything else is taken for a path.
        field: The name of a field that the template must contain.
        what: What the template is called in error messages.

    Raises:
        InputError: The file cannot be read or does not contain the field.
    """
    if f"{{{field}}}" in template:
        return template
    try:
        text = Path(template).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {what} {template!r}: {reason}") from error
    if f"{{{field}}}" not in text:
        raise InputError(f"{what} {template} does not contain the field {{{field}}}")
    return text
