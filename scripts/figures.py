"""Regenerate the figures of the documentation by the commands that made them, or check them: `make figures`.

A table stands between `<!-- figures: COMMAND -->` and `<!-- end of figures -->`, and is what COMMAND prints. A picture is a
file in PICTURES. With --check nothing is changed; differences are printed, and the exit code is 1 where there are any. Seconds
differ between machines and are not compared. All of it takes about 40 minutes on two free cores.
"""

from __future__ import annotations

import difflib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import cyclopts

ROOT = Path(__file__).parent.parent
PICTURES = {
    "docs/images/scaling.svg": "python scripts/figure_scaling.py",
    "docs/images/run.svg": "python scripts/picture.py",
}
BLOCK = re.compile(r"(<!-- figures: (?P<command>.+?) -->\n)(?P<text>.*?)(\n<!-- end of figures -->)", re.DOTALL)
SECONDS = re.compile(r"[0-9.,]+( |&#160;)?(s|seconds|tokens/s)\b")


def main(*, only: str = "", check: bool = False) -> None:
    """Run the commands and put what they print into the documents.

    Args:
        only: Part of a command or of a file's name; other figures are skipped.
        check: Compare instead of writing.
    """
    differ = []
    for picture, command in PICTURES.items():
        if only in f"{picture} {command}":
            before = (ROOT / picture).read_text(encoding="utf-8")
            run(command)
            after = (ROOT / picture).read_text(encoding="utf-8")
            if check:
                (ROOT / picture).write_text(before, encoding="utf-8")
            differ += compare(picture, before, after)
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        name, text = str(document.relative_to(ROOT)), document.read_text(encoding="utf-8")
        for block in BLOCK.finditer(text):
            if only in f"{name} {block['command']}":
                after = run(block["command"])
                differ += compare(name, block["text"], after)
                text = text.replace(block[0], f"{block[1]}{after}{block[4]}")
        if not check:
            document.write_text(text, encoding="utf-8")
    if check and differ:
        sys.exit(f"these figures are not what their commands print: {', '.join(dict.fromkeys(differ))}")


def run(command: str) -> str:
    """What a command prints."""
    print(f"$ {command}", flush=True)
    first, *rest = shlex.split(command)
    python = [sys.executable] if first == "python" else [sys.executable, "-m", first]
    return subprocess.run([*python, *rest], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.strip("\n")


def compare(name: str, before: str, after: str) -> list[str]:
    """The name, if the two texts differ in more than seconds; the difference is printed."""
    old, new = (SECONDS.sub("", text).splitlines() for text in (before, after))
    if old == new:
        return []
    print(*(line[:300] for line in difflib.unified_diff(old, new, name, "now", lineterm="", n=0)), sep="\n", flush=True)
    return [name]


if __name__ == "__main__":
    cyclopts.run(main)
