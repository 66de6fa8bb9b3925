"""Fits a run to its machine: threads, loader workers, and whatever a module declares.

Knows nothing about what is trained, nor what a setting means beyond how fast training is with it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from .around import around
from .boundary import BoundaryCallback
from .scaling.cache import default_folder, remembered
from .scaling.climb import HillClimb, fastest
from .scaling.knob import Knob, Scalable
from .scaling.micro_batch import MICRO_BATCH, micro_batch_of
from .scaling.ordinary import threads_of, workers_of

THREADS, WORKERS = "num_threads", "num_workers"


def _nothing() -> None:
    pass


class AutoScaler(BoundaryCallback):
    """Turns what decides the speed of a run: where results stay the same while it goes on, else once before.

    A knob that keeps every bit is turned by itself: ``num_workers``, between two epochs, of DataLoaders whose
    items and samplers draw nothing that depends on workers, and what a module or datamodule declares by
    `Scalable`, at a boundary.
    One that changes results (``num_threads``, ``micro_batch``, ``num_workers`` of other loaders, ...) is left
    alone unless ``bounds`` names it: then it is measured for some seconds before the first batch of a new
    run, on throw-away copies, remembered for this machine, and kept by every run that is resumed, a fork
    too. ``micro_batch`` makes steps of the same batches in pieces (`holdfast.scaling.micro_batch`). How many
    batches a worker prefetches stays torch's.

    What was decided is in the checkpoint and in `decisions`. In distributed runs the first rank measures and
    all ranks do what it decides.

    Args:
        bounds: lowest and highest value by name, such as ``{"num_threads": (1, 4)}``; of knobs that are
            turned by themselves, (n, n) holds one still.
        window: of work compared, in the units the knob counts (updates, batches).
        min_gain: share of the time that another value must save.
        cache_dir: where measurements are remembered; the user's folder for caches if None.
        clock: seconds, monotonic.

    Raises:
        ValueError: bounds are not two whole numbers in order, outside of what a knob allows, or name none.
    """

    only_watches = True

    def __init__(
        self,
        bounds: Mapping[str, Sequence[int]] | None = None,
        window: int = 500,
        min_gain: float = 0.05,
        cache_dir: str | os.PathLike[str] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__()
        for name, pair in (bounds or {}).items():
            if len(pair) != 2 or not all(isinstance(each, int) for each in pair) or pair[0] > pair[1]:
                raise ValueError(
                    f"bounds['{name}'] must be lowest and highest value, got {pair!r}; use [1, 4]"
                )
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}; use 500")
        if not 0 < min_gain < 1:
            raise ValueError(f"min_gain must lie in (0, 1), got {min_gain}; use 0.05")
        self.bounds = {name: (pair[0], pair[1]) for name, pair in (bounds or {}).items()}
        self.window, self.min_gain = window, min_gain
        self.cache_dir = Path(cache_dir) if cache_dir is not None else default_folder()
        self.decisions: dict[str, int] = {}
        self._clock = clock
        self._trainer: Any = None
        self._is_resumed = False
        self._knobs: dict[str, Knob] = {}
        self._climbs: dict[str, HillClimb] = {}
        self._saved_climbs: dict[str, Any] = {}
        self._found: set[str] = set()  # names of knobs there are
        self._undo: Callable[[], None] = _nothing
        self._waiting: list[str] = []  # those turned at boundaries that have not settled
        self._turning: str | None = None  # one at a time
        self._begun: tuple[float, int] = (0.0, 0)
        self._paused_s = self._paused_at = 0.0

    # -- before the first batch

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._knobs, self._climbs, self._waiting, self._turning = {}, {}, [], None
        self._found, self._undo = set(), _nothing
        if self._trainer is not trainer:  # now, as loaders may be asked for to configure optimisers
            around(trainer.fit_loop._data_source, "dataloader", self._hand_out)
        self._trainer = trainer

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for owner in (pl_module, getattr(trainer, "datamodule", None)):
            if isinstance(owner, Scalable):
                self._take(owner.scalable_settings(), pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if unknown := sorted(self.bounds.keys() - self._found):
            there = ", ".join(sorted(self._found)) or "nothing"
            raise ValueError(f"bounds['{unknown[0]}'] names nothing that this run can set; it has {there}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self._undo()  # loader and trainer may be used again
        self._undo = _nothing

    def _hand_out(self, request: Callable[[], Any]) -> Any:
        """Loaders as the run shall have them, before anything is read from them."""
        given = request()
        loaders = (given if isinstance(given, CombinedLoader) else CombinedLoader(given)).flattened
        self._find_ordinary(loaders)
        return given

    def _find_ordinary(self, loaders: list[Any]) -> None:
        trainer = self._trainer
        progress = trainer.fit_loop.epoch_loop
        workers = workers_of(loaders, lambda: int(progress.total_batch_idx + 1), self._clock)
        found = {WORKERS: workers} if workers is not None else {}
        if workers is not None and trainer.lightning_module.automatic_optimization:
            found[THREADS] = threads_of(trainer.lightning_module, loaders, self._clock)
        if MICRO_BATCH in self.bounds.keys() | self.decisions.keys():
            found[MICRO_BATCH] = pieces = micro_batch_of(trainer, loaders, self._clock)
            self._undo = partial(pieces.set, pieces.get())
        self._take(found, trainer.lightning_module)

    def _take(self, knobs: Mapping[str, Knob], module: LightningModule) -> None:
        self._found |= knobs.keys()
        for name, knob in knobs.items():
            bounds = self.bounds.get(name)
            if knob.is_fixed:
                if bounds is not None:
                    self._keep(name, knob.get(), *bounds)
                continue
            bounded = knob if bounds is None else knob.within(name, *bounds)
            if knob.keeps_result:
                self._start_climb(name, bounded)
            elif name in self.decisions:
                bounded.set(self.decisions[name])
            elif bounds is not None and not self._is_resumed:
                self._decide_once(name, bounded, module)

    def _keep(self, name: str, value: int, low: int, high: int) -> None:
        if not low <= value <= high:
            how = f"it is decided before a run is built, and was {value}"
            raise ValueError(f"bounds['{name}'] {[low, high]} cannot be kept any more: {how}; leave it out")
        self.decisions[name] = value

    def _start_climb(self, name: str, knob: Knob) -> None:
        start = min(knob.high, max(knob.low, knob.get()))
        values, start = self._agreed((knob.values, start))
        climb = HillClimb(values, start, self.min_gain)
        if name in self._saved_climbs:
            climb.load_state_dict(self._saved_climbs[name])
        knob.set(climb.best)
        self._knobs[name], self._climbs[name] = knob, climb
        self.decisions[name] = climb.best
        if name != WORKERS:
            self._waiting.append(name)

    def _decide_once(self, name: str, knob: Knob, module: LightningModule) -> None:
        assert knob.measure is not None
        measure = knob.measure
        hyperparameters = dict(getattr(module, "hparams", {}))
        num_parameters = sum(each.numel() for each in module.parameters())
        question = [knob.values, knob.about, type(module).__qualname__, num_parameters, hyperparameters]
        value = knob.get()
        try:
            if self._trainer.is_global_zero:
                decide = partial(fastest, knob.values, value, measure, self.min_gain)
                value = remembered(self.cache_dir, name, question, decide)
        except Exception as error:  # a step that does not work alone
            rank_zero_warn(f"AutoScaler leaves {name} at {value}: it could not be measured: {error}")
        value = self._agreed(value)
        knob.set(value)
        self.decisions[name] = value
        rank_zero_info(f"AutoScaler: {name} {value}, kept for the whole run")

    def _agreed(self, mine: Any) -> Any:
        """What the first rank says: clocks and machines differ among ranks, decisions must not."""
        return self._trainer.strategy.broadcast(mine)

    # -- while it goes on

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._turn(WORKERS)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._turning == WORKERS:
            self._end_window()
            self._turning = None

    def on_boundary(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._turning is None:
            while self._waiting and not self._turn(self._waiting[0]):
                self._waiting.pop(0)
        elif self._turning != WORKERS and self._work() - self._begun[1] >= self.window:
            name = self._turning
            self._end_window()
            self._turning = None
            self._turn(name)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._paused_at = self._clock()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._paused_s += self._clock() - self._paused_at

    def _turn(self, name: str) -> bool:
        """Use the next value for a window; False where none is sought any more."""
        climb = self._climbs.get(name)
        if climb is None or self._turning is not None:
            return False
        self._knobs[name].set(climb.value)
        self.decisions[name] = climb.best
        if climb.is_settled:
            return False
        self._turning, self._paused_s = name, 0.0
        self._begun = self._clock(), self._work()
        return True

    def _work(self) -> int:
        progress = self._knobs[str(self._turning)].progress
        return progress() if progress is not None else 0

    def _end_window(self) -> None:
        name = str(self._turning)
        work = self._work() - self._begun[1]
        seconds = self._agreed(self._clock() - self._begun[0] - self._paused_s)
        if work > 0:
            self._climbs[name].note(seconds / work)
        self.decisions[name] = self._climbs[name].best

    # -- state

    def state_dict(self) -> dict[str, Any]:
        climbs = {name: climb.state_dict() for name, climb in self._climbs.items()}
        return {"decisions": dict(self.decisions), "climbs": {**self._saved_climbs, **climbs}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.decisions, self._saved_climbs = dict(state_dict["decisions"]), dict(state_dict["climbs"])

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        self._is_resumed = True
