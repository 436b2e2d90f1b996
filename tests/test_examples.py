"""The examples run as their users would run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
ARGUMENTS = {
    "sweep_n.py": (["--problems", "4", "--seeds", "1"], ["strategy,n,accuracy", "beam,16,", "best: "]),
    "two_prms.py": (["--problems", "6"], ["arith-prm: ", "arith-prm-response: ", "difference: "]),
    "own_benchmark.py": ([], ["exactly: ", "within one: "]),
    "own_strategy.py": (["--problems", "4"], ["bon: ", "bar 1.5: ", "bar 1.9: "]),
}


def test_every_example_is_run():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(ARGUMENTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_example_runs(name):
    arguments, expected = ARGUMENTS[name]
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments], capture_output=True, text=True, env={**os.environ, "COLUMNS": "100"}
    )
    assert done.returncode == 0, done.stderr
    for text in expected:
        assert text in done.stdout
