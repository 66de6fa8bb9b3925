"""One process at a time: real processes, since a lock within one proves nothing."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from holdfast.storage import lock
from holdfast.storage.lock import FolderInUse, FolderLock, holder_of

HOLD = """
import sys, time
from holdfast.storage.lock import FolderLock
lock = FolderLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock until its standard input is closed."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_process_is_told_which_one_holds_it(tmp_path: Path, other: Any) -> None:
    with pytest.raises(
        FolderInUse, match=rf"{tmp_path} is being written by process {other.pid} on .*, since"
    ):
        FolderLock(tmp_path).acquire()


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path, other: Any) -> None:
    other.send_signal(signal.SIGKILL)
    other.wait()
    with FolderLock(tmp_path):
        assert holder_of(tmp_path)["pid"] == os.getpid()


def test_the_lock_says_who_holds_it(tmp_path: Path) -> None:
    with FolderLock(tmp_path) as held:
        assert held.is_held
        assert set(holder_of(tmp_path)) == {"host", "pid", "started"}
    assert not held.is_held


def test_holders_of_one_process_share_it(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path), FolderLock(tmp_path / "." / "")
    first.acquire()
    second.acquire()
    first.release()
    first.release()  # twice is once
    assert refused_elsewhere(tmp_path)
    second.release()
    assert not refused_elsewhere(tmp_path)


def refused_elsewhere(folder: Path) -> bool:
    program = "import sys; from holdfast.storage.lock import FolderLock; FolderLock(sys.argv[1]).acquire()"
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True)
    assert done.returncode in (0, 1)
    return "FolderInUse" in done.stderr


def test_a_forked_worker_does_not_keep_the_lock_of_its_dead_parent(tmp_path: Path) -> None:
    program = "import os, time\n" + HOLD.replace(
        'print("held"', 'child = os.fork()\nif child == 0:\n    time.sleep(60)\nprint(child, "held"'
    )
    command = [sys.executable, "-W", "ignore", "-c", program, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline().split()[0])
    process.kill()
    process.wait()
    try:
        with FolderLock(tmp_path):
            os.kill(child, 0)  # it lives on
    finally:
        os.kill(child, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("text", ["", "{", "[" * 5000, "[]", '"x"'])
def test_an_unreadable_holder_is_another_process(tmp_path: Path, text: str) -> None:
    (tmp_path / ".lock").write_text(text)
    assert holder_of(tmp_path) == {}
    assert "by another process;" in lock._refusal(tmp_path)


def test_where_locks_do_not_exist_it_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(lock, "_has_said_no_locks", False)
    with pytest.warns(UserWarning, match=r"cannot be locked \(No locks available\)"), FolderLock(tmp_path):
        pass
    with FolderLock(tmp_path):
        pass


def test_a_full_disk_does_not_prevent_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)
    with FolderLock(tmp_path):
        assert refused_elsewhere(tmp_path)
    assert json.dumps(holder_of(tmp_path)) == "{}"
