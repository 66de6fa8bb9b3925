"""What a run costs here, measured for some seconds on throw-away copies of its agent and environments.

Knows nothing about what the figures are for. The process's random streams are put back as they were.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from holdfast.exact.rng import get_global_rng, set_global_rng
from holdfast.saving.save import save_generation
from holdfast.storage.generations import GenerationFolder
from holdfast.storage.parts import PartStore
from lightning.pytorch import Callback, Trainer

from perdqn.backend import choose_backend
from perdqn.config import Config
from perdqn.evaluation import make_environments, play
from perdqn.module import PERDQN

_ROWS = 1 << 14  # of the throw-away replay
_LEAST_WARMUP = 256  # env steps
_LONGEST_BUDGET = 1_000_000_000  # env steps; the clock ends it
_WINDOWS = 8
_SAVES = 4
_BIG_FILE_BYTES = 8 << 20
Clock = Callable[[], float]


class Pace(NamedTuple):
    """Seconds an env step takes: its fastest window, its mean, its slowest window."""

    low: float
    mean: float
    high: float


class Calibration(NamedTuple):
    """What was measured.

    Attributes:
        act_s: an env step without updates.
        step_s: an env step with the updates it owes.
        evaluation_start_s: making and resetting the environments of an evaluation.
        evaluation_step_s: a step of all of them together.
        episode_steps: length of the episodes seen.
        image_bytes: what the images of a row take in memory where they are compressed; else 0.
        saved_share: what zstd leaves of a row on disk.
        save_start_s: a save, whatever its size: state gathered, files made, flushed and read back.
        write_bytes_s: bytes written a second, flushed and read back.
    """

    act_s: float
    step_s: Pace
    evaluation_start_s: float
    evaluation_step_s: float
    episode_steps: float
    image_bytes: float
    saved_share: float
    save_start_s: float
    write_bytes_s: float


def calibrate(
    config: Config,
    folder: Path,
    seconds: float = 2.0,
    clock: Clock = time.perf_counter,
    trainer: dict[str, Any] | None = None,
) -> Calibration:
    """Train a copy of the run's agent for ``seconds``, act and evaluate a little, and write to ``folder``.

    A compiled run's program is compiled now if it is not on disk yet, and then found by the run.

    Args:
        config: of the run; must be without faults.
        folder: where the run will lie; nothing stays in it.
        trainer: arguments that decide where and how updates are computed: accelerator, devices, precision.
    """
    with _leaving_no_trace():
        model = PERDQN(**vars(_shortened(config)))
        step_s, save = _train(model, seconds, clock, trainer or {}, folder)
        try:
            act_s = _time_acting(model, seconds / 8, clock)
            start_s, evaluation_s = _time_evaluation(model, config, seconds / 8, clock)
            share = _measure_saved_share(model)
            write_bytes_s = measure_writing(folder, clock)
            return Calibration(
                act_s,
                step_s,
                start_s,
                evaluation_s,
                model.env_steps / max(1, model.episodes),
                _image_bytes(model),
                share,
                max(0.0, save.seconds - save.num_bytes / write_bytes_s),
                write_bytes_s,
            )
        finally:
            model.teardown("fit")


def time_training(
    config: Config, seconds: float, clock: Clock = time.perf_counter, trainer: dict[str, Any] | None = None
) -> float:
    """Seconds an env step takes with the updates it owes, over ``seconds`` of a copy of the run's agent."""
    with _leaving_no_trace():
        model = PERDQN(**vars(_shortened(config)))
        try:
            watch = _Marks(seconds, clock)
            _fit(model, watch, trainer or {})
            return pace_of(watch.marks).mean
        finally:
            model.teardown("fit")


@contextlib.contextmanager
def _leaving_no_trace() -> Iterator[None]:
    rng, threads = get_global_rng(), torch.get_num_threads()
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        torch.set_num_threads(threads)
        set_global_rng(rng)


def _shortened(config: Config) -> Config:
    """The same work a step, without what happens once in a while, and at the final exploration."""
    learner, explore = config.learner, config.exploration
    warmup = max(_LEAST_WARMUP, learner.batch_size + learner.n_step + config.env.frame_stack)
    return replace(
        config,
        replay=replace(config.replay, capacity=min(config.replay.capacity, _ROWS), cleanup_env_steps=None),
        learner=replace(learner, warmup_env_steps=warmup, backend=cast(Any, choose_backend(config, None))),
        exploration=replace(explore, epsilon_start=explore.epsilon_end),
        evaluation=replace(config.evaluation, every_env_steps=None, stop_at_return=None),
        total_env_steps=_LONGEST_BUDGET,
        total_episodes=None,
    )


class _Saved(NamedTuple):
    """A save: what it took, and what it wrote."""

    seconds: float
    num_bytes: int


class _Marks(Callback):
    """Ends training after some seconds of learning, and remembers when how much was done.

    Saves then, where there is a ``folder``.
    """

    def __init__(self, seconds: float, clock: Clock, folder: Path | None = None) -> None:
        self._seconds, self._clock, self._folder = seconds, clock, folder
        self.marks: list[tuple[float, int]] = []  # time, env steps; from the second group of updates on
        self.saves: list[_Saved] = []
        self._num_groups = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self._num_groups += pl_module.update_steps > 0
        if self._num_groups < 2:
            return
        self.marks.append((self._clock(), pl_module.env_steps))
        trainer.should_stop = len(self.marks) > 2 and self.marks[-1][0] - self.marks[0][0] >= self._seconds
        if trainer.should_stop and self._folder is not None:
            with tempfile.TemporaryDirectory(dir=self._folder) as inside:
                saves = [self._save(trainer, GenerationFolder(inside)) for _ in range(_SAVES)]
            self.saves = saves[1:]  # the first writes the whole replay

    def _save(self, trainer: Trainer, folder: GenerationFolder) -> _Saved:
        begun, known = self._clock(), {file.path for one in folder.generations() for file in one.files}
        written = save_generation(trainer, folder, None, "regular").files
        return _Saved(self._clock() - begun, sum(file.size for file in written if file.path not in known))


def _train(
    model: PERDQN, seconds: float, clock: Clock, settings: dict[str, Any], folder: Path
) -> tuple[Pace, _Saved]:
    watch = _Marks(seconds, clock, folder)
    _fit(model, watch, settings)
    return pace_of(watch.marks), sorted(watch.saves)[len(watch.saves) // 2]


def _fit(model: PERDQN, watch: _Marks, settings: dict[str, Any]) -> None:
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    Trainer(
        **quiet,
        **settings,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        max_epochs=1,
        callbacks=[watch],
    ).fit(model)


def pace_of(marks: list[tuple[float, int]]) -> Pace:
    """Over windows of about as many marks each; at least two marks, in order."""
    ends = [round(i * (len(marks) - 1) / _WINDOWS) for i in range(_WINDOWS + 1)]
    cuts = [marks[i] for i in sorted(set(ends))]
    paces = [
        (now - then) / (steps - before)
        for (then, before), (now, steps) in itertools.pairwise(cuts)
        if steps > before
    ]
    (then, before), (now, steps) = marks[0], marks[-1]
    return Pace(min(paces), (now - then) / (steps - before), max(paces))


def _time_acting(model: PERDQN, least_s: float, clock: Clock) -> float:
    experience = model.experience
    experience.learning_from = 2 * _LONGEST_BUDGET

    def act(num_steps: int) -> None:
        experience.pause_at = experience.env_steps + num_steps
        experience.act_until_owed()

    act(1)
    return _cost_of_one_more(act, least_s, clock)


def _time_evaluation(model: PERDQN, config: Config, least_s: float, clock: Clock) -> tuple[float, float]:
    """Seconds to begin an evaluation, and for one step of all its environments."""
    num_envs = min(config.evaluation.num_envs, config.evaluation.episodes)
    begun = clock()
    environments = make_environments(config.env, model.spec, num_envs, config.seed, "record")
    try:

        def go(num_steps: int) -> None:
            play(model._act_in_evaluation, environments, range(num_envs), max_episode_steps=num_steps)

        go(1)
        return clock() - begun, _cost_of_one_more(go, least_s, clock)
    finally:
        environments.close()


def _cost_of_one_more(do: Callable[[int], None], least_s: float, clock: Clock, most: int = 1_000) -> float:
    """Seconds, from the first number, doubled each time, that takes ``least_s`` more than one."""

    def seconds(count: int) -> float:
        begun = clock()
        do(count)
        return clock() - begun

    first, count = seconds(1), 2
    while (more := seconds(count) - first) < least_s and 2 * count <= most:
        count *= 2
    return max(more, 0.0) / (count - 1)


def _measure_saved_share(model: PERDQN) -> float:
    """Bytes of the rows' segment over those of the rows; elsewhere than on the run's disk, which is timed."""
    with tempfile.TemporaryDirectory() as folder:
        store = PartStore(folder)
        model.memory.rows.save_parts(store)
        num_rows = max(1, len(model.memory.rows))
        return sum(file.size for file in store.files) / (num_rows * raw_row_bytes(model.spec))


def raw_row_bytes(spec: Any) -> int:
    """Bytes of a row that are written once: its frames, action and reward."""
    return sum(math.prod(column.shape) * column.dtype.itemsize for column in spec.columns) + 8


def _image_bytes(model: PERDQN) -> float:
    """Of compressed frames, by what those at hand have shrunk to."""
    frames = model.memory.rows.frames.values()
    num_rows = max(1, len(model.memory.rows))
    sizes = [stored._sizes.sum(dtype=np.int64) for stored in frames if hasattr(stored, "_sizes")]
    return float(sum(sizes)) / num_rows


def measure_writing(folder: Path, clock: Clock = time.perf_counter) -> float:
    """Bytes a second that a file takes in once it is begun, flushed and read back.

    Raises:
        OSError: ``folder`` cannot be written to.
    """
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        store = PartStore(inside)
        noise = np.random.default_rng(0).bytes(_BIG_FILE_BYTES)

        def seconds(name: str, num_bytes: int) -> float:
            begun = clock()
            store.write(name, [noise[:num_bytes]])
            return clock() - begun

        small = statistics.median(seconds(f"small{i}", 4_096) for i in range(3))
        large = seconds("large", _BIG_FILE_BYTES)
        return _BIG_FILE_BYTES / max(large - small, 0.1 * large, 1e-9)
