"""A contender of a benchmark: a separate process that is stopped while the others are measured."""

from __future__ import annotations

import os
import signal
import subprocess


class Contender:
    """A process that prints `READY`, and then answers each line on its stdin with a line `RESULT …` on its stdout.

    It and its children are stopped while it has nothing to answer, since an engine may spin while it waits for work.
    """

    def __init__(self, *command: str) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        if not any(line == "READY\n" for line in self.process.stdout):
            raise SystemExit(f"{' '.join(command)} did not start; its output is above")
        os.killpg(self.process.pid, signal.SIGSTOP)

    def ask(self, line: str) -> str:
        """Send a line, and return the text after RESULT."""
        os.killpg(self.process.pid, signal.SIGCONT)
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = next((line for line in self.process.stdout if line.startswith("RESULT ")), None)
        if answer is None:
            raise SystemExit("a contender died; its output is above")
        os.killpg(self.process.pid, signal.SIGSTOP)
        return answer.removeprefix("RESULT ").strip()

    def close(self) -> None:
        """End the process."""
        os.killpg(self.process.pid, signal.SIGCONT)
        self.process.stdin.close()
        self.process.wait()
