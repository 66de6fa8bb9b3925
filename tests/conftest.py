"""What every test starts from: one thread, no settings from outside, no signal handler left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def machine_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where compiled updates are kept, so that the tests of a session share them, and start without any."""
    return tmp_path_factory.mktemp("machine_code")


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, machine_code: Path) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("PERDQN_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PERDQN_CACHE_DIR", str(machine_code))
    monkeypatch.setattr("holdfast.scaling.cache._MOST_OTHER_WORK", 1.0)  # however busy this machine is
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
