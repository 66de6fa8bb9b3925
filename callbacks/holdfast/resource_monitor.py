"""ResourceMonitor: what a run takes of its machine, what follows from that, and memory given back in time.

Knows nothing about how figures are read, nor how a forecast is made.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from .boundary import BoundaryCallback
from .exact.loaders import flattened, parts
from .resources.accelerator import readers_of
from .resources.alerts import Alert, Threshold
from .resources.cpu import CpuFigures
from .resources.disk import DiskFigures, network_of
from .resources.forecast import Forecast
from .resources.history import History
from .resources.memory import MemoryFigures
from .resources.pressure import PressureFigures
from .resources.process import ProcessFigures, WorkerFigures
from .resources.reader import Reader
from .resources.release import Registry, can_release, owners_of, release
from .resources.watching import PREFIX, Progress, Watching

_LOOK_EVERY_S = 1.0
_FOLDER = "monitor"


class ResourceMonitor(BoundaryCallback):
    """Watches memory, processor, disk, processes and accelerator of a run, containers included.

    A thread reads about once a second, from the tightest limit of any control group to the temperature of a
    GPU; what a platform lacks is left out. Figures are logged to every logger of the trainer as
    ``resource/...``, against the module's ``log_step`` if it has one, else against Lightning's global step,
    and written to ``monitor/resources.jsonl`` and ``monitor/alerts.jsonl`` in the run's folder. Nothing of it
    touches the training: no random stream moves, and what fails is said once and left out.

    Before memory gets critical, whoever has a ``release_memory()`` is asked at the next boundary to give back
    what it can spare: the module, its datamodule and datasets, callbacks, and whatever was registered.

    A module may tell two things more, as attributes or properties: ``progress_fraction``, how much of the
    work is done (else that follows from ``max_steps`` or the number of batches), and
    ``memory_to_come_bytes``, what it is going to take by design, as a replay that fills: growth that was
    announced is no leak, and that it will not fit is known beforehand.

    In distributed runs each rank watches itself. Rank 0 logs; the others write files of their own
    (``resources-rank1.jsonl``), without what the ranks of a machine share.

    Without a trainer: ``with ResourceMonitor(dirpath="run") as monitor: ...``

    Args:
        interval_s: between two samples.
        log_every_seconds: between two entries in the loggers.
        write_every_seconds: between two lines of the file.
        dirpath: of the files; None is ``monitor`` in the trainer's log folder, and nowhere without a trainer.
        thresholds: more of them, or others in place of ours of the same kind.
        releases: whether to ask for memory; `release_memory` does in any case.
        readers: in place of ours.
        clock: seconds, monotonic.
        root: where ``proc``, ``sys`` and ``dev`` are found.
    """

    only_watches = True

    def __init__(
        self,
        interval_s: float = 1.0,
        log_every_seconds: float = 30.0,
        write_every_seconds: float = 10.0,
        *,
        dirpath: str | os.PathLike[str] | None = None,
        thresholds: Sequence[Threshold] = (),
        releases: bool = True,
        readers: Sequence[Reader] | None = None,
        clock: Callable[[], float] = time.monotonic,
        root: str | os.PathLike[str] = "/",
    ) -> None:
        settings = {
            "interval_s": interval_s,
            "log_every_seconds": log_every_seconds,
            "write_every_seconds": write_every_seconds,
        }
        for name, value in settings.items():
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}; use 1 to 60 seconds")
        self.interval_s, self.log_every_seconds = interval_s, log_every_seconds
        self.write_every_seconds, self.releases = write_every_seconds, releases
        self._dirpath, self._thresholds, self._readers = dirpath, tuple(thresholds), readers
        self._clock, self._root = clock, root
        self._registry = Registry()
        self._watching: Watching | None = None
        self._trainer: Trainer | None = None
        self._num_steps = math.inf  # of the whole run
        self._look_at = self._log_at = 0.0

    # -- what is known ---------------------------------------------------------------------------

    @property
    def stats(self) -> dict[str, float]:
        """The newest figures, as ``resource/...``; {} before the first sample."""
        newest = self._watching.newest if self._watching else {}
        return {PREFIX + name: value for name, value in newest.items()}

    def advice_signals(self) -> dict[str, float]:
        """What `TuningAdvisor` asks a callback for: `stats`."""
        return self.stats

    @property
    def history(self) -> History:
        """All figures, over the whole run, by their names without prefix."""
        return self._started().history

    @property
    def alerts(self) -> list[Alert]:
        """Those raised now."""
        return list(self._started().alerts.raised.values())

    @property
    def events(self) -> list[dict[str, Any]]:
        """The newest lines of ``alerts.jsonl``: raised, cleared, released."""
        return list(self._started().recent)

    def forecast(self) -> dict[str, Forecast]:
        """When ``memory`` and ``disk`` are full, and the run is at its ``end``; each where it is measured."""
        return self._started().forecast()

    def _started(self) -> Watching:
        if self._watching is None:
            raise RuntimeError(
                "the monitor has not been started; call start(), or give it to a Trainer and fit"
            )
        return self._watching

    # -- memory given back -----------------------------------------------------------------------

    @property
    def registered(self) -> list[Any]:
        """Things registered, and not gone meanwhile."""
        return self._registry.things

    def register(self, thing: Any) -> None:
        """Have ``thing.release_memory() -> int``, bytes given back, called too; it is not kept alive.

        Raises:
            TypeError: it has no such method.
        """
        self._registry.register(thing)

    def release_memory(self) -> int:
        """Ask everybody, and the garbage collector, the heap and the accelerator's cache.

        To be called in the main thread, between two steps.

        Returns:
            By how many bytes this process shrank.
        """
        found = release(self.registered if self._trainer is None else owners_of(self._trainer))
        names = {name: num for name, num in found.items() if name != "process"}
        asked = f" asked: {', '.join(names)};" if names else ""
        message = f"memory given back:{asked} the process shrank by {found['process'] / 2**20:.0f} MiB"
        if self._watching is not None:
            event = {"kind": "memory", "state": "released", "message": message, "figures": found}
            self._watching.record(event)
        rank_zero_info(f"ResourceMonitor: {message}")
        return found["process"]

    # -- without a trainer -----------------------------------------------------------------------

    def start(self) -> None:
        """Begin to watch this process."""
        if self._watching is None:
            folder = None if self._dirpath is None else Path(self._dirpath)
            self._watching = self._build(folder, folder or Path(), [], {})
        self._watching.start()

    def stop(self) -> None:
        """End; what is known stays."""
        if self._watching is not None:
            self._watching.stop()
            self._say()

    def __enter__(self) -> ResourceMonitor:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _build(self, folder: Path | None, run: Path, more: Sequence[Reader], who: dict[str, int]) -> Watching:
        run = next(path for path in (run, *run.absolute().parents) if path.is_dir())
        readers = self._readers
        if readers is None:
            own = (MemoryFigures, PressureFigures, CpuFigures, ProcessFigures)
            readers = [each(self._root) for each in own]
            readers += [WorkerFigures(), DiskFigures(run, self._root), *more]
        settings = (self.interval_s, self.write_every_seconds, self._clock)
        watching = Watching(readers, folder, who, self._thresholds, *settings)
        if (network := network_of(run.resolve(), self._root)) is not None:
            watching.note(
                f"{run} is on a network file system ({network}): saves and logs depend on it, and may be slow"
            )
        return watching

    # -- a trainer's run -------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self._trainer is not trainer or self._watching is None:
            self.stop()
            self._trainer = trainer
            self._watching = self._build_for(trainer)
        self._watching.start()

    def _build_for(self, trainer: Any) -> Watching:
        run = Path(trainer.strategy.broadcast(trainer.log_dir) or trainer.default_root_dir)
        folder = None if trainer.fast_dev_run else Path(self._dirpath or run / _FOLDER)
        who = {}
        if trainer.world_size > 1:
            who = {"rank": trainer.global_rank, "local_rank": trainer.local_rank}
        more = readers_of(trainer.accelerator, trainer.strategy.root_device)
        return self._build(folder, run, more, who)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._num_steps = math.inf
        try:
            if not hasattr(pl_module, "progress_fraction"):
                self._num_steps = float(trainer.estimated_stepping_batches)
            for loader in flattened(trainer.fit_loop._combined_loader):
                for _, part in parts(loader):
                    if can_release(part):
                        self.register(part)
        except Exception as error:  # somebody else's property, or what no weak reference can be made of
            self._started().note(f"not all is known of what this run is made of: {error!r}")

    def on_boundary(self, trainer: Trainer, pl_module: LightningModule) -> None:
        watching = self._watching
        if watching is None or (self._clock() < self._look_at and not watching.is_release_due):
            return
        now = self._clock()
        self._look_at = now + min(_LOOK_EVERY_S, self.log_every_seconds)
        watching.progress = self._progress_of(trainer, pl_module)
        self._say()
        if watching.is_release_due:
            watching.is_release_due = False
            if self.releases:
                self.release_memory()
        if now >= self._log_at and self.stats:
            self._log_at = now + self.log_every_seconds
            self._log(trainer, watching.progress.step)

    def _progress_of(self, trainer: Trainer, module: LightningModule) -> Progress:
        step = int(getattr(module, "log_step", trainer.global_step))
        share: float | None = getattr(module, "progress_fraction", None)
        if share is None and 0 < self._num_steps < math.inf:
            share = trainer.global_step / self._num_steps
        return Progress(step, share, int(getattr(module, "memory_to_come_bytes", 0)))

    def _log(self, trainer: Trainer, step: int) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(self.stats, step=step)

    def _say(self) -> None:
        while self._watching and self._watching.messages:
            rank_zero_info(f"ResourceMonitor: {self._watching.messages.popleft()}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.stop()
