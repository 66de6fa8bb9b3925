"""Kills a process, tears its write or fills its disk at a chosen call that changes files.

Knows nothing about what is written. Linux only: a small library is compiled and preloaded.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from enum import IntEnum
from pathlib import Path

SOURCE = Path(__file__).with_name("crash.c")


class Fate(IntEnum):
    """What happens at the chosen call; as in crash.c."""

    COUNT = 0
    KILL_BEFORE = 1
    KILL_AFTER = 2
    TEAR = 3  # half of a write reaches the file, then the process dies
    FULL_ONCE = 4  # this call alone finds no space
    FULL_FROM = 5  # and so does every later one


def why_unavailable() -> str | None:
    """Why nothing can be preloaded here, or None."""
    if not sys.platform.startswith("linux"):
        return "calls are met by a preloaded library, which is written for Linux"
    return None if shutil.which("cc") else "no C compiler (cc) to build the preloaded library with"


def build() -> Path:
    """Compile the library, once a process."""
    target = Path(tempfile.mkdtemp(prefix="crash-"), "crash.so")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", target, SOURCE, "-ldl"], check=True)
    return target


def preloaded(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run python with the library in front of libc."""
    variables = {**os.environ, **environment, "LD_PRELOAD": str(build())}
    return subprocess.run([sys.executable, *arguments], env=variables, capture_output=True, text=True)


def count(folder: Path, act: Callable[[], None]) -> int:
    """Calls below ``folder`` that ``act`` makes, in a fork of this process."""
    read, write = os.pipe()

    def counted() -> None:
        _arm(folder, 0, Fate.COUNT)
        act()
        os.write(write, str(_calls()).encode())

    status = fork(counted)
    os.close(write)
    with os.fdopen(read) as pipe:
        told = pipe.read()
    assert status == 0, f"the act itself ended with {status}"
    return int(told)


def meet(folder: Path, act: Callable[[], None], nth: int, fate: Fate) -> int:
    """Do ``act`` in a fork that meets ``fate`` at its nth call; the status is -9 where it was killed."""

    def doomed() -> None:
        _arm(folder, nth, fate)
        act()

    return fork(doomed)


def fork(act: Callable[[], object]) -> int:
    """Exit status of ``act`` done in a child; the number of a signal is negative."""
    return wait(spawn(act))


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def spawn(act: Callable[[], object]) -> int:
    """Do ``act`` in a child; returns its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        act()
        code = 0
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def every_point(
    folder: Path, act: Callable[[], None], fates: list[Fate], stride: int = 1
) -> Iterator[tuple[int, Fate, int]]:
    """Meet every fate at every call of ``act``; yields (call, fate, status) with the folder as it was left.

    The folder is put back before each.
    """
    pristine = Path(tempfile.mkdtemp(prefix="pristine-"), "folder")
    shutil.copytree(folder, pristine, symlinks=True)
    try:
        for fate in fates:
            for nth in range(1, count_afresh(folder, pristine, act) + 1, stride):
                put_back(folder, pristine)
                yield nth, fate, meet(folder, act, nth, fate)
    finally:
        put_back(folder, pristine)
        shutil.rmtree(pristine.parent)


def count_afresh(folder: Path, pristine: Path, act: Callable[[], None]) -> int:
    put_back(folder, pristine)
    return count(folder, act)


def put_back(folder: Path, pristine: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(pristine, folder, symlinks=True)


def was_killed(status: int) -> bool:
    return status == -signal.SIGKILL


def _arm(folder: Path, nth: int, fate: Fate) -> None:
    # the library's functions are global because it was preloaded
    ctypes.CDLL(None).crash_arm(str(folder.resolve()).encode(), ctypes.c_long(nth), int(fate))


def _calls() -> int:
    function = ctypes.CDLL(None).crash_calls
    function.restype = ctypes.c_long
    return int(function())
