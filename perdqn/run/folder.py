"""Where a run lies on disk: names, the newest one, and writing that never leaves half a file.

Knows nothing about what is in the files.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.storage.durable import write_whole

LOGS = "lightning_logs"
CHECKPOINTS = "checkpoints"


class RunNotFound(ValueError):
    """No run or checkpoint where one was asked for; the message says what was looked at."""


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def config_summary(self) -> Path:
        return self.path / "config_summary.txt"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def preflight(self) -> Path:
        return self.path / "monitor" / "preflight.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def last(self) -> Path:
        return self.checkpoints / "last.ckpt"

    @property
    def best(self) -> Path:
        return self.checkpoints / "best.ckpt"

    @property
    def has_save(self) -> bool:
        """Whether there is something to go on from; not whether it is whole."""
        return self.last.is_file() or any(self.checkpoints.glob("*.json"))

    def discard_if_empty(self) -> None:
        """Leave no trace of a run that could not start."""
        with contextlib.suppress(OSError):  # it holds something, or was never made
            self.path.rmdir()
            self.path.parent.rmdir()

    def read_summary(self) -> dict[str, Any]:
        """The run's figures; empty where there are none to read."""
        try:
            return dict(json.loads(self.summary.read_text()))
        except (OSError, ValueError):
            return {}

    def write_summary(self, figures: Mapping[str, Any]) -> None:
        write_whole(self.summary, json.dumps(figures, indent=2, allow_nan=False) + "\n")


def require_writable(path: Path) -> None:
    """Make the folder of ``path``; raises OSError where `write_whole` could not write there."""
    with contextlib.suppress(FileExistsError):  # a file in its place is told from a folder below
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with tempfile.TemporaryFile(dir=path.parent):
        pass


def claim_run(root: Path) -> RunFolder:
    """A new folder below ``root``, made here, so that runs started together do not share one."""
    while True:
        path = root / LOGS / f"version_{max(_versions(root), default=-1) + 1}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return RunFolder(path)


def newest_run(root: Path) -> RunFolder:
    """The run below ``root`` whose files changed last.

    Raises:
        RunNotFound: there is none.
    """
    runs = [RunFolder(root / LOGS / f"version_{version}") for version in _versions(root)]
    runs = [run for run in runs if run.config.is_file()]
    if not runs:
        raise RunNotFound(f"no run in {root / LOGS}; name a run folder or a checkpoint")
    return max(runs, key=_changed_at)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file with one a line; none where it is missing, and half a line is left out."""
    try:
        text = path.read_text()
    except OSError:
        return
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            if isinstance(found := json.loads(line), dict):
                yield found


def _versions(root: Path) -> list[int]:
    found = (re.fullmatch(r"version_(\d+)", path.name) for path in (root / LOGS).glob("version_*"))
    return [int(match[1]) for match in found if match]


def _changed_at(run: RunFolder) -> float:
    files = (run.config, run.summary, *run.checkpoints.glob("*.ckpt"))
    return max(path.stat().st_mtime for path in files if path.exists())
