"""A contender of a benchmark: a process of its own, stopped while the others are measured."""

from __future__ import annotations

import os
import signal
import subprocess


class Contender:
    """Answers each line on its stdin with a line `RESULT …` on its stdout, after a first line `READY`.

    It is stopped, with its children, whenever it has nothing to answer: an engine that waits for work may spin.
    """

    def __init__(self, *command: str) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        if not any(line == "READY\n" for line in self.process.stdout):
            raise SystemExit(f"{' '.join(command)} did not start; what it said stands above")
        os.killpg(self.process.pid, signal.SIGSTOP)

    def ask(self, line: str) -> str:
        """What stands behind RESULT."""
        os.killpg(self.process.pid, signal.SIGCONT)
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = next((line for line in self.process.stdout if line.startswith("RESULT ")), None)
        if answer is None:
            raise SystemExit("a contender died; what it said stands above")
        os.killpg(self.process.pid, signal.SIGSTOP)
        return answer.removeprefix("RESULT ").strip()

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)
        self.process.stdin.close()
        self.process.wait()
