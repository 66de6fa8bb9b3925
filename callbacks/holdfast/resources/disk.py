"""What is free on the file systems a run writes to, and whether one of them is reached by a network.

Knows nothing about what is written.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from .kernel_file import read_once

NETWORKS = {
    *("9p", "afs", "beegfs", "ceph", "cephfs", "cifs", "fuse", "glusterfs", "gpfs", "lustre", "ncpfs"),
    *("nfs", "nfs4", "pvfs2", "smb3", "smbfs", "virtiofs"),
}


class Free(NamedTuple):
    """What is left on a file system; None where it does not count its files."""

    num_bytes: int
    num_files: int | None


def free_space(folder: Path) -> Free:
    """What this process may still write beside ``folder``'s files."""
    if not hasattr(os, "statvfs"):
        return Free(shutil.disk_usage(folder).free, None)
    figures = os.statvfs(folder)
    return Free(figures.f_bavail * figures.f_frsize, figures.f_favail if figures.f_files else None)


class DiskFigures:
    """Of the file system of ``folder``, and of shared memory, which loader workers hand batches over in."""

    every_s = 5.0

    def __init__(self, folder: Path, root: str | os.PathLike[str] = "/") -> None:
        self._folder, self._shared = folder, Path(root) / "dev/shm"

    def read(self, now: float) -> Mapping[str, float]:
        free = free_space(self._folder)
        size = shutil.disk_usage(self._folder).total
        figures = {"disk_free_bytes": float(free.num_bytes), "disk_size_bytes": float(size)}
        if free.num_files is not None:
            figures["disk_free_files"] = float(free.num_files)
        if self._shared.is_dir():
            usage = shutil.disk_usage(self._shared)
            figures |= {"shm_free_bytes": float(usage.free), "shm_share": usage.used / max(1, usage.total)}
        return figures


def network_of(folder: Path, root: str | os.PathLike[str] = "/") -> str | None:
    """Type of the file system ``folder`` is on, where a network lies between; None elsewhere."""
    found = Path("/"), ""
    for line in read_once(Path(root) / "proc/self/mountinfo").splitlines():
        fields, _, rest = line.partition(" - ")
        mounted = Path(fields.split(" ")[4].replace("\\040", " "))
        if folder.is_relative_to(mounted) and mounted.is_relative_to(found[0]):
            found = mounted, rest.split(" ")[0]
    return found[1] if found[1].partition(".")[0] in NETWORKS else None
