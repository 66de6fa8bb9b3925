"""PerformanceMonitor: where the time of a run goes, what slows it down, and what to do about it.

Knows nothing about what is trained.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn

from .around import around
from .boundary import BoundaryCallback
from .timing.bottlenecks import Bottleneck, Cached, KnowsRemedies, advice_on, find_bottlenecks
from .timing.clock import Clock, PhaseClock, Span, Usage, thread_usage
from .timing.clocked import ClockedMethods, TellsItsPhases, TimedMethod
from .timing.interventions import LayerInputs, NewestBatch, cached_step_s, layer_excess_s
from .timing.kernel import Kernel, Waits
from .timing.layers import LayerProfile, profile_layers
from .timing.profiler import PhaseProfiler
from .timing.report import as_dicts, resources_of, shares_of, timings_of, write_report
from .timing.windows import ROOT, Mark, Reader, Record, Windows, record_of

_ATTRIBUTE = "_holdfast_performance"
_REPORT_EVERY_S = 60.0
_INTERVENE_EVERY = 8  # windows


class PerformanceMonitor(BoundaryCallback):
    """Looks at some steps now and then, and names what the run could be faster without.

    Between its windows a step is cheaper than without it: Lightning's own profiler, even the one that does
    nothing, costs more than this one. Validation, saves and loggers are timed always, since they are rare.
    A module may say where its own time goes, and what helps: see `timing.clocked.TellsItsPhases` and
    `timing.bottlenecks.KnowsRemedies`. What counts as a bottleneck, and when one is named, says
    `timing.bottlenecks`.

    In a run, shares of the time are logged as ``time/phase_<name>`` with each report, against the module's
    ``log_step`` where it has one, and the newest report lies in ``monitor/performance_report.json`` of the
    run's folder. Without a Trainer, call `start_monitoring`, put `time_operation` around what is done, and
    ask for the report; operations named after a phase (``data``, ``logging/tracker``) count as that.

    Args:
        report_every_steps: training steps between two reports; None: about a minute.
        report_every_episodes: a report also every so many of the module's ``episodes``.
        window_steps: steps looked at in one window.
        every_s: least time between two windows.
        max_cost: share of the time that looking may cost; windows get rarer to keep to it.
        interventions: whether to confirm slow layers, by running layers that are not quite torch's own once
            more, and torch's own in their place, on inputs of the step before; and slow data, by some steps
            on the newest batch, without a loader. Copies are run and random streams put back, so the training
            goes on as it would have; a ``training_step`` that writes files does so in these steps, too. Needs
            room for a second module; not of several processes, nor of one that optimises by itself.
        log: whether shares are logged.
        clock: seconds, monotonic.
        usage: what the thread that asks has computed and waited.
        kernel: what waiting is read from; None is this machine's.

    Raises:
        ValueError: a setting is out of its range.
    """

    only_watches = True

    def __init__(
        self,
        report_every_steps: int | None = None,
        report_every_episodes: int | None = None,
        window_steps: int = 24,
        every_s: float = 1.0,
        max_cost: float = 0.002,
        interventions: bool = False,
        log: bool = True,
        clock: Clock = time.perf_counter,
        usage: Callable[[], Usage] = thread_usage,
        kernel: Reader | None = None,
    ) -> None:
        super().__init__()
        for name, value in (
            ("report_every_steps", report_every_steps),
            ("report_every_episodes", report_every_episodes),
            ("window_steps", window_steps),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}; leave it out for the default")
        if not 0 < max_cost < 1:
            raise ValueError(f"max_cost must lie in (0, 1), got {max_cost}; use 0.002, a share of the time")
        if not every_s >= 0:
            raise ValueError(f"every_s must be at least 0 seconds, got {every_s}; use 1")
        self.report_every_steps, self.report_every_episodes = report_every_steps, report_every_episodes
        self.interventions, self.log = interventions, log
        self._clock, self._usage = clock, usage
        self._kernel: Reader = kernel or Kernel()
        self.window_steps, self.every_s, self.max_cost = window_steps, every_s, max_cost
        self._profiler: PhaseProfiler | None = None
        self._inputs: LayerInputs | None = None
        self._newest: NewestBatch | None = None
        self._is_monitoring = False
        self._forget()

    def _forget(self) -> None:
        self._phases = PhaseClock(self._clock, self._usage)
        self._operations = PhaseClock(self._clock, self._usage)
        self._windows = Windows(self._phases, self._kernel, self.window_steps, self.every_s, self.max_cost)
        self._methods = ClockedMethods(self._phases)
        self._began, self._waits_began, self._waits_ended = self._clock(), Waits(), Waits()
        self._ended: float | None = None
        self._cached = Cached()
        self._own_mark: Mark | None = None
        self._step = 0
        self._due = self._report_due = 0
        self._episodes_reported = 0
        self._reported_at, self._num_reported = self._began, 0
        self._remedies: Mapping[str, str] = {}

    # -- by hand ----------------------------------------------------------------------------------

    def start_monitoring(self) -> None:
        """Forget what was measured, and begin; a fit does so by itself."""
        self._forget()
        self._is_monitoring = True
        self._waits_began = self._kernel.read()
        self._operations.enter(ROOT)
        self._own_mark = Mark(self._began, 0, {}, self._waits_began, 0)

    def stop_monitoring(self) -> None:
        """What was measured stays, for reports."""
        if self._is_monitoring:
            self._is_monitoring, self._own_mark = False, None
            self._operations.leave()
            self._ended, self._waits_ended = self._clock(), self._kernel.read().since(self._waits_began)

    def time_operation(self, name: str) -> Span:
        """``with`` it, in any thread, an operation is timed; it costs some 5 us."""
        return _Operation(self, self._operations, name)

    def note_operations(self) -> None:
        """About once a second: what operations took since, for bottlenecks; in the thread that monitors."""
        last = self._own_mark
        if last is None or self._operations.depth() != 1:  # 1: in no operation, and of this thread
            return
        now = self._clock()
        if now - last.now < self.every_s:
            return
        mark = Mark(now, last.step + 1, self._operations.taken(), self._kernel.read(), 0)
        self._windows.keep(record_of(last, last, mark))
        self._own_mark = mark

    def get_performance_report(self) -> dict[str, Any]:
        """What is known by now, as plain values.

        Returns:
            ``wall_s`` and ``step``; ``shares``: of the time by phase, together 1; ``timings``: ``phases`` (as
            far as they were looked at) and ``operations``, each with count, total_s, self_s (without those
            within), mean_s, p50_s, p90_s, p99_s, share; ``resources``: what the kernel counted;
            ``bottlenecks``, the largest first, see `timing.bottlenecks.Bottleneck`; ``recommendations``: as
            `advising.advice.Advice.as_dict`; ``windows``: how many there were and what they cost.
        """
        wall = (self._clock() if self._ended is None else self._ended) - self._began
        bottlenecks = self.find_bottlenecks()
        operations = {name: phase for name, phase in self._operations.totals().items() if name != ROOT}
        waits = self._kernel.read().since(self._waits_began) if self._ended is None else self._waits_ended
        return {
            "time": time.time(),
            "step": self._step,
            "wall_s": wall,
            "shares": shares_of(self._windows.estimated_s),
            "timings": {
                "phases": timings_of(self._phases.totals(), sum(self._windows.estimated_s.values())),
                "operations": timings_of(operations, wall),
            },
            "resources": resources_of(waits, wall),
            "bottlenecks": as_dicts(bottlenecks),
            "recommendations": [advice_on(each, self._remedies).as_dict() for each in bottlenecks],
            "windows": {
                "count": self._windows.num_records,
                "cost_s": self._windows.cost_s,
                "cost_share": self._windows.cost_s / wall if wall > 0 else 0.0,
            },
        }

    def find_bottlenecks(self) -> list[Bottleneck]:
        """Of the newest windows, the largest first."""
        return self._find(self._cached)

    def _find(self, cached: Cached | None = None) -> list[Bottleneck]:
        windows = self._windows
        records = list(windows.records)
        if windows.num_records == len(records):  # the first of a run holds what is done once
            records = records[1:]
        return find_bottlenecks(records, windows.reference, cached)

    @property
    def records(self) -> list[Record]:
        """The newest windows, oldest first."""
        return list(self._windows.records)

    def save_report(self, path: str | os.PathLike[str] = "performance_report.json") -> Path:
        """Write the report as JSON; a reader never sees half of one."""
        return write_report(self.get_performance_report(), path)

    def profile_layers(
        self,
        module: nn.Module,
        batch: Any,
        forward: Callable[[Any], Any] | None = None,
        folder: str | os.PathLike[str] | None = None,
        repeats: int = 5,
    ) -> LayerProfile:
        """Time, FLOPs, memory and outputs of each layer; the module stays as it is.

        Args:
            batch, forward: see `timing.layers.profile_layers`.
            folder: where ``layers.txt`` and the Chrome trace ``layers.json`` go; None writes none.
        """
        files: dict[str, Path] = {}
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
            files = {"trace": Path(folder) / "layers.json", "table": Path(folder) / "layers.txt"}
        return profile_layers(module, batch, forward, repeats=repeats, **files)

    # -- in a run ---------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._end(trainer)
            self._forget()
            self._profiler = PhaseProfiler(self._phases, trainer.profiler)  # type: ignore[attr-defined]
            trainer.profiler = self._profiler  # type: ignore[attr-defined]
            self._stand_around(trainer)

    def _stand_around(self, trainer: Any) -> None:
        """Once per trainer: what is rare is timed whoever is its monitor by then."""
        if _ATTRIBUTE not in vars(trainer):
            around(trainer.fit_loop.epoch_loop.val_loop, "run", partial(_timed, trainer, "validation"))
            for logger in trainer.loggers:
                for name in ("log_metrics", "save"):
                    around(logger, name, partial(_timed, trainer, "logging/loggers"))
        setattr(trainer, _ATTRIBUTE, self._phases)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._progress = trainer.fit_loop.epoch_loop.batch_progress.total
        self._folder = Path(trainer.log_dir or trainer.default_root_dir)  # asks all ranks, so not later
        self._phases.measure_cost()
        self._began, self._waits_began = self._clock(), self._kernel.read()
        self._is_monitoring, self._reported_at = True, self._began
        self._remedies = pl_module.remedies() if isinstance(pl_module, KnowsRemedies) else {}
        self._step = self._progress.ready
        self._windows.begin(self._step)
        self._report_due = self._step + (self.report_every_steps or 0)
        self._episodes_reported = getattr(pl_module, "episodes", 0)
        self._plan()

    def _plan(self) -> None:
        due = [self._windows.due] if self._inputs is None else [self._step + 1]
        if self.report_every_steps is not None:
            due.append(self._report_due)
        self._due = min(due)

    def on_boundary(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._is_monitoring:
            return
        if self._progress.ready >= self._due:
            self._step = self._progress.ready
            self._turn(trainer, pl_module)
            self._plan()
        if self.report_every_episodes is not None:
            self._count_episodes(trainer, pl_module)

    def _count_episodes(self, trainer: Trainer, module: LightningModule) -> None:
        assert self.report_every_episodes is not None
        episodes = getattr(module, "episodes", 0)
        if episodes // self.report_every_episodes > self._episodes_reported // self.report_every_episodes:
            self._report(trainer, module)
        self._episodes_reported = episodes

    def _turn(self, trainer: Trainer, module: LightningModule) -> None:
        windows, step = self._windows, self._step
        if self._inputs is not None:
            self._intervene(module)
        elif windows.is_open and step >= windows.due:
            self._close(step)
            if self.interventions and windows.num_records % _INTERVENE_EVERY == 1:
                self._inputs = LayerInputs(module)
                if any(each.label == "data" for each in self._find()):
                    self._newest = NewestBatch(trainer.strategy)
        elif step >= windows.due:
            self._open(trainer, module, step)
        if self.report_every_steps is not None and step >= self._report_due:
            self._report_due = step + self.report_every_steps
            self._report(trainer, module)
        elif self.report_every_steps is None and self._clock() - self._reported_at >= _REPORT_EVERY_S:
            self._report(trainer, module)

    def _open(self, trainer: Any, module: LightningModule, step: int) -> None:
        assert self._profiler is not None
        began = self._windows.cpu_clock()
        methods: list[TimedMethod] = [
            (callback, "on_boundary", f"callbacks/{type(callback).__name__}")
            for callback in trainer.callbacks
            if isinstance(callback, BoundaryCallback) and callback is not self
        ]
        methods += [(module, "log", "logging/log"), (module, "log_dict", "logging/log")]
        if not module.automatic_optimization:
            strategy = trainer.strategy
            methods += [(strategy, "backward", "backward"), (strategy, "optimizer_step", "optimiser")]
        if isinstance(module, TellsItsPhases):
            methods = [*module.timed_methods(), *methods]
        self._methods.put(methods)
        self._windows.open(step, began)
        self._profiler.is_measuring = True

    def _close(self, step: int) -> None:
        assert self._profiler is not None
        self._profiler.is_measuring = False
        self._windows.close(step)
        self._methods.take_away()

    def _intervene(self, module: LightningModule) -> None:
        assert self._inputs is not None
        began, calls = self._windows.cpu_clock(), self._inputs.stop()
        self._inputs = None
        self._windows.layer_excess_s = layer_excess_s(calls)
        if self._newest is not None:
            newest, self._newest = self._newest.stop(), None
            self._cached = self._replay(module, newest)
        self._windows.restart(self._step)
        self._windows.charge(self._windows.cpu_clock() - began)

    def _replay(self, module: LightningModule, newest: list[Any]) -> Cached:
        if not newest:
            return Cached(reason="the module draws its batches itself")
        try:
            return Cached(cached_step_s(module, newest[0], self._clock, self._usage))
        except Exception as error:  # a module may do anything that a copy without a trainer cannot
            return Cached(reason=f"{type(error).__name__}: {error}")

    def _report(self, trainer: Trainer, module: LightningModule) -> None:
        with self._phases.span("callbacks/PerformanceMonitor"):
            self._write(trainer, module)

    def _write(self, trainer: Trainer, module: LightningModule) -> None:
        began, self._reported_at = self._windows.cpu_clock(), self._clock()
        if self.log and self._windows.num_records > self._num_reported:
            self._log(trainer, module)
        if trainer.is_global_zero:
            try:
                self.save_report(self._folder / "monitor" / "performance_report.json")
            except OSError as error:
                rank_zero_warn(f"the performance report could not be written: {error}; the run goes on")
        self._windows.charge(self._windows.cpu_clock() - began)

    def advice_signals(self) -> dict[str, float]:
        """What `TuningAdvisor` asks a callback for: shares of the time, as ``time/phase_...``."""
        return {f"time/phase_{name}": share for name, share in shares_of(self._windows.estimated_s).items()}

    def _log(self, trainer: Trainer, module: LightningModule) -> None:
        newest = list(self._windows.records)[self._num_reported - self._windows.num_records :]
        self._num_reported = self._windows.num_records
        seconds: dict[str, float] = {}
        for record in newest:
            for name, share in record.shares.items():
                seconds[name] = seconds.get(name, 0.0) + share * record.seconds
        metrics = {f"time/phase_{name}": share for name, share in shares_of(seconds).items()}
        step = getattr(module, "log_step", trainer.fit_loop.epoch_loop._batches_that_stepped)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._windows.is_open:
            self._step = self._progress.ready
            self._close(self._step)
        self._report(trainer, pl_module)
        self.stop_monitoring()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._end(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._end(trainer)

    def _end(self, trainer: Any) -> None:
        """Whatever happened, the trainer and the module are left as they were."""
        if self._inputs is not None:
            self._inputs.stop()
            self._inputs = None
        if self._newest is not None:
            self._newest.stop()
            self._newest = None
        self._methods.take_away()
        self.stop_monitoring()
        if self._profiler is not None:
            self._profiler.is_measuring = False
            if trainer.profiler is self._profiler:
                trainer.profiler = self._profiler.inner
            self._profiler = None
        if _ATTRIBUTE in vars(trainer):
            setattr(trainer, _ATTRIBUTE, None)


class _Operation(Span):
    """Of a monitor that is asked whether it has something to note afterwards."""

    __slots__ = ("_monitor",)

    def __init__(self, monitor: PerformanceMonitor, clock: PhaseClock, name: str) -> None:
        super().__init__(clock, name)
        self._monitor = monitor

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._monitor.note_operations()


def _timed(trainer: Any, phase: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    clock: PhaseClock | None = vars(trainer).get(_ATTRIBUTE)
    if clock is None:
        return method(*args, **kwargs)
    clock.enter(phase)
    try:
        return method(*args, **kwargs)
    finally:
        clock.leave()
