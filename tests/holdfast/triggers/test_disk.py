"""Disk space: the alarm, and the space set aside."""

from __future__ import annotations

import errno
import os

import pytest
from holdfast.triggers import Disk, Reserve
from holdfast.triggers.disk import MIB, Free, free_space


class Space:
    """Free space as the test sets it."""

    def __init__(self) -> None:
        self.free = Free(10_000 * MIB, 10_000)

    def __call__(self, folder) -> Free:
        return self.free


@pytest.fixture
def space() -> Space:
    return Space()


def start(run, space, **settings) -> Disk:
    disk = Disk(**{"look": space, "reserve": False, **settings})
    disk.start(run.context)
    return disk


def test_it_asks_for_an_early_save_when_another_might_not_fit(run, space):
    run.save_bytes = 100 * MIB
    disk = start(run, space)
    disk.poll()
    assert disk.fired() is None
    space.free = Free(149 * MIB, 10_000)
    disk.poll()
    assert not disk.fired().is_stopping
    assert "149 MiB are free" in disk.fired().message
    assert "may need 150 MiB" in disk.fired().message


def test_a_folder_that_may_hold_no_more_files_is_full_too(run, space):
    disk = start(run, space)
    space.free = Free(10_000 * MIB, 3)
    disk.poll()
    assert "and 3 files" in disk.fired().message


def test_a_file_system_that_does_not_count_files_is_not_full(run, space):
    disk = start(run, space)
    space.free = Free(10_000 * MIB, None)
    disk.poll()
    assert disk.fired() is None


def test_a_disk_at_the_edge_does_not_make_the_run_save_all_the_time(run, space):
    disk = start(run, space, least_bytes=100 * MIB)
    num_alarms = 0
    for free in (99, 101, 98, 150, 90, 199, 50):
        space.free = Free(free * MIB, None)
        disk.poll()
        if disk.fired():
            num_alarms += 1
            disk.rearm(disk.fired())
    assert num_alarms == 1
    space.free = Free(201 * MIB, None)
    disk.poll()
    space.free = Free(99 * MIB, None)
    disk.poll()
    assert disk.fired()


def test_what_a_save_itself_takes_for_a_moment_is_no_alarm(run, space):
    disk = start(run, space)
    run.is_saving, space.free = True, Free(0, 0)
    disk.poll()
    assert disk.fired() is None


def test_space_is_set_aside_given_up_for_a_save_and_taken_again(run, space, tmp_path):
    disk = start(run, space, reserve=True, least_bytes=MIB)
    disk.poll()
    assert disk.reserved_bytes == MIB
    assert (tmp_path / Reserve.NAME).stat().st_blocks * 512 >= MIB
    disk.release()
    assert disk.reserved_bytes == 0
    space.free = Free(MIB + 1, None)
    disk.poll()
    assert disk.reserved_bytes == 0  # it would take the last
    space.free = Free(10 * MIB, None)
    disk.poll()
    assert disk.reserved_bytes == MIB
    disk.stop()
    assert list(tmp_path.iterdir()) == []


def test_the_space_set_aside_grows_with_the_saves(run, space):
    disk = start(run, space, reserve=True, least_bytes=MIB)
    disk.poll()
    run.save_bytes = 2 * MIB
    disk.poll()
    assert disk.reserved_bytes == 3 * MIB


def test_a_platform_that_cannot_set_space_aside_says_so_once(run, tmp_path):
    reserve = Reserve(tmp_path, run.context.note, allocate=None)
    assert not reserve.hold(MIB)
    assert not reserve.hold(MIB)
    assert len(run.notes) == 1
    assert "posix_fallocate" in run.notes[0]


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSPC])
def test_a_refusal_leaves_no_file_and_only_a_lack_of_support_is_mentioned(run, tmp_path, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    reserve = Reserve(tmp_path, run.context.note, refuse)
    assert not reserve.hold(MIB)
    assert list(tmp_path.iterdir()) == []
    assert len(run.notes) == (code == errno.EOPNOTSUPP)


def test_space_that_is_only_promised_is_said_to_be(run, tmp_path):
    reserve = Reserve(tmp_path, run.context.note, lambda descriptor, _, size: os.ftruncate(descriptor, size))
    assert reserve.hold(MIB)
    assert "promises space" in run.notes[0]


def test_real_figures_come_from_the_folders_file_system(tmp_path):
    free = free_space(tmp_path)
    assert 0 < free.num_bytes <= os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize
    assert free.num_files is None or free.num_files > 0


def test_a_factor_that_cannot_hold_a_save_is_refused():
    with pytest.raises(ValueError, match="factor"):
        Disk(factor=0.5)
