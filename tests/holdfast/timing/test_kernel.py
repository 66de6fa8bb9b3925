"""Figures read from files as kernels write them."""

from __future__ import annotations

from pathlib import Path

from holdfast.timing.kernel import Kernel


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


STAT = "7 (a b) c) R 1 1 1 0 -1 0 120 0 33 0 0 0 0 0 20 0 1 0 0 0 0"


def test_the_second_version_counts_what_groups_above_stop_too(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a/b\n",
            "proc/self/stat": STAT,
            "proc/self/status": "Name:\tx\nVmSwap:\t    12 kB\n",
            "proc/thread-self/schedstat": "1000 2500000000 3\n",
            "sys/fs/cgroup/a/b/cpu.stat": "usage_usec 5\nthrottled_usec 1500000\n",
            "sys/fs/cgroup/a/cpu.stat": "usage_usec 9\nthrottled_usec 500000\n",
            "sys/fs/cgroup/cpu.stat": "usage_usec 99\n",
            "sys/fs/cgroup/a/b/memory.pressure": "some avg10=0.00 total=3000000\nfull avg10=0.00 total=1\n",
            "proc/pressure/memory": "some avg10=0.00 total=9\n",
            "proc/pressure/io": "some avg10=0.00 total=4000000\n",
        },
    )
    waits = Kernel(root).read()
    assert waits.throttled_s == 2.0
    assert waits.memory_stalled_s == 3.0
    assert waits.io_stalled_s == 4.0
    assert waits.queued_s == 2.5
    assert (waits.minor_faults, waits.major_faults, waits.swapped_bytes) == (120, 33, 12 * 1024)


def test_the_first_version_counts_in_nanoseconds(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "2:cpu,cpuacct:/job\n1:memory:/job\n",
        "sys/fs/cgroup/cpu,cpuacct/job/cpu.stat": "nr_throttled 7\nthrottled_time 250000000\n",
    }
    assert Kernel(write(tmp_path, files)).read().throttled_s == 0.25


def test_what_a_kernel_does_not_tell_is_0(tmp_path: Path) -> None:
    waits = Kernel(tmp_path).read()
    assert waits.cpu_s > 0
    assert waits[3:] == (0.0, 0.0, 0.0, 0.0, 0, 0, 0)


def test_a_difference_is_field_by_field(tmp_path: Path) -> None:
    before = Kernel(tmp_path).read()
    assert before.since(before) == (0,) * 10
