"""What Lightning profiles, by phase.

Knows nothing about clocks.
"""

from __future__ import annotations

STEP = ("forward", "backward")  # of a training step, the optimiser's aside
CATEGORIES = (
    "data",
    "environment",
    "transfer",
    *STEP,
    "optimiser",
    "callbacks",
    "logging",
    "validation",
    "checkpoint",
    "loop",
)

_OWN = {
    "[_TrainingEpochLoop].train_dataloader_next": "data",
    "run_training_batch": "loop",
    "optimizer_step": "optimiser",  # of a manual optimisation
    "save_checkpoint": "checkpoint",
}
_STRATEGY = {"batch_to_device": "transfer", "training_step": "forward", "backward": "backward"}
_OPTIMISER = ("optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping", "lr_scheduler_step")
_ELSEWHERE = (
    "validation",
    "val_",
    "test",
    "predict",
    "checkpoint",
    "save",
    "load",
)  # within phases of theirs


def phase_of(action: str) -> str | None:
    """``category`` or ``category/whose``; None for what is left to the phase around it."""
    if action in _OWN or not action.startswith("["):
        return _OWN.get(action)
    kind, _, rest = action[1:].partition("]")
    owner, _, hook = rest.rpartition(".")
    if any(word in hook for word in _ELSEWHERE):
        return None
    if kind == "Strategy":
        return _STRATEGY.get(hook)
    if kind == "LightningModule" and hook in _OPTIMISER:
        return "optimiser"
    is_hook = hook.startswith("on_") and kind in ("Callback", "LightningModule", "LightningDataModule")
    return f"callbacks/{owner.partition('{')[0]}" if is_hook else None


def category_of(phase: str) -> str:
    """``callbacks`` of ``callbacks/EarlyStopping``."""
    return phase.partition("/")[0]
