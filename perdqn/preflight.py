"""What a run will take, before it begins: memory, disk, size and seconds of a save, time of training.

Knows nothing about command lines, and measures nothing: it reckons with what `perdqn.calibration` found.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import gymnasium
import torch

from perdqn.calibration import Calibration, raw_row_bytes
from perdqn.config import Config, row_bytes
from perdqn.config.wording import sentence
from perdqn.learning.networks import build_network

LONG_RUN_ENV_STEPS = 500_000  # a calibration of some seconds is not noticed in a run of minutes
MIB = 2**20
PROCESS_BYTES = 224 * MIB  # what training brings into a process, compilers at their first use included
_LEAST_PROCESS_BYTES = 80 * MIB  # without them
_ENV_BYTES, _ENV_PROCESS_BYTES = 1 * MIB, 64 * MIB
_CHANGING_BYTES = 22  # of a row alive, written whole in each save: priority, leaf, draws, two flags
_WEIGHTS_SAVED = 4  # online, target, and Adam's two moments
_WEIGHTS_HELD = 5  # and the gradients
_LOGGED_BYTES = 20 * 70  # a row of figures in TensorBoard's file
_MONITOR_BYTES = 16 * MIB  # files of RUN/monitor are bounded
_RESERVE_SHARE, _LEAST_RESERVE_BYTES = 1.5, 16 * MIB  # as holdfast's emergency save sets aside
_TURNOVER = 1 / 16  # rows overwritten since, in segments whose other rows are alive
_ENCODED_BYTES_S = 300e6  # compressing and copying
_NEAR = 0.9
_DRIFT = 1.25  # faster or slower for minutes on end, which seconds do not show; docs/observability.md
Needs = dict[str, int]


class Room(NamedTuple):
    """What there is, in bytes: ``memory`` and ``disk`` that are free, and where the run will lie."""

    memory: int
    disk: int
    folder: str = "."


class Keeping(NamedTuple):
    """How much of a run is kept: generations of both kinds, seconds between saves, updates a logged row."""

    num_regular: int = 2
    num_emergency: int = 1
    save_every_s: float = 60.0
    log_every: int = 200
    has_reserve: bool = True


@dataclass
class Preflight:
    """What was found; bytes and seconds.

    Attributes:
        memory, disk: by part, when the replay is full and all is kept.
        checkpoint_bytes: one whole state, the replay's segments included.
        save_bytes, save_s: what a regular save writes then, and how long that takes; None: not measured.
        training_s: lowest, expected and highest; None where that is not known.
    """

    memory: Needs
    disk: Needs
    room: Room
    checkpoint_bytes: int
    save_bytes: int
    save_s: float | None = None
    training_s: tuple[float, float, float] | None = None
    calibration: Calibration | None = None
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        measured = self.calibration and self.calibration._asdict()
        return {**asdict(self), "room": self.room._asdict(), "calibration": measured}

    def table(self) -> str:
        """A line a resource."""
        room = self.room
        rows = [
            (
                "memory",
                f"{_size(_sum(self.memory))} of {_size(room.memory)}: {_largest(self.memory)}",
            ),
            ("disk", f"{_size(_sum(self.disk))} of {_size(room.disk)}: {_largest(self.disk)}"),
            ("checkpoint", f"{_size(self.checkpoint_bytes)}, a save writes {_size(self.save_bytes)}"),
        ]
        if self.save_s is not None:
            rows[2] = ("checkpoint", f"{rows[2][1]} in {_time(self.save_s)}")
        if self.training_s is not None:
            low, expected, high = map(_time, self.training_s)
            rows.append(("training", f"{expected} ({low} to {high})"))
        return "\n".join(f"{name:<11}{text}" for name, text in rows)


def is_long(config: Config) -> bool:
    """Whether calibrating is worth its seconds: by the budget, so that no clock decides it."""
    return (config.total_env_steps or 0) >= LONG_RUN_ENV_STEPS


def predict(
    config: Config,
    spec: Any,
    room: Room,
    keeping: Keeping = Keeping(),  # noqa: B008 - immutable
    calibration: Calibration | None = None,
) -> Preflight:
    """What the run will take; faults where it cannot fit, warnings where that is near or not known.

    Without a calibration, sizes are upper bounds where something is compressed; only what is certain is a
    fault then.
    """
    weights = weight_bytes(config, spec)

    def reckon(capacity: int, is_least: bool = False) -> Preflight:
        return _reckon(_with(config, capacity), spec, room, keeping, calibration, weights, is_least)

    most = reckon(config.replay.capacity)
    least = reckon(config.replay.capacity, is_least=True)
    most.faults, most.warnings = _judge(most, least, config, spec, keeping, reckon)
    if calibration is not None:
        most.save_s = _save_seconds(most, config, spec, calibration, keeping)
        most.training_s = training_seconds(config, spec, calibration, most.save_s, keeping)
    return most


def _reckon(
    config: Config,
    spec: Any,
    room: Room,
    keeping: Keeping,
    calibration: Calibration | None,
    weights: int,
    is_least: bool,
) -> Preflight:
    memory = memory_needs(config, spec, weights, calibration, is_least)
    capacity, raw = config.replay.capacity, raw_row_bytes(spec)
    share = calibration.saved_share if calibration else 0.0 if is_least else 1.0
    segments = int(capacity * raw * share * (1 + _TURNOVER))
    state = _WEIGHTS_SAVED * weights + capacity * _CHANGING_BYTES
    save = state + int(_rows_between_saves(config, calibration, keeping) * raw * share)
    num_kept = keeping.num_regular + keeping.num_emergency + 1  # and the one being written
    updates = max(0, (config.total_env_steps or 0) - config.learner.warmup_env_steps)
    logged = int(updates / config.learner.train_every / max(1, keeping.log_every)) * _LOGGED_BYTES
    reserve = max(_LEAST_RESERVE_BYTES, int(_RESERVE_SHARE * save)) if keeping.has_reserve else 0
    disk = {
        "replay segments": segments,
        "generations": num_kept * state,
        "best weights": 2 * weights,
        "reserve": reserve,
        "logs": logged + _MONITOR_BYTES,
    }
    return Preflight(memory, disk, room, state + segments, save, calibration=calibration)


def memory_needs(
    config: Config, spec: Any, weights: int, calibration: Calibration | None = None, is_least: bool = False
) -> Needs:
    """Bytes by part, on top of what the process takes now, once the replay is full."""
    replay = config.replay
    each = float(row_bytes(spec, replay.storage))
    if replay.storage == "lz4" and (calibration or not is_least):
        each += calibration.image_bytes if calibration else row_bytes(spec) - each
    is_doubled = replay.device == "learner" and not torch.cuda.is_available()
    num_envs = config.env.num_envs + config.evaluation.num_envs
    of_env = _ENV_PROCESS_BYTES if config.env.vectorization == "async" else _ENV_BYTES
    return {
        "replay": int(replay.capacity * each * (1 + is_doubled)),
        "networks": (_WEIGHTS_HELD + config.learner.act_ahead) * weights,
        "environments": num_envs * of_env,
        "process": _LEAST_PROCESS_BYTES if is_least else PROCESS_BYTES,
    }


def weight_bytes(config: Config, spec: Any) -> int:
    """Of one network."""
    with torch.device("meta"):
        network = build_network(spec, config.network, config.head, config.learner)
    return sum(each.numel() * each.element_size() for each in network.parameters())


def _rows_between_saves(config: Config, calibration: Calibration | None, keeping: Keeping) -> float:
    if calibration is None:
        return 0.0
    return min(config.replay.capacity, keeping.save_every_s / calibration.step_s.mean)


def _save_seconds(
    found: Preflight, config: Config, spec: Any, calibration: Calibration, keeping: Keeping
) -> float:
    """A save's own time, then that of what it writes, the rows of it compressed."""
    raw = found.save_bytes + _rows_between_saves(config, calibration, keeping) * raw_row_bytes(spec)
    writing = found.save_bytes / calibration.write_bytes_s
    return calibration.save_start_s + writing + raw / _ENCODED_BYTES_S


def training_seconds(
    config: Config, spec: Any, calibration: Calibration, save_s: float, keeping: Keeping
) -> tuple[float, float, float] | None:
    """Acting, updates, evaluations and saves; the lowest, the expected and the highest.

    The episodes of evaluations are as long as those seen in the calibration at least, as long as they may be
    at most, and the geometric mean is expected. None for a budget in episodes: their length is not known.
    """
    total = config.total_env_steps
    if total is None:
        return None
    settings = config.evaluation
    num_evaluations = total // settings.every_env_steps if settings.every_env_steps else 0
    chunks = math.ceil(settings.episodes / settings.num_envs)
    longest = float(min(settings.max_episode_steps, _step_limit(config)))
    shortest = min(calibration.episode_steps, longest)
    warmup = min(total, config.learner.warmup_env_steps)

    def seconds(step_s: float, episode_steps: float) -> float:
        evaluation = calibration.evaluation_start_s + chunks * episode_steps * calibration.evaluation_step_s
        training = warmup * calibration.act_s + (total - warmup) * step_s + num_evaluations * evaluation
        return training * (1 + save_s / max(keeping.save_every_s, save_s / 0.005))

    pace = calibration.step_s
    return (
        seconds(pace.low, shortest) / _DRIFT,
        seconds(pace.mean, math.sqrt(shortest * longest)),
        seconds(pace.high, longest) * _DRIFT,
    )


def _step_limit(config: Config) -> float:
    try:
        return float(gymnasium.spec(config.env.id).max_episode_steps or math.inf)
    except gymnasium.error.Error:  # an environment by import path
        return math.inf


def _with(config: Config, capacity: int) -> Config:
    return replace(config, replay=replace(config.replay, capacity=capacity))


def _judge(
    most: Preflight,
    least: Preflight,
    config: Config,
    spec: Any,
    keeping: Keeping,
    reckon: Callable[[int], Preflight],
) -> tuple[list[str], list[str]]:
    """Faults, by what is certain, and warnings."""
    faults, warnings, room = [], [], most.room
    capacity, usable = config.replay.capacity, config.replay.memory_alert_fraction * room.memory
    is_raw_image = config.replay.storage == "raw" and any(c.is_byte_image for c in spec.columns)
    storage = ", or model.replay.storage lz4" if is_raw_image else ""
    size = f"{_size(_sum(most.memory))} when it is full, {_size(room.memory)} are available"
    if _sum(most.memory) > usable:
        fitting = _largest_capacity(capacity, lambda c: _sum(reckon(c).memory) <= usable)
        remedy = f"{_at_most(fitting)}{storage}"
        must = f"fit into memory (the run needs {size})"
        if _sum(least.memory) > room.memory:
            faults.append(sentence("model.replay.capacity", must, capacity, remedy))
        else:
            warnings.append(f"model.replay.capacity leaves little memory: the run needs {size}; {remedy}")
    size = f"{_size(_sum(most.disk))} on the disk of {room.folder}, {_size(room.disk)} are free"
    usable = _NEAR * room.disk
    if _sum(most.disk) > usable:
        fitting = _largest_capacity(capacity, lambda c: _sum(reckon(c).disk) <= usable)
        fewer = ", checkpoint.keep 1" if keeping.num_regular > 1 else ""
        remedy = f"{_at_most(fitting)}{fewer}, or another disk by trainer.default_root_dir"
        must = f"leave room for its saves (they need {size})"
        if _sum(least.disk) > room.disk:
            faults.append(sentence("model.replay.capacity", must, capacity, remedy))
        else:
            warnings.append(f"model.replay.capacity may fill the disk: saves need up to {size}; {remedy}")
    return faults, warnings


def _largest_capacity(most: int, fits: Callable[[int], bool]) -> int:
    """By bisection, since what is needed grows with it."""
    return bisect.bisect_right(range(1, most), False, key=lambda capacity: not fits(capacity))


def _at_most(capacity: int) -> str:
    return f"use at most {capacity}" if capacity else "no capacity is sure to fit"


def _sum(needs: Needs) -> int:
    return sum(needs.values())


def _largest(needs: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {_size(needs[name])}" for name in sorted(needs, key=lambda n: -needs[n])[:3])


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / MIB:.1f} MiB"


def _time(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
