"""What a process and its children take, from /proc or psutil."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import psutil
import pytest
from holdfast.resources.process import ProcessFigures, WorkerFigures

STATUS = "Name:\tpython\nVmRSS:\t  2048 kB\nVmSwap:\t    16 kB\nThreads:\t7"


def test_the_kernels_kilobytes_are_bytes_here(tmp_path, write):
    write({"proc/self/status": STATUS})
    figures = ProcessFigures(tmp_path).read(0.0)
    assert (figures["rss_bytes"], figures["swap_bytes"], figures["threads"]) == (2**21, 2**14, 7)


def test_without_proc_psutil_is_asked(tmp_path):
    figures = ProcessFigures(tmp_path).read(0.0)
    assert figures["rss_bytes"] == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)
    assert figures["threads"] >= 1
    assert "swap_bytes" not in figures


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc")
def test_open_files_are_counted_against_their_limit():
    before = ProcessFigures().read(0.0)
    files = [open(os.devnull) for _ in range(30)]  # noqa: SIM115
    after = ProcessFigures().read(0.0)
    for file in files:
        file.close()
    assert after["open_files"] >= before["open_files"] + 30
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert after["open_files_share"] == pytest.approx(after["open_files"] / limit)


def test_bytes_of_the_disk_are_a_rate(tmp_path, write):
    write({"proc/self/io": "rchar: 9\nread_bytes: 1000\nwrite_bytes: 0"})
    process = ProcessFigures(tmp_path)
    assert "disk_read_bytes_per_s" not in process.read(0.0)
    write({"proc/self/io": "rchar: 9\nread_bytes: 1000\nwrite_bytes: 8192"})
    figures = process.read(4.0)
    assert (figures["disk_read_bytes_per_s"], figures["disk_write_bytes_per_s"]) == (0, 2048)


def test_children_are_workers():
    before = WorkerFigures().read(0.0)["workers"]
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    figures = WorkerFigures().read(0.0)
    child.communicate(b"\n")
    assert figures["workers"] == before + 1
    assert figures["workers_rss_bytes"] > 0
    assert WorkerFigures().read(0.0)["workers"] == before
