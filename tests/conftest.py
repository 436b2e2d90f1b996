from __future__ import annotations

import os
import signal

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a core for each worker; before torch is loaded
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test depends on the network

import pytest

from tts import interrupts
from tts.demo import arith
from tts.engines.transformers import TransformersEngine
from tts.scorers.prm import PRM
from tts.types import Problem

for ignored in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):  # as under nohup: the commands that tests interrupt inherit it
    if signal.getsignal(ignored) is signal.SIG_IGN:
        signal.signal(ignored, signal.default_int_handler if ignored == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(scope="session")
def engine() -> TransformersEngine:
    return TransformersEngine("arith-policy")


@pytest.fixture(scope="session")
def prm() -> PRM:
    return PRM("arith-prm")


@pytest.fixture(scope="session")
def problems() -> list[Problem]:
    return [Problem(f"dev-{i}", chain.prompt, chain.answer) for i, chain in enumerate(arith.take("dev", 24))]


@pytest.fixture(autouse=True)
def _signals_as_before():
    """The process of a command ends with it, that of a test does not."""
    yield
    interrupts.uninstall()


@pytest.fixture(autouse=True)
def _in_a_clean_folder(tmp_path, monkeypatch):
    """Whatever a test writes by default, it writes there."""
    monkeypatch.chdir(tmp_path)
