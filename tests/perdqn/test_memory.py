"""How much memory may be used: containers, alerts, giving back."""

from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from perdqn.module import PERDQN
from perdqn.replay import prioritized
from perdqn.replay.memory import Memory, memory
from perdqn.replay.prioritized import PrioritizedReplay
from perdqn.transition import OBS, Column, EnvSpec

MIB = 2**20
UNLIMITED_V1 = 9223372036854771712


@pytest.fixture
def control_groups(tmp_path, monkeypatch):
    """Writes fake cgroup files and returns the memory found in them; the machine has 64 GiB."""
    of_machine = SimpleNamespace(total=64 * 1024 * MIB, available=64 * 1024 * MIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: of_machine)

    def look(membership, files):
        within = {f"sys/fs/cgroup/{path}": f"{text}\n" for path, text in files.items()}
        for path, text in {**within, "proc/self/cgroup": membership}.items():
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return memory(tmp_path)

    return look


def test_version_2_takes_the_tightest_ancestor(control_groups):
    files = {"memory.max": "max", "pod/memory.max": 600 * MIB, "pod/box/memory.max": 900 * MIB}
    assert control_groups("0::/pod/box\n", files).limit_bytes == 600 * MIB


def test_version_2_takes_its_own_where_that_is_tightest(control_groups):
    files = {"pod/memory.max": 600 * MIB, "pod/box/memory.max": 90 * MIB, "pod/other/memory.max": 1}
    assert control_groups("0::/pod/box\n", files).limit_bytes == 90 * MIB


def test_version_2_inside_a_container_sees_its_limit_at_the_root(control_groups):
    assert control_groups("0::/\n", {"memory.max": 600 * MIB}).limit_bytes == 600 * MIB


def test_version_1_looks_under_the_memory_controller(control_groups):
    membership = "12:cpu,cpuacct:/docker/a\n7:memory:/docker/a\n1:name=systemd:/docker/a\n"
    files = {
        "memory/memory.limit_in_bytes": UNLIMITED_V1,
        "memory/docker/a/memory.limit_in_bytes": 600 * MIB,
        "cpu,cpuacct/docker/a/memory.limit_in_bytes": 1,
    }
    assert control_groups(membership, files).limit_bytes == 600 * MIB


def test_version_1_whose_path_is_the_hosts_still_finds_the_mounted_limit(control_groups):
    files = {"memory/memory.limit_in_bytes": 600 * MIB}
    assert control_groups("7:memory:/docker/unseen\n", files).limit_bytes == 600 * MIB


@pytest.mark.parametrize("text", ["max", UNLIMITED_V1, "", "garbage"])
def test_no_limit_means_the_machines_memory(control_groups, text):
    assert control_groups("0::/\n7:memory:/\n", {"memory.max": text}).limit_bytes == 64 * 1024 * MIB


def test_no_control_groups_at_all_mean_the_machines_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=7, available=7))
    assert memory(tmp_path / "nothing").limit_bytes == 7


def test_version_2_counts_the_working_set_of_the_group_that_binds(control_groups):
    files = {
        "memory.max": 900 * MIB,
        "memory.current": 700 * MIB,
        "box/memory.max": 600 * MIB,
        "box/memory.current": 580 * MIB,
        "box/memory.stat": f"anon {400 * MIB}\nactive_file {60 * MIB}\ninactive_file {120 * MIB}",
    }
    assert control_groups("0::/box\n", files) == Memory(600 * MIB, 460 * MIB)


def test_version_1_counts_the_working_set_with_the_groups_below(control_groups):
    files = {
        "memory/memory.limit_in_bytes": 600 * MIB,
        "memory/memory.usage_in_bytes": 580 * MIB,
        "memory/memory.stat": f"inactive_file {MIB}\ntotal_inactive_file {120 * MIB}",
    }
    assert control_groups("7:memory:/\n", files) == Memory(600 * MIB, 460 * MIB)


def test_without_a_limit_the_process_counts_against_the_machine(control_groups):
    found = control_groups("0::/\n", {"memory.max": "max", "memory.current": 5})
    assert found.used_bytes == pytest.approx(psutil.Process().memory_info().rss, rel=0.5)


@pytest.fixture
def replay():
    return PrioritizedReplay(EnvSpec((Column(OBS, (10,), np.dtype(np.float32)),), False, 2), capacity=1000)


def fill(replay, num_rows):
    frames, flag = {OBS: np.ones((1, 10), np.float32)}, np.array([False])
    for _ in range(num_rows):
        replay.add(frames, np.array([0]), np.array([1.0]), flag, flag)


def test_memory_usage_adds_up_to_what_the_arrays_take(replay):
    usage = replay.get_memory_usage()
    assert usage["parts"][f"frames/{OBS}"] == 1000 * 40
    assert usage["parts"]["scalars"] == 1000 * (4 + 4 + 4 + 1) + 8
    assert 1000 * 8 < usage["parts"]["tree"] < 1.3 * 1000 * 8
    assert usage["reserved_bytes"] == sum(usage["parts"].values())
    assert usage["bytes_per_transition"] == usage["reserved_bytes"] / 1000
    assert usage["process_rss_bytes"] == pytest.approx(psutil.Process().memory_info().rss, rel=0.5)


def test_the_smallest_leaf_takes_a_second_tree_where_the_whole_buffer_normalises():
    spec = EnvSpec((Column(OBS, (10,), np.dtype(np.float32)),), False, 2)
    replay = PrioritizedReplay(spec, capacity=1000, weight_normalization="buffer")
    one_tree = PrioritizedReplay(spec, capacity=1000).get_memory_usage()["parts"]["tree"]
    assert replay.get_memory_usage()["parts"]["tree"] == 2 * one_tree


@pytest.mark.parametrize(("used", "alert"), [(89, False), (91, True)])
def test_the_alert_comes_above_its_share_of_the_limit(replay, monkeypatch, used, alert):
    monkeypatch.setattr(prioritized, "memory", lambda: Memory(100 * MIB, used * MIB))
    usage = replay.get_memory_usage()
    assert usage["alert"] is alert
    assert usage["limit_fraction"] == used / 100
    assert (usage["limit_bytes"], usage["used_bytes"]) == (100 * MIB, used * MIB)


def test_releasing_memory_keeps_every_row_and_says_how_much_came_back(replay):
    fill(replay, 50)
    replay.sample(8)
    released = replay.release_memory()
    assert released >= 0
    assert len(replay) == 49
    assert replay.sample(8).reward.tolist() == [1.0] * 8
    replay.check_valid()


def test_what_is_still_to_come_is_what_was_not_written_yet(replay):
    empty, reserved = replay.bytes_to_come, replay.get_memory_usage()["reserved_bytes"]
    assert empty == pytest.approx(reserved, rel=0.01)
    fill(replay, 500)
    assert replay.bytes_to_come == pytest.approx(empty / 2, rel=0.01)
    fill(replay, 1500)
    assert replay.bytes_to_come == 0


def test_a_run_tells_its_progress_and_what_memory_it_will_still_take():
    module = PERDQN(env="CartPole-v1", learner={"warmup_env_steps": 50}, total_env_steps=500)
    before = module.memory_to_come_bytes
    assert (module.progress_fraction, before) == (0.0, module.memory.bytes_to_come)
    module.experience.env_steps = 125
    assert module.progress_fraction == 0.25


def test_progress_of_a_budget_in_episodes_is_counted_in_episodes():
    module = PERDQN(env="CartPole-v1", total_env_steps=None, total_episodes=40)
    module.experience.episodes = 30
    assert module.progress_fraction == 0.75
