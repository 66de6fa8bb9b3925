"""What is predicted before a run, against what is counted by hand and what small runs really take."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from holdfast.resources.disk import Free
from holdfast.resources.memory import MemoryFigures, Usage

from perdqn import assembly
from perdqn.__main__ import main
from perdqn.acting.environment import describe
from perdqn.calibration import Calibration, Pace, calibrate, measure_writing, pace_of
from perdqn.config import Config, ConfigError, EnvConfig, from_dict
from perdqn.module import PERDQN
from perdqn.preflight import Keeping, Room, is_long, predict, training_seconds
from perdqn.replay.prioritized import PrioritizedReplay
from perdqn.transition import Column, EnvSpec
from tests.perdqn.small_runs import SMALL, trainer

GIB, MIB = 2**30, 2**20
PLENTY = Room(64 * GIB, 64 * GIB)
IMAGES = EnvSpec((Column("image", (84, 84), np.dtype(np.uint8)),), True, 2, frame_stack=4)
MEASURED = Calibration(
    act_s=0.001,
    step_s=Pace(0.002, 0.004, 0.008),
    evaluation_start_s=1.0,
    evaluation_step_s=0.01,
    episode_steps=5.0,
    image_bytes=400.0,
    saved_share=0.1,
    save_start_s=0.01,
    write_bytes_s=100e6,
)


def config(**sections: Any) -> Config:
    return from_dict(sections)


def images(storage: str = "raw", capacity: int = 1_000_000) -> Config:
    replay = {"capacity": capacity, "storage": storage}
    return config(replay=replay, network={"class_path": "nature_cnn"}, env={"frame_stack": 4})


@pytest.mark.parametrize("id", ["CartPole-v1", "Acrobot-v1"])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_the_memory_of_the_replay_is_what_it_counts_itself(id: str, num_envs: int) -> None:
    settings = config(env={"id": id, "num_envs": num_envs}, replay={"capacity": 30_000})
    spec = describe(settings.env)
    counted = PrioritizedReplay(spec, num_envs, 30_000).get_memory_usage()["reserved_bytes"]
    assert predict(settings, spec, PLENTY).memory["replay"] == pytest.approx(counted, rel=0.02)


def test_a_replay_on_the_learners_device_is_there_twice_without_a_gpu() -> None:
    spec = describe(EnvConfig())
    host, learner = (
        predict(config(replay={"device": device}), spec, PLENTY).memory for device in ("host", "learner")
    )
    assert learner["replay"] == (1 if torch.cuda.is_available() else 2) * host["replay"]


def test_what_cannot_fit_into_memory_names_a_capacity_that_does() -> None:
    room = Room(2 * GIB, 64 * GIB)
    found = predict(images(), IMAGES, room)
    assert len(found.faults) == 1
    assert found.faults[0].startswith("model.replay.capacity must fit into memory (the run needs 6.")
    assert found.faults[0].endswith(", or model.replay.storage lz4")
    fitting = int(found.faults[0].rpartition("at most ")[2].split(",")[0])
    told = predict(images(capacity=fitting), IMAGES, room)
    assert not [text for text in told.faults + told.warnings if "memory" in text]
    assert predict(images(capacity=int(1.05 * fitting)), IMAGES, room).warnings


def test_compressed_frames_are_refused_only_for_what_is_certain() -> None:
    small = Room(2 * GIB, 64 * GIB)
    unknown, measured = (predict(images("lz4"), IMAGES, small, calibration=c) for c in (None, MEASURED))
    assert unknown.faults == []
    assert "leaves little memory" in unknown.warnings[0]
    assert measured.faults == measured.warnings == []
    assert measured.memory["replay"] == 1_000_000 * (400 + 12 + 31)
    tight = predict(images("lz4"), IMAGES, Room(GIB // 4, 64 * GIB), calibration=MEASURED)
    assert "must fit into memory" in tight.faults[0]


def test_a_disk_that_cannot_hold_the_saves_names_what_to_change() -> None:
    room = Room(64 * GIB, GIB // 4, "/somewhere")
    (fault,) = predict(images(), IMAGES, room, calibration=MEASURED).faults
    assert fault.startswith("model.replay.capacity must leave room for its saves")
    assert "/somewhere" in fault
    assert "checkpoint.keep 1" in fault
    fitting = int(fault.rpartition("at most ")[2].split(",")[0])
    assert predict(images(capacity=fitting), IMAGES, room, calibration=MEASURED).faults == []


def test_where_not_even_an_empty_replay_fits_no_capacity_is_proposed() -> None:
    (fault,) = predict(images(), IMAGES, Room(64 * GIB, 2**24, "/tiny"), calibration=MEASURED).faults
    assert "no capacity is sure to fit" in fault
    assert "use at most" not in fault


def test_a_checkpoint_is_its_weights_its_segments_and_22_bytes_a_row() -> None:
    settings = config(network={"class_path": "mlp", "init_args": {"hidden_sizes": [8]}})
    spec = describe(settings.env)
    weights = sum(each.nbytes for each in PERDQN(**vars(settings)).online.parameters())
    raw = 4 * 4 + 8  # four floats, action and reward
    expected = 4 * weights + 100_000 * 22 + int(100_000 * raw * 0.1 * 17 / 16)
    assert predict(settings, spec, PLENTY, calibration=MEASURED).checkpoint_bytes == expected


def test_training_time_adds_acting_updates_evaluations_and_saves() -> None:
    settings = config(
        learner={"warmup_env_steps": 100},
        evaluation={"every_env_steps": 500, "episodes": 10, "num_envs": 5, "max_episode_steps": 20},
        total_env_steps=1_100,
    )
    spec = describe(settings.env)
    found = training_seconds(settings, spec, MEASURED, save_s=0.0, keeping=Keeping())
    # warm-up 0.1; 1,000 steps of 2, 4, 8 ms; two evaluations of two chunks of 5, 10, 20 steps after 1 s
    low, expected, high = 0.1 + 2 + 2 * 1.1, 0.1 + 4 + 2 * 1.2, 0.1 + 8 + 2 * 1.4
    assert found == pytest.approx((low / 1.25, expected, high * 1.25))  # and the machine's own drift
    assert training_seconds(
        settings, spec, MEASURED, save_s=6.0, keeping=Keeping(save_every_s=600.0)
    ) == pytest.approx(tuple(1.005 * seconds for seconds in found))
    by_episodes = replace(settings, total_env_steps=None, total_episodes=5)
    assert training_seconds(by_episodes, spec, MEASURED, 0.0, Keeping()) is None


def test_the_pace_is_that_of_the_slowest_and_fastest_windows() -> None:
    marks = [(0.0, 0), (1.0, 10), (3.0, 20), (3.5, 30)]
    assert pace_of(marks) == pytest.approx(Pace(0.05, 3.5 / 30, 0.2))


def test_only_a_long_budget_is_calibrated_by_itself() -> None:
    assert not is_long(config(total_env_steps=100_000))
    assert is_long(config(total_env_steps=1_000_000))
    assert not is_long(config(total_env_steps=None, total_episodes=10**9))


def test_writing_leaves_nothing_behind_and_is_timed_by_the_clock_given(tmp_path: Path) -> None:
    ticks = iter(range(100))
    assert measure_writing(tmp_path, lambda: float(next(ticks))) == 8 * 2**20 / 0.1
    assert list(tmp_path.iterdir()) == []


def counting_clock() -> Any:
    """A tenth of a second passes at each look, so that a calibration is short wherever it runs."""
    ticks = iter(range(10**6))
    return lambda: next(ticks) / 10


def test_a_calibration_touches_no_random_stream_and_changes_no_run(tmp_path: Path) -> None:
    settings = from_dict(SMALL)
    one, other = PERDQN(**SMALL), PERDQN(**SMALL)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    threads = torch.get_num_threads()
    found = calibrate(settings, tmp_path, 0.5, counting_clock())
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    assert torch.get_num_threads() == threads
    assert list(tmp_path.iterdir()) == []
    assert found.act_s >= 0
    assert 0 < found.step_s.low <= found.step_s.mean <= found.step_s.high
    trainer().fit(one)
    calibrate(settings, tmp_path, 0.5, counting_clock())
    trainer().fit(other)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def options(root: Path, **more: Any) -> list[str]:
    given = {"model.replay.capacity": 500, "model.total_env_steps": 120, "trainer.default_root_dir": root}
    given |= {"model.learner.warmup_env_steps": 60, "model.evaluation.every_env_steps": "null"}
    given |= {"model.evaluation.test_episodes": 1, "trainer.enable_progress_bar": False, **more}
    return [f"--{name}={value}" for name, value in given.items()]


def test_a_short_run_is_told_what_it_takes_without_being_calibrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(assembly, "calibrate", lambda *_, **__: pytest.fail("a short run was delayed"))
    assert main(["fit", *options(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "memory " in said
    assert "disk " in said
    written = json.loads((tmp_path / "lightning_logs/version_0/monitor/preflight.json").read_text())
    assert written["memory"]["replay"] == 500 * (4 * 4 + 31)
    assert written["training_s"] is None


def test_check_calibrates_where_asked_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(assembly, "calibrate", lambda *_, **__: MEASURED)
    assert main(["check", "--calibrate", *options(tmp_path)]) == 0
    assert "training" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def in_a_small_container(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    group = root / "sys/fs/cgroup"
    texts = {group / "memory.max": 600 * MIB, group / "memory.current": 200 * MIB, group / "memory.stat": ""}
    for path, text in {**texts, root / "proc/self/cgroup": "0::/"}.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    monkeypatch.setattr(assembly, "MemoryFigures", lambda: MemoryFigures(root))


def on_a_small_disk(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.setattr(assembly, "free_space", lambda _: Free(20 * MIB, None))


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (in_a_small_container, ("must fit into memory", "400.0 MiB are available", "use at most ")),
        (on_a_small_disk, ("must leave room for its saves", "20.0 MiB are free", "trainer.default_root_dir")),
    ],
)
def test_what_cannot_fit_is_refused_before_anything_is_written(
    place: Any,
    said: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place(monkeypatch, tmp_path / "machine")
    runs = tmp_path / "runs"
    assert main(["fit", *options(runs, **{"model.replay.capacity": 40_000_000})]) == 2
    told = capsys.readouterr().err
    assert told.startswith("perdqn fit: model.replay.capacity ")
    assert all(words in told for words in said)
    assert not runs.exists()


def test_swap_is_no_room_for_a_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = Usage("the machine", limit_bytes=100, used_bytes=70, free_bytes=90)  # 60 of it swap
    monkeypatch.setattr(MemoryFigures, "tightest", lambda _: usage)
    assert assembly.get_available_bytes() == 30


def test_memory_and_other_faults_are_told_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(assembly, "get_available_bytes", lambda: 2**20)
    with pytest.raises(ConfigError) as refused:
        assembly.RunCLI("fit", options(tmp_path, **{"model.replay.alpha": 3}))
    assert [fault.partition(" ")[0] for fault in refused.value.faults] == [
        "model.replay.alpha",
        "model.replay.capacity",
    ]
