"""Draw docs/images/run.svg: run the README's command and export what the terminal shows. `python scripts/picture.py`."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from rich.console import Console

import tts
from tts.show.summary import show


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        summary = tts.run("bon", n=16, out=Path(folder) / "run")
    console = Console(record=True, width=92, force_terminal=True, highlight=False)
    console.print(show(replace(summary, run="runs/…-bon-arith")))
    target = Path(__file__).parent.parent / "docs" / "images" / "run.svg"
    console.save_svg(str(target), title="tts run --strategy bon --n 16")


if __name__ == "__main__":
    main()
