"""How updates are computed: by torch as it comes (eager), or as one compiled graph; decided once a run.

Knows nothing about how either works.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule

from perdqn.config import Config

WORTHWHILE_UPDATES = 15_000  # compiling takes some 15 s, and saves about 1 ms an update of a small network
COMPILES = "compiling the learning step, once for this network on this machine: some 10 to 30 s"
STARTS = "updates are not compiled, since {why}; eager ones are several times slower for small networks"
GOES_ON = (
    "this run began with compiled updates, which cannot be had here, since {why}; it goes on with eager "
    "ones, and will differ in last bits from a run that was never interrupted"
)
NOT_COMPILED = "model.learner.backend compiled cannot be had here, since {why}; use auto or eager"
_SEAMS = (
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
    "optimizer_step",
    "configure_gradient_clipping",
)


def choose_backend(config: Config, before: str | None) -> str:
    """``eager`` or ``compiled``: what the setting names, or else what the run began with.

    A new run is compiled by itself where its budget makes at least `WORTHWHILE_UPDATES`; a budget in episodes
    does not say how many it makes.

    Args:
        before: what the run began with; None for a new one.
    """
    learner = config.learner
    if learner.backend != "auto":
        return learner.backend
    if before is not None:
        return before
    env_steps = (config.total_env_steps or 0) - learner.warmup_env_steps
    return "compiled" if env_steps / learner.train_every >= WORTHWHILE_UPDATES else "eager"


def obstacle(trainer: Any) -> str | None:
    """Why updates must pass through Lightning one by one, if they must."""
    if trainer.world_size > 1:
        return "several devices train together"
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        return "16-mixed precision scales gradients"
    for owner in (trainer.lightning_module, *trainer.callbacks):
        base = LightningModule if isinstance(owner, LightningModule) else Callback
        own = [
            name
            for name in _SEAMS
            if hasattr(base, name) and getattr(type(owner), name) is not getattr(base, name)
        ]
        if own and not getattr(owner, "follows_compiled_updates", False):
            return f"{type(owner).__name__}.{own[0]} wants to be called in each"
    return None
