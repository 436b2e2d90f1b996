"""Start a real server in its own process for the duration of a test."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Server:
    """A server's process."""

    def __init__(self, arguments, port):
        self.port = port
        self.process = subprocess.Popen(
            [sys.executable, *arguments, "--host", "127.0.0.1", "--port", str(port)], start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def ready(self):
        """Wait until it answers."""
        deadline = time.monotonic() + 300
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v1/models", timeout=5)
                return
            except OSError:
                assert self.process.poll() is None, "the server ended while it started"
                assert time.monotonic() < deadline, "the server did not start within 300 s"
                time.sleep(1)

    def kill(self):
        """As kill -9 does, its processes too."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def process(arguments, port, *, wait=True):
    server = Server(arguments, port)
    try:
        if wait:
            server.ready()
        yield server
    finally:
        server.kill()
