"""What this process and its children take: memory, threads, open files, bytes read and written.

Knows nothing about limits of control groups.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

import psutil

from .kernel_file import KernelFile
from .reader import Rates

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


class ProcessFigures:
    """From /proc where there is one, else what psutil knows."""

    every_s = 1.0

    def __init__(self, root: str | os.PathLike[str] = "/") -> None:
        own = Path(root) / "proc/self"
        self._status, self._io = KernelFile(own / "status"), KernelFile(own / "io")
        self._open_files = own / "fd"
        self._process = psutil.Process()
        self._rates = Rates()

    def read(self, now: float) -> Mapping[str, float]:
        figures = self._from_status() or self._from_psutil()
        figures |= self._files()
        rates = self._rates(now, self._counts())
        return figures | {f"{name}_per_s": rate for name, rate in rates.items()}

    def _from_status(self) -> dict[str, float]:
        status = self._status.numbers()
        if "VmRSS" not in status:
            return {}
        sizes = {"rss_bytes": "VmRSS", "swap_bytes": "VmSwap"}
        found = {name: 1024.0 * status[key] for name, key in sizes.items() if key in status}
        return {**found, "threads": float(status["Threads"])}

    def _from_psutil(self) -> dict[str, float]:
        with self._process.oneshot():
            return {
                "rss_bytes": float(self._process.memory_info().rss),
                "threads": float(self._process.num_threads()),
            }

    def _files(self) -> dict[str, float]:
        if (num := self._num_open_files()) is None:
            return {}
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if resource else -1
        share = {"open_files_share": num / limit} if limit > 0 else {}
        return {"open_files": float(num), **share}

    def _num_open_files(self) -> int | None:
        with contextlib.suppress(OSError):
            # from Linux 6.2 on the folder's size is their number
            return self._open_files.stat().st_size or len(os.listdir(self._open_files))
        return self._process.num_fds() if hasattr(self._process, "num_fds") else None

    def _counts(self) -> dict[str, float]:
        """So far; page faults that waited for a disk and those that did not, bytes read and written."""
        counts: dict[str, float] = {}
        if resource is not None:
            usage = resource.getrusage(resource.RUSAGE_SELF)
            counts = {"major_faults": usage.ru_majflt, "minor_faults": usage.ru_minflt}
        bytes_so_far = self._io.numbers()
        names = {"read_bytes": "disk_read_bytes", "write_bytes": "disk_write_bytes"}
        return counts | {name: bytes_so_far[key] for key, name in names.items() if key in bytes_so_far}


class WorkerFigures:
    """The children of this process and theirs: loader workers, environments in processes."""

    every_s = 10.0  # all processes of the machine are looked at

    def __init__(self) -> None:
        self._process = psutil.Process()

    def read(self, now: float) -> Mapping[str, float]:
        sizes = []
        for child in self._process.children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it may end meanwhile
                sizes.append(child.memory_info().rss)
        return {"workers": float(len(sizes)), "workers_rss_bytes": float(sum(sizes))}
