"""Commands that are killed at a moment of their own, however fast the machine is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

KILLED = """
import os, signal, sys
from importlib import import_module

module, _, path = sys.argv.pop(1).partition(":")
owner, name = import_module(module), path
if "." in path:
    kind, name = path.split(".")
    owner = getattr(owner, kind)
left, original = int(sys.argv.pop(1)), getattr(owner, name)

def counted(*args, **options):
    global left
    done = original(*args, **options)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return done

setattr(owner, name, counted)
from tts.cli import entry
entry()
"""


def run_killed(function: str, calls: int, *arguments: str | Path) -> None:
    """Run a command that kills itself when `function`, as module:name or module:Class.name, has returned `calls` times."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, function, str(calls), *map(str, arguments)],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, f"{function} was called less than {calls} times: {done.stderr}"
