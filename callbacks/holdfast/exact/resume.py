"""Exact resume: what Lightning leaves out of a checkpoint, saved at a boundary and restored at the same one.

Knows nothing about files, and nothing about what is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from ..around import around
from .data_position import DataPosition
from .evaluation import AbortableEvaluation
from .exactness import state_exactness
from .hidden import Hidden, get_gradients, set_gradients
from .logs import resume_logging
from .loop_state import capture_loops, forget_restart, restore_loops
from .rng import get_global_rng, set_global_rng

VERSION = 1
KEY = "holdfast"  # our entry in a Lightning checkpoint
_UNSET = -2


class ExactResume:
    """Of one trainer: stands around the methods of its loops that a resume has to change.

    Random streams are put back last, where the saved boundary was: loops, hooks and drawing have moved them.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.hidden: Hidden | None = None
        self.is_quiet = False  # nobody asked how exact a resume is
        self.begin()
        fit_loop, epoch_loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
        around(fit_loop, "setup_data", self._make_train_loaders)
        around(fit_loop, "_load_combined_loader_states", self._make_first_iterator)
        around(fit_loop, "on_run_start", self._start_training)
        around(epoch_loop, "reset", self._reset_epoch)
        around(epoch_loop.val_loop, "setup_data", self._make_val_loaders)
        around(epoch_loop.val_loop, "run", self._evaluate)

    def begin(self) -> None:
        """A fit begins."""
        self.data = DataPosition(self._trainer)
        self.evaluation = AbortableEvaluation(self._trainer, self.data)
        self._changed_in_sanity_check: frozenset[tuple[str, str]] = frozenset()
        self._pending: dict[str, Any] | None = None
        self._max_steps = _UNSET
        self._is_finished = False
        self.exactness = ""
        self._named: set[str] = set()

    def load(self, checkpoint: dict[str, Any]) -> None:
        """The fit that begins resumes from ``checkpoint``; without our state, as stock Lightning does.

        Raises:
            ValueError: the state is of a newer version.
        """
        state = checkpoint.get(KEY, {}).get("exact")
        if not state or self._pending is not None:
            return
        if state["version"] > VERSION:
            raise ValueError(
                f"the checkpoint's exact state has version {state['version']}, this holdfast reads up to "
                f"{VERSION}; upgrade lightning-holdfast"
            )
        self._pending = state
        if state["data"] is not None:
            loop = checkpoint["loops"]["fit_loop"]["state_dict"]
            self.data.resume_from(state["data"], loop.get("combined_loader", []), state["is_finished"])

    # -- around Lightning's own -----------------------------------------------------------------

    def _make_train_loaders(self, setup_data: Callable[[], None]) -> None:
        epoch_loop = self._trainer.fit_loop.epoch_loop
        is_mid_epoch = self._pending is not None and not self._pending["is_finished"]
        if is_mid_epoch and 0 <= epoch_loop.max_steps <= epoch_loop.global_step and self._max_steps == _UNSET:
            # else the loop would not even start, and the epoch's end hooks were never called
            self._max_steps, epoch_loop.max_steps = epoch_loop.max_steps, -1
        self.data.make_train_loaders(setup_data)

    def _make_first_iterator(self, load_loader_states: Callable[[], None]) -> None:
        self.data.make_first_iterator(load_loader_states)

    def _make_val_loaders(self, setup_data: Callable[[], None]) -> None:
        self.data.make_val_loaders(setup_data)

    def _start_training(self, on_run_start: Callable[[], None]) -> None:
        on_run_start()
        self._look_at_attributes()
        self._is_finished = False
        if self._pending is not None and self._pending["is_finished"]:
            self._restore(self._pending)  # the run is made longer: an epoch starts as any other

    def _look_at_attributes(self) -> None:
        is_here_again = self.hidden is not None and self.hidden.is_of(self._trainer.lightning_module)
        if self.hidden is not None and is_here_again and self._pending is not None:
            self.hidden.go_to_start()  # rolled back within a process
        else:
            self.hidden = Hidden(self._trainer, self._changed_in_sanity_check)

    def _reset_epoch(self, reset: Callable[[], None]) -> None:
        if self._pending is None:
            reset()

    def start_epoch(self, on_run_start: Callable[[Any], None], fetcher: Any) -> None:
        """Around the epoch loop's; a run that resumes is then at the boundary that was saved."""
        self.data.start_epoch(on_run_start, fetcher)
        if not self.exactness:
            self._say_how_exact()
        if self._pending is not None:
            self._resume_epoch(fetcher, self._pending)

    def _say_how_exact(self) -> None:
        self.exactness = state_exactness(self._trainer)
        if not self.is_quiet:
            tell = rank_zero_warn if self.exactness.startswith("not") else rank_zero_info
            tell(f"resuming this run is {self.exactness}")

    def _resume_epoch(self, fetcher: Any, state: dict[str, Any]) -> None:
        epoch_loop = self._trainer.fit_loop.epoch_loop
        if self._max_steps != _UNSET:
            epoch_loop.max_steps, self._max_steps = self._max_steps, _UNSET
        self._restore(state)
        if state["is_evaluation_due"]:
            epoch_loop.on_advance_end(fetcher)

    def _evaluate(self, run: Callable[[], Any]) -> Any:
        if self._trainer.sanity_checking:
            before = Hidden(self._trainer)
            run()
            self._changed_in_sanity_check = before.changed()  # a resumed run has none
            return None
        if self.hidden is None:
            return run()
        return self.evaluation.run(run, self.hidden)

    def finish(self) -> None:
        """The last epoch is over."""
        self._is_finished = True

    # -- state ----------------------------------------------------------------------------------

    def capture(self, is_evaluation_due: bool) -> dict[str, Any]:
        """At a boundary, as plain types."""
        trainer = self._trainer
        assert self.hidden is not None
        state = {
            "version": VERSION,
            "exactness": self.exactness,
            "is_finished": self._is_finished,
            "is_evaluation_due": is_evaluation_due,
            "rng": get_global_rng(),
            "data": self.data.capture(),
            "loops": capture_loops(trainer),
            "hidden": self.hidden.capture(),
            "gradients": get_gradients(trainer.lightning_module) if _gradients_count(trainer) else None,
        }
        self._name_unsaved(self.hidden.unsaved)
        return state

    def _name_unsaved(self, unsaved: dict[str, str]) -> None:
        module = self._trainer.lightning_module
        keeps_them = type(module).on_save_checkpoint is not LightningModule.on_save_checkpoint
        news = {name: kind for name, kind in unsaved.items() if name not in self._named}
        self._named |= news.keys()
        if news and not keeps_them:
            listed = ", ".join(f"{name} (a {kind})" for name, kind in news.items())
            rank_zero_warn(
                f"attributes that training changed are not saved: {listed}; save them in on_save_checkpoint, "
                "or a resumed run begins with new ones"
            )

    def _restore(self, state: dict[str, Any]) -> None:
        trainer = self._trainer
        assert self.hidden is not None
        forget_restart(trainer)
        self.data.warn_of_shared_streams(state["rng"])
        restore_loops(trainer, state["loops"])
        self.hidden.restore(state["hidden"])
        if state["gradients"] is not None:
            set_gradients(trainer.lightning_module, state["gradients"])
        self.data.finish()
        self._pending = None
        resume_logging(trainer)
        set_global_rng(state["rng"])


def _gradients_count(trainer: Trainer) -> bool:
    """A window of accumulation may be open: signals are obeyed in long ones too, so gradients are saved."""
    module = trainer.lightning_module
    if module.automatic_optimization:
        return trainer.fit_loop._should_accumulate()
    return not getattr(module, "saves_own_state", False)
