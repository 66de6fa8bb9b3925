"""What the numbers of a run say: which phase of learning it is in, and how its parts are doing.

Knows nothing about how the numbers came about; it reads a `PERDQN` and changes nothing in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from perdqn.probe import Networks, probe

if TYPE_CHECKING:
    from perdqn.module import PERDQN

NUM_FLAT_EVALUATIONS = 4
LearningPhase = Literal["warm-up", "exploration", "learning", "converged"]


class Evaluation(NamedTuple):
    """One evaluation during training: mean return and its 95 % interval."""

    mean: float
    low: float
    high: float


def learning_phase(
    env_steps: int,
    warmup_env_steps: int,
    epsilon: float,
    epsilon_end: float,
    evaluations: Sequence[Evaluation] = (),
    has_reached_target: bool = False,
) -> LearningPhase:
    """Where a run is on its way.

    ``warm-up`` until the first update is due, ``exploration`` while epsilon is still annealed. After
    that ``converged`` where the means of the newest `NUM_FLAT_EVALUATIONS` evaluations all lie within
    the newest one's interval, else ``learning``. A target that has been reached is ``converged`` too.
    Flat says nothing about how good: a policy stuck at the lowest return is flat as well.

    Args:
        epsilon: now.
        epsilon_end: where its schedule ends.
        evaluations: of this run, oldest first.
        has_reached_target: whether the newest mean is at ``model.evaluation.stop_at_return``.
    """
    if has_reached_target:
        return "converged"
    if env_steps < warmup_env_steps:
        return "warm-up"
    if epsilon != epsilon_end:
        return "exploration"
    return "converged" if _is_flat(evaluations) else "learning"


def _is_flat(evaluations: Sequence[Evaluation]) -> bool:
    newest = evaluations[-NUM_FLAT_EVALUATIONS:]
    if len(newest) < NUM_FLAT_EVALUATIONS:
        return False
    return all(newest[-1].low <= evaluation.mean <= newest[-1].high for evaluation in newest)


def training_diagnostics(module: PERDQN) -> dict[str, Any]:
    """A nested dict of plain values on progress, replay, Q-values, gradients, schedules and device.

    What has not been measured yet is None. Q-values and TD errors are those of the networks as they
    are now, on up to `NUM_PROBED` transitions evenly spread over the replay: not drawn by priority, so
    that figures of two moments can be compared, and no random stream moves on.
    """
    with Networks(module) as networks:
        seen = probe(module, networks)
    return {
        "training_progress": _get_progress(module),
        "memory_info": _get_memory_info(module),
        "q_values": _summarize(seen and seen.q_values),
        "td_error": _summarize(seen and seen.td_error),
        "gradients": {
            "norm": module.latest.get("train/grad_norm"),
            "max_norm": module.config.learner.max_grad_norm,
            "loss": module.latest.get("train/loss"),
        },
        "schedules": {
            "epsilon": module.experience.epsilon(module.env_steps),
            "beta": module.experience.beta(module.env_steps),
            "learning_rate": module.latest.get("train/learning_rate", module.config.learner.learning_rate),
        },
        "device": {
            "type": module.device.type,
            "name": _get_device_name(module.device),
            "dtype": str(next(module.online.parameters()).dtype).removeprefix("torch."),
            "num_parameters": sum(parameter.numel() for parameter in module.online.parameters()),
            "num_threads": torch.get_num_threads(),
        },
    }


def _get_progress(module: PERDQN) -> dict[str, Any]:
    config = module.config
    recent = module.recent_episodes.compute()
    has_episodes = recent["num_episodes"] > 0
    target, newest = config.evaluation.stop_at_return, module.newest_evaluation_mean
    return {
        "learning_phase": learning_phase(
            module.env_steps,
            config.learner.warmup_env_steps,
            module.experience.epsilon(module.env_steps),
            config.exploration.epsilon_end,
            module.evaluations,
            target is not None and newest is not None and newest >= target,
        ),
        "env_steps": module.env_steps,
        "total_env_steps": config.total_env_steps,
        "updates": module.update_steps,
        "episodes": module.episodes,
        "total_episodes": config.total_episodes,
        "return_mean": recent["mean"] if has_episodes else None,
        "length_mean": recent["length_mean"] if has_episodes else None,
        "newest_evaluation_mean": newest,
        "best_evaluation_mean": module.best_evaluation_mean,
        "stop_reason": module.stop_reason,
    }


def _get_memory_info(module: PERDQN) -> dict[str, Any]:
    memory = module.memory
    stats = memory.get_performance_stats()
    usage = stats["memory_usage"]
    health = ("cache_hit_rate", "effective_sample_size", "priority_entropy", "priority_max", "samples_drawn")
    return {
        "memory_size": len(memory),
        "capacity": memory.capacity,
        "fill_fraction": len(memory.rows) / memory.capacity,
        "bytes": usage["reserved_bytes"],
        "bytes_per_transition": usage["bytes_per_transition"],
        "process_rss_bytes": usage["process_rss_bytes"],
        "alert": bool(usage["alert"]),
        **{name: _plain(stats[name]) for name in health},
    }


def _summarize(values: Tensor | None) -> dict[str, float | None]:
    names = ("mean", "std", "min", "max", "abs_mean")
    if values is None:
        return {**dict.fromkeys(names), "num_transitions": 0}
    wide = values.double()
    figures = (wide.mean(), wide.std(correction=0), wide.min(), wide.max(), wide.abs().mean())
    plain = {name: figure.item() for name, figure in zip(names, figures, strict=True)}
    return {**plain, "num_transitions": len(values)}


def _plain(value: Any) -> int | float | None:
    number = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(number, float) and math.isnan(number) else number


def _get_device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
