"""A run's settings by the names a user types, and those that may change while it goes on.

Knows nothing about who changes them, or why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, is_dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from holdfast.advising.rule import Adaptable

from perdqn.config.values import flatten

if TYPE_CHECKING:
    from perdqn.module import PERDQN

ADAPTABLE = MappingProxyType(  # lowest and highest value
    {
        "model.learner.learning_rate": (1e-6, 1e-2),
        "model.learner.target_update_period": (1, 100_000),
        "model.exploration.epsilon_end": (0.001, 0.3),
        "model.replay.beta_end": (0.1, 1.0),
    }
)


def settings_of(module: PERDQN) -> dict[str, Any]:
    """Plain values by dotted name, ``model.learner.gamma`` for one."""
    return {f"model.{key}": _plain(value) for key, value in flatten(module.config).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def adaptable_settings(module: PERDQN) -> dict[str, Adaptable]:
    """What later steps alone depend on. Whoever changes one sets it again where the run is resumed.

    Epsilon and beta change their end, where a schedule that has ended goes at once.
    """
    experience, config = module.experience, module.config
    group = module.optimizers().optimizer.param_groups[0]  # type: ignore[union-attr]

    def end(name: str) -> Callable[[float], None]:
        def change(value: float) -> None:
            setattr(experience, name, replace(getattr(experience, name), end=value))

        return change

    def set_period(value: float) -> None:
        config.learner.target_update_period = max(1, round(value))

    ways = {
        "model.learner.learning_rate": (
            lambda: float(group["lr"]),
            lambda value: group.update(lr=value),
        ),
        "model.learner.target_update_period": (
            lambda: float(config.learner.target_update_period),
            set_period,
        ),
        "model.exploration.epsilon_end": (lambda: experience.epsilon.end, end("epsilon")),
        "model.replay.beta_end": (lambda: experience.beta.end, end("beta")),
    }
    return {name: Adaptable(*ways[name], *bounds) for name, bounds in ADAPTABLE.items()}
