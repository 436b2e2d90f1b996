"""Ctrl-C, SIGTERM and SIGHUP: what a command says, how it exits, and what it leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tts import interrupts

READY = "print('ready', flush=True)"


def start(body: str, **more) -> subprocess.Popen:
    """A process whose command is `body`, once that has printed `ready`."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    code = f"import sys, time\nfrom tts import interrupts\ndef command():\n{lines}\nsys.exit(interrupts.guard(command))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_a_signal_ends_a_command_with_a_line_and_its_number(number):
    process = start(f"{READY}\ntime.sleep(1000)")
    process.send_signal(number)
    assert process.communicate() == ("", "tts: interrupted; nothing was written\n")
    assert process.returncode == 128 + number


def test_the_innermost_line_that_holds_is_said():
    body = "with interrupts.on_interrupt(lambda: 'outer'):\n with interrupts.on_interrupt(lambda: 'inner'):\n  pass\n"
    for indent, line in (("  ", "inner"), (" ", "outer"), ("", "outer")):
        process = start(f"{body}{indent}{READY}; time.sleep(1000)")
        process.send_signal(signal.SIGTERM)
        assert process.communicate() == ("", f"tts: {line}\n")


def test_an_event_loop_is_cancelled_and_cleans_up():
    body = f"""
async def work():
    try:
        {READY}
        await asyncio.sleep(1000)
    finally:
        print('cleaned up')
import asyncio
with interrupts.on_interrupt(lambda: 'resume'):
    interrupts.run(work())
"""
    process = start(body)
    process.send_signal(signal.SIGINT)
    assert process.communicate() == ("cleaned up\n", "tts: resume\n")
    assert process.returncode == 130


@pytest.mark.parametrize("stuck", ["while True: time.sleep(0.1)", "lock(mutex), lock(mutex)"])
def test_what_does_not_stop_is_left_with_its_children(stuck):
    """In Python code that takes no notice, and in a C library, where no handler of Python's is called."""
    body = f"""
interrupts.GRACE = 0.3
import ctypes, subprocess
lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
child = subprocess.Popen(['sleep', '1000'])
interrupts.adopt(child.pid)
with interrupts.on_interrupt(lambda: 'resume'), interrupts.stopping(lambda: None):
    {READY}
    print(child.pid, flush=True)
    {stuck}
"""
    process = start(body)
    child = int(process.stdout.readline())
    process.send_signal(signal.SIGTERM)
    assert process.communicate() == ("", "tts: resume\n")
    assert process.returncode == 143
    while is_running(child):  # a process that is killed takes a moment to end
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether a process exists and is not a zombie that nobody has waited for."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_patience_waits_for_the_end_and_a_second_signal_does_not():
    body = f"""
interrupts.GRACE = interrupts.SAME = 0.3
stopped = []
with interrupts.on_interrupt(lambda: 'resume'), interrupts.stopping(lambda: stopped.append(1), patience='saving'):
    {READY}
    while not stopped: time.sleep(0.01)
    time.sleep(interrupts.GRACE + 1)
    {READY}
    if len(sys.argv) > 1: time.sleep(1000)
"""
    process = start(body)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "ready\n"
    assert process.communicate() == ("", "tts: saving\ntts: resume\n")
    assert process.returncode == 130
    process = start(body.replace("len(sys.argv) > 1", "True"))
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate() == ("", "tts: saving\ntts: resume\n")
    assert process.returncode == 130


def test_errors_that_follow_from_an_interrupt_are_not_shown():
    body = f"""
import threading
stopped = threading.Event()
with interrupts.stopping(stopped.set):
    {READY}
    stopped.wait()
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    raise RuntimeError('a consequence')
"""
    process = start(body)
    process.send_signal(signal.SIGHUP)
    assert process.communicate() == ("", "tts: interrupted; nothing was written\n")
    assert process.returncode == 129


def test_an_ignored_signal_stays_ignored():
    """As under nohup."""
    body = f"{READY}\nsys.stdin.read()\nprint('done')"
    process = start(body, stdin=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    assert process.communicate() == ("done\n", "")
    assert process.returncode == 0


def test_a_command_that_is_done_keeps_its_exit_code():
    """A signal while the interpreter ends only makes it end sooner."""
    body = f"import atexit\natexit.register(lambda: ({READY}, time.sleep(1000)))\nreturn 1"
    process = start(body)
    process.send_signal(signal.SIGINT)
    assert process.communicate() == ("", "")
    assert process.returncode == 1


@pytest.mark.parametrize(("command", "code"), [("sys.exit()", 0), ("sys.exit(3)", 3), ("sys.exit('why')", 1), ("return 4", 4)])
def test_a_command_may_exit_in_any_way(command, code):
    script = f"import sys\nfrom tts import interrupts\ndef command():\n    {command}\nsys.exit(interrupts.guard(command))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, "why\n" if "why" in command else "")


def test_a_forked_child_is_on_its_own():
    """Its signals are neither its parent's nor handled as such."""
    body = """
import multiprocessing
child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(1000,))
child.start()
child.terminate()
child.join()
print('ready', child.exitcode, flush=True)
"""
    code = "\n".join(f"    {line}" for line in body.splitlines())
    code = f"import sys, time\nfrom tts import interrupts\ndef command():\n{code}\nsys.exit(interrupts.guard(command))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"ready {-signal.SIGTERM}\n", "")


def test_in_a_program_of_ones_own_ctrl_c_stops_and_raises():
    """No command of tts: Python's own handler is put back."""
    stopped = []

    def work():
        with interrupts.stopping(lambda: stopped.append(1)):
            os.kill(os.getpid(), signal.SIGINT)
            assert stopped == [1]
            stopped.append(2)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert stopped == [1, 2]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_cannot_be_written_is_an_error():
    """Also where it is noticed as late as at the end."""
    code = "import sys\nfrom tts import interrupts\nsys.exit(interrupts.guard(lambda: print('x')))"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode != 0
    assert "No space left on device" in done.stderr


@pytest.mark.slow
def test_commands_are_interrupted_at_random_moments():
    """One interrupt of each command; scripts/stress_interrupts.py itself does hundreds."""
    script = Path(__file__).parents[1] / "scripts" / "stress_interrupts.py"
    done = subprocess.run([sys.executable, script, "--count", "15", "--busy", "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
