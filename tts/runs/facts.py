"""Where and with what a run is made."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from typing import Any

from tts.engines import ENGINES, installed


def _git() -> dict[str, Any] | None:
    """The commit of the repository that the run is started in, if any, and whether files differ from it."""
    try:
        commit, status = (
            subprocess.run(["git", *command], capture_output=True, text=True, check=True, timeout=10).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": bool(status)}


def facts() -> dict[str, Any]:
    """Versions and hardware, by which one run is told from another later."""
    runs_on = [ENGINES.get(name).requires for name in ENGINES]
    packages = ["tts-toolkit", "torch", "transformers", "math-verify", "numpy", *filter(None, runs_on)]
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git": _git(),
        "versions": {
            "python": platform.python_version(),
            **{name: number for name in packages if (number := installed(name)) is not None},
        },
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "system": sys.platform},
    }
