"""TuningAdvisor: says what a run's numbers ask to be changed, and changes it where that is wished.

Knows nothing about single rules, nor what is trained.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from .advising.adapting import Adapter, Event
from .advising.advice import PRIORITIES, Advice
from .advising.diary import Diary
from .advising.general import general_rules
from .advising.names import figure_of
from .advising.rule import Adaptable, Rule
from .advising.run_settings import adaptable_of, settings_of
from .advising.signals import Signals
from .advising.standing import Standing
from .advising.tuner import merge
from .advising.vitals import Vitals
from .around import around
from .boundary import BoundaryCallback

_FIRST_EVERY = 10  # steps between looks as a run begins
_LOOKS_PER_CHECK = 5
_LENGTH = 128  # samples kept of each figure
_HOOKS = {"on_before_optimizer_step", "on_train_batch_end"}
_CLOCK = ("time/", "resource/")  # what begins so is of the clock or the machine, and does not repeat


class TuningAdvisor(BoundaryCallback):
    """Looks at a run's figures now and then, and says what they mean and which setting to change.

    The first step is looked at; further looks are some 10 training steps apart as a run begins, and
    ``every_n_steps`` later; at every fifth the rules are asked. Figures come from

    - one optimiser step, measured: gradients, weights, how far they moved, dead units (see `Vitals`); not
      where the module's ``lets_steps_be_measured`` is false;
    - what is logged: `self.log`, or, where a module logs straight to its loggers, what it hands to the
      ``metrics_watch`` it finds set on itself: ``if self.metrics_watch: self.metrics_watch(metrics)``;
    - ``advice_signals()`` of the module (see `Advisable`) and of other callbacks.

    Rules are general ones, ``advice_rules()`` of the module and of other callbacks, and ``rules``; of two
    with one name the later counts. A module's ``advice_ignores``, a collection of names, leaves out general
    rules that do not hold for it.

    Advice above low priority is printed once, on rank zero, and again after it was withdrawn or when it is
    clearly worse; all is logged
    as ``advice/<rule>``, its confidence, 0 once withdrawn, and to TensorBoard as text; and appended to
    ``monitor/advice.jsonl`` in the run's folder.

    With ``mode="adapt"`` it is followed where it is about settings that may change as the run goes on: what
    the module declares in ``adaptable_settings()``, else learning rates and Trainer's gradient_clip_val. One
    change at a time, within bounds; taken back where it made ``monitor`` worse. Each is printed and logged
    with its reason. Decisions depend on nothing but what repeats and what is in the checkpoint: never on
    figures of the clock, so a run that is killed and resumed decides the same.

    Weights that a change has spoilt stay spoilt when it is taken back: that is for `ErrorRecovery`.

    Args:
        mode: ``advise`` or ``adapt``.
        rules: more of them.
        without: names of rules that are not asked.
        general: whether the rules for any run are asked.
        every_n_steps: training steps between looks.
        monitor: metric that says how good the run is, as it is logged; None is the loss.
        monitor_mode: ``min`` or ``max``: which of its values is good.
        num_samples: of ``monitor``, before a change is judged.
        bounds: lowest and highest value by setting, narrower than its own.
        clock: seconds since 1970, for the records alone.
    """

    def __init__(
        self,
        mode: Literal["advise", "adapt"] = "advise",
        rules: Sequence[Rule] = (),
        without: Sequence[str] = (),
        general: bool = True,
        every_n_steps: int = 500,
        monitor: str | None = None,
        monitor_mode: Literal["min", "max"] = "min",
        num_samples: int = 20,
        bounds: Mapping[str, tuple[float, float]] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if mode not in ("advise", "adapt"):
            raise ValueError(f"mode must be advise or adapt, got {mode!r}")
        if monitor_mode not in ("min", "max"):
            raise ValueError(f"monitor_mode must be min or max, got {monitor_mode!r}")
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}; use 500")
        if num_samples < 8:
            raise ValueError(f"num_samples must be at least 8, got {num_samples}; use 20")
        for name, pair in (bounds or {}).items():
            if len(pair) != 2 or not pair[0] <= pair[1]:
                raise ValueError(
                    f"bounds of {name} must be lowest and highest, got {pair!r}; use [1e-5, 1e-2]"
                )
        self.mode, self.rules, self.without, self.general = mode, list(rules), set(without), general
        self.every_n_steps, self.num_samples = every_n_steps, num_samples
        self.monitor, self.monitor_mode = monitor, monitor_mode
        self.bounds, self._clock = dict(bounds or {}), clock
        self._trainer: Any = None
        self._progress: Any = None  # training steps completed, kept by Lightning's loop
        self._forget()

    def _forget(self) -> None:
        self._loaded: dict[str, Any] | None = None
        self._rules: list[Rule] = []
        self._signals, self._standing = Signals(length=_LENGTH), Standing()
        self._measured: set[str] = set()  # by ourselves, so that logged ones of that name do not count
        self._unrepeatable: set[str] = set()
        self._vitals: Vitals | None = None
        self._adapter: Adapter | None = None
        self._diary: Diary | None = None
        self._is_measuring = self._has_begun = False
        self._next_look = self._num_looks = 0

    @property
    def advice(self) -> list[Advice]:
        """What stands now, most urgent first."""
        return sorted(self._standing.advice.values(), key=lambda advice: advice.rank)

    only_watches = True

    # One that compiles its updates has steps of its own, of which it says itself how they are doing.
    follows_compiled_updates = True

    # -- a fit -----------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if self._trainer is not trainer:
            around(trainer._logger_connector, "log_metrics", self._watch_logged)
        self._trainer = trainer
        self._forget()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._progress = trainer.fit_loop.epoch_loop.batch_progress.total
        self._rules = self._all_rules(trainer, pl_module)
        measures = getattr(pl_module, "lets_steps_be_measured", True)
        self._vitals = Vitals(pl_module) if measures else None
        self._signals.settings = settings_of(trainer)
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        self._diary = Diary(folder) if trainer.is_global_zero else None
        self._make_adapter(trainer)
        self._begin()
        _hand_over(pl_module, self._note_metrics)

    def _all_rules(self, trainer: Any, module: Any) -> list[Rule]:
        ignored = set(getattr(module, "advice_ignores", ()))
        rules = [rule for rule in general_rules() if self.general and rule.name not in ignored]
        for owner in (module, *trainer.callbacks):
            if owner is not self and callable(getattr(owner, "advice_rules", None)):
                rules = merge(rules, owner.advice_rules())
        rules = merge(rules, self.rules)
        if unknown := self.without - ignored - {rule.name for rule in rules}:
            raise ValueError(
                f"without names {', '.join(sorted(unknown))}, which no rule is called; "
                f"there are {', '.join(sorted(rule.name for rule in rules))}"
            )
        return [rule for rule in rules if rule.name not in self.without]

    def _make_adapter(self, trainer: Trainer) -> None:
        if self.mode == "advise":
            return
        settings = adaptable_of(trainer, self._signals.settings)
        if unknown := self.bounds.keys() - settings.keys():
            raise ValueError(
                f"bounds names {', '.join(sorted(unknown))}, which cannot be adapted in this run; "
                f"there are {', '.join(sorted(settings)) or 'none'}"
            )
        settings = {name: _narrowed(each, *self.bounds.get(name, ())) for name, each in settings.items()}
        is_max = self.monitor_mode == "max"
        self._adapter = Adapter(settings, self.monitor or "loss", is_max, self.num_samples)

    def _begin(self) -> None:
        state, self._loaded = self._loaded, None
        if state is None:
            self._next_look = self._progress.completed  # the first step tells much
        else:
            self._restore(state)
        if self._diary is not None:
            self._diary.begin(state["num_lines"] if state else 0)
        if self._is_measuring:
            self._measure_next_step()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What the last figures say. A run that goes on from a save does not know of it."""
        if trainer.is_global_zero:
            self._advise(self._check(self._signals))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        _hand_over(pl_module, None)

    # -- figures ---------------------------------------------------------------------------------

    def _step(self) -> int:
        loop = self._trainer.fit_loop.epoch_loop
        return int(getattr(self._trainer.lightning_module, "log_step", loop._batches_that_stepped))

    def _watch_logged(
        self, log_metrics: Callable[..., None], metrics: dict[str, Any], step: int | None = None
    ) -> None:
        if step is None:  # else it is one batch of a validation
            self._note_metrics(metrics)
        log_metrics(metrics, step=step)

    def _note_metrics(self, metrics: Mapping[str, Any]) -> None:
        """By their own names, and by those of general rules."""
        figures = {name: float(value) for name, value in metrics.items() if _is_number(value)}
        known = {str(figure_of(name)): value for name, value in figures.items()}
        others = {name: value for name, value in known.items() if name not in {"None", *self._measured}}
        self._signals.add(self._step(), {**figures, **others})

    def idle_hooks(self) -> set[str]:
        """Hooks of a batch cost 2 us each where they are called, so ours are there for single steps only."""
        return super().idle_hooks() | (set() if self._is_measuring else _HOOKS)

    def _measure_next_step(self) -> None:
        if self._vitals is not None:
            self._is_measuring = True
            for name in _HOOKS:
                vars(self).pop(name, None)

    def _stop_measuring(self) -> None:
        self._is_measuring = self._has_begun = False
        for name in _HOOKS:
            setattr(self, name, None)

    def on_before_optimizer_step(self, trainer: Any, pl_module: LightningModule, optimizer: Any) -> None:
        clips_norm = trainer.gradient_clip_algorithm in (None, "norm")
        with self._no_harm() as vitals:
            if self._has_begun:
                vitals.after_step()  # another step follows in the same batch
            else:
                vitals.before_step(optimizer, trainer.gradient_clip_val if clips_norm else None)
            self._has_begun = True

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        if not self._has_begun:  # gradients are being accumulated
            return
        with self._no_harm() as vitals:
            figures = vitals.after_batch(outputs)
            self._measured |= figures.keys()
            self._signals.add(self._step(), figures)
        self._stop_measuring()

    @contextlib.contextmanager
    def _no_harm(self) -> Iterator[Vitals]:
        """A measurement that fails must not end a run."""
        try:
            assert self._vitals is not None
            yield self._vitals
        except Exception as error:
            self._vitals = None
            self._stop_measuring()
            rank_zero_warn(f"TuningAdvisor measures no gradients in this run: {error!r}")

    def _ask_for_signals(self, trainer: Any, module: Any) -> None:
        for owner in (module, *trainer.callbacks):
            if owner is self or not callable(getattr(owner, "advice_signals", None)):
                continue
            try:
                figures = {name: float(value) for name, value in owner.advice_signals().items()}
            except Exception as error:
                rank_zero_warn(f"{type(owner).__name__}.advice_signals failed: {error!r}")
                continue
            if owner is not module:
                self._unrepeatable |= figures.keys()
            self._signals.add(self._step(), figures)

    # -- advice ----------------------------------------------------------------------------------

    def on_boundary(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._progress.completed >= self._next_look:
            self._look(trainer, pl_module)

    def _look(self, trainer: Trainer, module: LightningModule) -> None:
        position = self._progress.completed
        self._next_look = position + _period(position, self.every_n_steps)
        self._num_looks += 1
        self._ask_for_signals(trainer, module)
        self._measure_next_step()
        if self._num_looks % _LOOKS_PER_CHECK == 0:
            found = self._check(self._signals) if trainer.is_global_zero else []
            events = self._adapt(self._adapter) if self._adapter is not None else []
            self._advise(found)  # what may fail comes after the ranks have spoken
            for event in events:
                self._tell(event.kind, event.advice)
                (change,) = event.advice.changes
                self._log({f"advice/setting/{change.setting}": float(change.proposed)})

    def _check(self, signals: Signals) -> list[Advice]:
        found = (self._answer(rule, signals) for rule in self._rules)
        return sorted((advice for advice in found if advice is not None), key=lambda advice: advice.rank)

    def _answer(self, rule: Rule, signals: Signals) -> Advice | None:
        try:
            return rule.check(signals)
        except Exception as error:
            rank_zero_warn(f"rule {rule.name} failed, and is asked again later: {error!r}")
            return None

    def _advise(self, found: Sequence[Advice]) -> None:
        news, withdrawn = self._standing.update(found)
        for advice in news:
            self._tell("advised", advice)
        for advice in withdrawn:
            self._tell("withdrawn", advice)

    def _adapt(self, adapter: Adapter) -> list[Event]:
        """The first rank decides: figures may differ among ranks."""
        trainer, step = self._trainer, self._step()
        events: list[Event] = []
        try:
            if trainer.is_global_zero:
                without = {name for name in self._signals if name.startswith(_CLOCK)} | self._unrepeatable
                repeatable = self._signals.select(without=without)
                found = self._check(repeatable.select(adapter.settled_at))
                events = adapter.decide(step, repeatable, found)
                self._signals.settings |= adapter.effective
        finally:  # the others wait for it, whatever a rule did here
            if trainer.world_size > 1:
                changes = [(c.setting, c.proposed) for event in events for c in event.advice.changes]
                changes = trainer.strategy.broadcast(changes)
                if not trainer.is_global_zero:
                    adapter.follow(changes)
        return events

    # -- telling ---------------------------------------------------------------------------------

    def _tell(self, event: str, advice: Advice) -> None:
        step = self._step()
        if advice.priority != PRIORITIES[-1]:
            rank_zero_info(f"step {step:,}: {as_text(event, advice)}")
        if self._diary is not None:
            self._diary.write(self._clock(), step, event, advice)
        if event in ("advised", "withdrawn"):
            self._log({f"advice/{advice.rule}": advice.confidence if event == "advised" else 0.0})
        for logger in self._trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                with contextlib.suppress(OSError):  # a full disk is told of by those who watch it
                    logger.experiment.add_text(f"advice/{advice.rule}", as_text(event, advice), step)

    def _log(self, metrics: dict[str, float]) -> None:
        for logger in self._trainer.loggers:
            logger.log_metrics(metrics, step=self._step())

    # -- state -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that decisions depend on, and the settings as they were changed."""
        if self._vitals is None and self._diary is None:  # no training yet
            return self._loaded or {}
        return {
            "version": 1,
            "signals": self._signals.state_dict(),
            "standing": self._standing.state_dict(),
            "vitals": self._vitals.state_dict() if self._vitals else None,
            "adapter": self._adapter.state_dict() if self._adapter else None,
            "measured": sorted(self._measured),
            "unrepeatable": sorted(self._unrepeatable),
            "is_measuring": self._is_measuring,
            "next_look": self._next_look,
            "num_looks": self._num_looks,
            "num_lines": self._diary.num_lines if self._diary else 0,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back as training starts: settings are there by then."""
        self._loaded = dict(state) or None

    def _restore(self, state: dict[str, Any]) -> None:
        self._signals.load_state_dict(state["signals"])
        self._standing.load_state_dict(state["standing"])
        if self._vitals is not None and state["vitals"] is not None:
            self._vitals.load_state_dict(state["vitals"])
        if self._adapter is not None and state["adapter"] is not None:
            self._adapter.load_state_dict(state["adapter"])
            self._signals.settings |= self._adapter.effective
        self._measured, self._unrepeatable = set(state["measured"]), set(state["unrepeatable"])
        self._is_measuring = state["is_measuring"]
        self._next_look, self._num_looks = state["next_look"], state["num_looks"]


def as_text(event: str, advice: Advice) -> str:
    """One line: what is the matter, and what is or should be set."""
    if event == "withdrawn":
        return f"withdrawn ({advice.rule}): {advice.message}"
    changes = ", ".join(f"{c.setting} {_short(c.value)} -> {_short(c.proposed)}" for c in advice.changes)
    return f"{event} ({advice.rule}, {advice.priority}): {advice.message}{f' [{changes}]' if changes else ''}"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _hand_over(module: Any, watch: Callable[[Mapping[str, Any]], None] | None) -> None:
    if hasattr(module, "metrics_watch"):
        module.metrics_watch = watch


def _period(position: int, most: int) -> int:
    """Steps to the next look: uneven, so that what happens every so many steps is not always missed."""
    return min(most, max(_FIRST_EVERY, position // 20) + position % 7)


def _narrowed(setting: Adaptable, low: float = -float("inf"), high: float = float("inf")) -> Adaptable:
    return replace(setting, low=max(low, setting.low), high=min(high, setting.high))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)
