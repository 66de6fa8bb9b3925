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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.files import write_whole

LOGS = "lightning_logs"


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
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        return self.checkpoints / "last.ckpt"

    @property
    def best(self) -> Path:
        return self.checkpoints / "best.ckpt"

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


def find_checkpoint(reference: str | None, root: Path, best: bool = False) -> tuple[RunFolder, Path]:
    """The run and the checkpoint that the user means.

    Args:
        reference: a run folder or a checkpoint; None is the newest run below ``root``.
        best: take a run's best checkpoint instead of its last.

    Raises:
        RunNotFound: there is none, with the reason.
    """
    path = newest_run(root).path if reference is None else Path(reference)
    if path.is_file():
        if best:
            raise RunNotFound(f"--best chooses within a run, but {path} is a checkpoint itself; leave it out")
        return RunFolder(_run_of(path)), path
    if not path.is_dir():
        raise RunNotFound(f"{path} is neither a run folder nor a checkpoint")
    run = RunFolder(path)
    checkpoint = run.best if best else run.last
    if not checkpoint.is_file():
        raise RunNotFound(f"{path} has no {checkpoint.relative_to(path)}; {_why_missing(run, best)}")
    return run, checkpoint


def _run_of(checkpoint: Path) -> Path:
    """The run a checkpoint lies in; its own folder where it lies elsewhere."""
    folder = checkpoint.absolute().parent
    return folder.parent if folder.name == "checkpoints" else folder


def _why_missing(run: RunFolder, best: bool) -> str:
    if not run.config.is_file():
        return "without a config.yaml it is no run folder either"
    return "no evaluation took place" if best else "the run ended before its first save, so start it anew"


def _versions(root: Path) -> list[int]:
    found = (re.fullmatch(r"version_(\d+)", path.name) for path in (root / LOGS).glob("version_*"))
    return [int(match[1]) for match in found if match]


def _changed_at(run: RunFolder) -> float:
    return max(path.stat().st_mtime for path in (run.config, run.summary, run.last) if path.exists())
