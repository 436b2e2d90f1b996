"""Prompt templates: texts with {fields}. A field's name inside a value is not replaced; {{name}} is a literal {name}."""

from __future__ import annotations

import re
from pathlib import Path

from tts.errors import InputError
from tts.models.chat import Fragment, Template

PROMPT_FIELDS = ("problem", "instruction")
"""Fields of --prompt-template; it must contain the first."""

_LITERAL = re.compile(r"\{(\{\w+\})\}")
_LONE = re.compile(r"(?<![\\\w{}^_])\{([A-Za-z_]\w*)\}(?!\})")
"""A name in braces that is not an argument in LaTeX, as in \\frac{a}{b} or x^{n}."""


def fill(template: str, /, **values: str) -> str:
    """Replace the template's fields by `values`."""
    return "".join(map(str, fragments(template, **values)))


def fragments(template: str, /, **values: str) -> list[Fragment]:
    """The template's own text, where control tokens keep their meaning, and the values of its fields, where they do not."""
    found: list[Fragment] = []
    end = 0
    for match in re.finditer(rf"{_LITERAL.pattern}|\{{({'|'.join(values)})\}}", template):
        found.append(Template(template[end : match.start()] + (match[1] or "")))
        if match[2]:
            found.append(values[match[2]])
        end = match.end()
    return [*found, Template(template[end:])]


def has(template: str, field: str) -> bool:
    """Whether a template contains the field."""
    return any(not isinstance(part, Template) for part in fragments(template, **{field: ""}))


def read_template(template: str, field: str, what: str) -> str:
    """Return a template, which is given as a text or as the path of a file. The line end that closes a file is dropped.

    Args:
        template: A text that contains {field}; anything else is taken for a path.
        field: The name of a field that the template must contain.
        what: What the template is called in error messages.

    Raises:
        InputError: The file cannot be read or does not contain the field.
    """
    if has(template, field):
        return template
    try:
        text = Path(template).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {what} {template!r}: {reason}") from error
    if not has(text, field):
        other = f"; it has {_names(set(_LONE.findall(text)))}" if _LONE.search(text) else ""
        raise InputError(f"{what} {template} does not contain the field {{{field}}}{other}")
    return text.removesuffix("\n")


def read_prompt_template(template: str) -> str:
    """Return the text of --prompt-template. Raises InputError if it cannot be read, or has other fields than PROMPT_FIELDS."""
    text = read_template(template, PROMPT_FIELDS[0], "the prompt template")
    if unknown := set(_LONE.findall(text)) - {*PROMPT_FIELDS}:
        raise InputError(
            f"the prompt template has {_names(unknown)}; its fields are {_names(PROMPT_FIELDS)}. Double the braces"
            f" ({{{{{min(unknown)}}}}}) to keep them as text"
        )
    return text


def _names(fields: set[str] | tuple[str, ...]) -> str:
    return " and ".join(f"{{{name}}}" for name in (sorted(fields) if isinstance(fields, set) else fields))
