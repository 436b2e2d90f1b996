"""The verification of a run as a person reads it."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tts.evals.agreement import FALSE_ALARMS
from tts.runs.verify import Verification
from tts.show.browse import printable

LONGEST = 120
"""Characters of a value that are shown."""


def show(found: Verification) -> RenderableType:
    """What was checked and how, what is wrong, and the conclusion."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_row("run", Text(printable(found.run)))
    facts.add_row("checked", Text(_checked(found)))
    facts.add_row("method", Text(f"{METHODS[found.method]}: {found.reason}"))
    if found.summary is not None:
        facts.add_row("summary", Text("summary.json follows from the rows" if found.summary else "summary.json is wrong"))
    if found.detects is not None:
        facts.add_row("power", Text(_power(found)))
    parts: list[RenderableType] = [facts]
    if found.compared:
        parts += [Text(), _comparison(found)]
    parts += [Text(f"\nwarning: {printable(warning)}", "yellow") for warning in found.warnings]
    for difference in found.differences:
        parts += [
            Text(),
            Text(printable(" ".join(filter(None, (difference.where, difference.field)))), "bold"),
            Text(f"  recorded  {_value(difference.recorded)}", "red"),
            Text(f"  expected  {_value(difference.expected)}", "green"),
        ]
    if hidden := found.different - len(found.differences):
        parts.append(Text(f"\n… and {hidden} more", "dim"))
    return Group(*parts, Text(), _conclusion(found))


METHODS = {"bytes": "byte for byte", "statistics": "statistically", "grades": "not redrawn, only graded again"}


def _checked(found: Verification) -> str:
    failed = f"; {found.failed} rows of failed problems are not checked" if found.failed else ""
    return f"{found.checked:,} of {found.rows:,} rows, chosen by --seed {found.seed}{failed}"


def _power(found: Verification) -> str:
    if found.detects == 1:
        return "any changed row would have been found"
    return (
        f"if {found.detects:,} of the {found.rows:,} rows had been changed, at least one of them would have been found with a"
        " probability of 95 %"
    )


def _comparison(found: Verification) -> RenderableType:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for heading in ("mean over these rows", "recorded", "redrawn", "p", "would be found"):
        table.add_column(heading, justify="left" if heading.startswith("mean") else "right")
    for c in found.compared:
        size = "–" if c.detects is None else f"± {_number(c.name, c.detects)}"
        style = "bold red" if c in found.suspicious else ""
        table.add_row(Text(c.name, style), _number(c.name, c.recorded), _number(c.name, c.redrawn), f"{c.p:.3g}", size)
    note = f"\nA difference counts if p < {FALSE_ALARMS / len(found.compared):.2g}: an honest run fails this check with a"
    note += f" probability of at most {FALSE_ALARMS:.0%}.\nOne of the size in the last column would be found with a probability"
    note += " of 80 %. The candidates' answers and grades were found again from their texts as well."
    return Group(table, Text(note, "dim"))


def _number(name: str, value: float) -> str:
    return f"{value:,.1f}" if name == "tokens generated" else f"{value:.3f}" if name == "reward" else f"{value:.1%}"


def _value(value: Any) -> str:
    text = printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _conclusion(found: Verification) -> Text:
    if found.verified:
        return Text("verified: nothing differs", "bold green")
    reasons = [f"{found.different:,} wrong"] if found.different else []
    reasons += [f"{', '.join(c.name for c in found.suspicious)} not as recorded"] if found.suspicious else []
    hint = ""
    if found.method == "bytes" and found.warnings:
        hint = ". Other versions or hardware can change the last bits; --method statistics allows for that"
    return Text(f"not verified: {'; '.join(reasons)}{hint}", "bold red")
