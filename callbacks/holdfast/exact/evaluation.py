"""A validation that can be given up: the run goes back to where it was before, and the validation stays due.

Knows nothing about saving, and nothing about who asks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from .data_position import DataPosition
from .hidden import Hidden, weights_mark
from .loop_state import capture_metrics, restore_metrics
from .rng import get_global_rng, set_global_rng


class EvaluationAborted(BaseException):
    """Leaves Lightning's validation loop; no ``except Exception`` of a user holds it up."""


class AbortableEvaluation:
    """Around the validation loop's ``run`` while training."""

    def __init__(self, trainer: Trainer, data: DataPosition) -> None:
        self._trainer, self._data = trainer, data
        self._before: dict[str, Any] | None = None
        self._weights: Any = None
        self.is_abort_requested = False

    def run(self, run: Callable[[], Any], hidden: Hidden) -> Any:
        """One validation.

        Raises:
            EvaluationAborted: it was given up.
        """
        self._before = self._snapshot(hidden)
        self._weights = weights_mark(self._trainer.lightning_module)
        try:
            self.check()
            return run()
        finally:
            self._weights = None

    def check(self) -> None:
        """Where a validation batch starts: is it wanted still?

        Raises:
            EvaluationAborted: the validation is given up.
        """
        if not self.is_abort_requested or self._weights is None:
            return
        if self._weights == weights_mark(self._trainer.lightning_module):
            raise EvaluationAborted
        self.is_abort_requested = False
        rank_zero_info("the validation is finished before the run stops: it has changed the weights")

    def _snapshot(self, hidden: Hidden) -> dict[str, Any]:
        trainer = self._trainer
        val_loop = trainer.fit_loop.epoch_loop.val_loop
        return {
            "rng": get_global_rng(),
            "generators": self._data.get_generators(),
            "hidden": hidden,
            "attributes": hidden.capture(also_unchanged=True),
            "metrics": capture_metrics(trainer),
            "progress": val_loop.batch_progress.state_dict(),
            "has_run": val_loop._has_run,
            "batches_seen": dict(val_loop._seen_batches_per_dataloader),
        }

    def go_back(self) -> None:
        """All as it was; the validation is still due."""
        trainer, before = self._trainer, self._before
        assert before is not None
        val_loop = trainer.fit_loop.epoch_loop.val_loop
        val_loop._on_evaluation_model_train()
        val_loop._results.reset()
        val_loop._logged_outputs = []
        val_loop.batch_progress.load_state_dict(before["progress"])
        val_loop._has_run = before["has_run"]
        val_loop._seen_batches_per_dataloader.clear()
        val_loop._seen_batches_per_dataloader.update(before["batches_seen"])
        trainer.training = True
        trainer.lightning_module._current_fx_name = None  # left behind by the hook that was interrupted
        restore_metrics(trainer, before["metrics"])
        before["hidden"].restore(before["attributes"], remember=False)
        self._data.set_generators(before["generators"])
        set_global_rng(before["rng"])
        self._before, self.is_abort_requested = None, False
