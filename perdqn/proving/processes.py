"""Commands run a few at a time, each in a process of its own; none outlives an interruption.

Knows nothing about what the commands do.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

_LOOK_EVERY_S = 0.1


class Job(NamedTuple):
    """A command, and the file its output goes to."""

    name: str
    command: tuple[str, ...]
    output: Path


def run_jobs(jobs: Sequence[Job], num_at_once: int, on_end: Callable[[Job, int, float], None]) -> None:
    """Run all, in order; ``on_end`` is called with exit code and wall time in seconds of each that ends.

    Raises:
        KeyboardInterrupt: this process was interrupted, or told to end by SIGTERM; the others are dead then.
    """
    waiting, going = list(jobs), dict[Job, subprocess.Popen[bytes]]()
    began: dict[Job, float] = {}
    with _interrupted_by_sigterm():
        try:
            while waiting or going:
                while waiting and len(going) < num_at_once:
                    job = waiting.pop(0)
                    going[job], began[job] = _start(job), time.monotonic()
                ended = [job for job, process in going.items() if process.poll() is not None]
                for job in ended:
                    on_end(job, going.pop(job).returncode, time.monotonic() - began[job])
                if not ended:
                    time.sleep(_LOOK_EVERY_S)
        finally:
            for process in going.values():
                _kill(process)


def _start(job: Job) -> subprocess.Popen[bytes]:
    job.output.parent.mkdir(parents=True, exist_ok=True)
    with job.output.open("wb") as output:
        # in a session of its own: Ctrl-C reaches this process alone, which then ends the others at once
        return subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _kill(process: subprocess.Popen[bytes]) -> None:
    """With its own children; what it had saved is thrown away anyway."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
