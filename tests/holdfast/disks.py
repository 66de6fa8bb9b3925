"""A disk that fails when told to: the calls that change it are counted, and one of them refuses."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

CHANGING = ("open", "write", "fsync", "replace", "link", "unlink", "mkdir", "ftruncate", "pwrite")


class Crash(BaseException):
    """The process is dead: nothing it would still do happens."""


class Disk:
    """Stands between `os` and its callers until the test is over.

    Attributes:
        num_calls: changing calls so far.
        full_from: from this call on, calls that need space fail with ENOSPC.
        dead_from: from this call on, every changing call raises Crash; a write does half its work first.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_calls = 0
        self.full_from = self.dead_from = float("inf")
        self.calls: list[str] = []
        for name in CHANGING:
            monkeypatch.setattr(os, name, self._around(name, getattr(os, name)))

    def reset(self, *, full_from: float = float("inf"), dead_from: float = float("inf")) -> None:
        self.num_calls, self.full_from, self.dead_from = 0, full_from, dead_from
        self.calls = []

    def _around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def changing(*args: Any, **kwargs: Any) -> Any:
            if name == "open" and not args[1] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
                return call(*args, **kwargs)
            self.num_calls += 1
            self.calls.append(name)
            if self.num_calls >= self.dead_from:
                if name == "write" and self.num_calls == self.dead_from:
                    call(args[0], args[1][: len(args[1]) // 2])
                raise Crash(f"at call {self.num_calls}, {name}")
            if self.num_calls >= self.full_from and name != "unlink":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if name == "fsync":  # its effect is not to be seen here, and it is slow
                return None
            return call(*args, **kwargs)

        return changing
