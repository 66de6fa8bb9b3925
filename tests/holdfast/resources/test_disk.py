"""What is free on a disk, and which file systems lie behind a network."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from holdfast.resources.disk import DiskFigures, free_space, network_of

ROOT = "22 1 254:0 / / rw - ext4 /dev/vda rw"


def test_free_space_is_what_others_than_root_may_take(tmp_path):
    figures = DiskFigures(tmp_path).read(0.0)
    system = os.statvfs(tmp_path)
    assert figures["disk_free_bytes"] == pytest.approx(system.f_bavail * system.f_frsize, rel=0.05)
    assert figures["disk_size_bytes"] == system.f_blocks * system.f_frsize


def test_shared_memory_is_looked_at_where_there_is_some(tmp_path, monkeypatch):
    assert "shm_share" not in DiskFigures(tmp_path, tmp_path).read(0.0)
    (tmp_path / "dev/shm").mkdir(parents=True)
    assert "shm_share" in DiskFigures(tmp_path, tmp_path).read(0.0)


def test_without_statvfs_there_is_another_way(tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path).free
    monkeypatch.delattr(os, "statvfs")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(3, 2, free))
    assert free_space(tmp_path) == (free, None)


@pytest.mark.parametrize(
    ("kind", "network"),
    [("nfs4", "nfs4"), ("fuse.sshfs", "fuse.sshfs"), ("lustre", "lustre"), ("ext4", None), ("tmpfs", None)],
)
def test_a_network_is_known_by_the_type_of_the_innermost_mount(tmp_path, write, kind, network):
    write({"proc/self/mountinfo": f"{ROOT}\n30 22 0:1 / /data rw shared:1 - {kind} server:/x rw"})
    assert network_of(Path("/data/runs/1"), tmp_path) == network
    assert network_of(Path("/database"), tmp_path) is None


def test_a_local_disk_mounted_inside_a_network_is_local(tmp_path, write):
    outer, inner = "30 22 0:1 / /data rw - nfs s:/x rw", "31 30 0:2 / /data/scratch rw - xfs /dev/sdb rw"
    write({"proc/self/mountinfo": f"{ROOT}\n{inner}\n{outer}"})
    assert network_of(Path("/data/scratch/run"), tmp_path) is None
    assert network_of(Path("/data/run"), tmp_path) == "nfs"
