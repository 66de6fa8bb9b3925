"""How much of the processors others take: by hand, and with a process that is none of ours."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import namedtuple
from unittest.mock import Mock

import psutil
import pytest
from holdfast.resources.cpu import num_cores
from holdfast.scaling.others import OtherWork

Core = namedtuple("Core", "user nice system idle iowait steal guest guest_nice")


class Machine:
    """Three cores of which this process may use the first two, and a child that ends meanwhile."""

    BEFORE = (
        Core(100, 0, 10, 500, 5, 0, 40, 0),
        Core(50, 0, 10, 600, 0, 0, 0, 0),
        Core(0, 0, 0, 0, 0, 0, 0, 0),
    )
    AFTER = (
        Core(103, 1, 11, 504, 5, 1, 42, 0),
        Core(57, 0, 10, 602, 1, 0, 0, 0),
        Core(10, 0, 0, 0, 0, 0, 0, 0),
    )

    def __init__(self) -> None:
        self.is_later = False
        self.process = Mock(cpu_affinity=lambda: [0, 1], cpu_times=self.own, children=self.children)

    def cores(self, percpu: bool) -> tuple[Core, ...]:
        return self.AFTER if self.is_later else self.BEFORE

    def own(self) -> tuple[float, ...]:  # user, system, those of ended children, waiting for disks
        return (23.0, 5.0, 4.0, 1.0, 9.0) if self.is_later else (20.0, 5.0, 1.0, 0.0, 3.0)

    def children(self, recursive: bool) -> list[Mock]:
        return [] if self.is_later else [Mock(cpu_times=lambda: (1.0, 1.0, 0.0, 0.0, 0.0))]


def test_other_work_is_what_the_cores_did_beside_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    monkeypatch.setattr(psutil, "cpu_times", machine.cores)
    monkeypatch.setattr(psutil, "Process", lambda: machine.process)
    others = OtherWork()
    assert others.share() == 0.0
    machine.is_later = True
    # the cores passed 10 s each, of which 6 and 7 busy; ours were 3 + 4, and 2 of those counted before
    assert others.share() == pytest.approx((6 + 7 - 5) / 20)


def test_other_work_is_seen_on_this_machine() -> None:
    spin = subprocess.run(
        ["sh", "-c", "while :; do :; done >&- 2>&- & echo $!"], capture_output=True, text=True
    )
    try:  # an orphan, so no child of ours
        others = OtherWork()
        time.sleep(1)
        assert others.share() > 0.4 / num_cores()
    finally:
        os.kill(int(spin.stdout), signal.SIGKILL)
