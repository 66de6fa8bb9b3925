"""The settings of a run as a nested plain dict and as text, with the numbers that follow from them.

Knows nothing about what a run measured.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from perdqn.config.rules import updates_in_budget
from perdqn.config.settings import Config
from perdqn.config.wording import shown


def get_config_summary(config: Config | None = None) -> dict[str, Any]:
    """The settings by section, and what follows from them under ``derived``.

    Args:
        config: None for the shipped defaults.

    Returns:
        Only dicts, lists, strings, numbers, booleans and None; a copy.
    """
    config = Config() if config is None else config
    settings = asdict(config)
    budget = {name: settings[name] for name in ("total_env_steps", "total_episodes", "seed")}
    return {
        "training": settings["learner"] | budget,
        "replay": settings["replay"],
        "exploration": settings["exploration"],
        "network": {"torso": settings["network"], "head": settings["head"]},
        "environment": settings["env"],
        "evaluation": settings["evaluation"],
        "derived": _derived(config),
    }


def _derived(config: Config) -> dict[str, Any]:
    """Numbers no setting states; those per budget are None where the budget is counted in episodes."""
    learner, budget, every = config.learner, config.total_env_steps, config.evaluation.every_env_steps
    updates = (
        None if budget is None else updates_in_budget(learner.warmup_env_steps, learner.train_every, budget)
    )
    return {
        "updates": updates,
        "target_updates": None if updates is None else updates // learner.target_update_period,
        "evaluations": None if budget is None else budget // every if every else 0,
        "samples_drawn": None if updates is None else updates * learner.batch_size,
        "replay_ratio": learner.batch_size / learner.train_every,
        "updates_per_env_step": 1 / learner.train_every,
        "rows_per_env": config.replay.capacity // config.env.num_envs,
    }


def format_config_summary(summary: dict[str, Any]) -> str:
    """A text with one line per setting, values aligned."""
    lines = []
    for section, settings in summary.items():
        flat = _flatten(settings)
        width = max(map(len, flat), default=0)
        lines += [section, *(f"  {name:<{width}}  {value}" for name, value in flat.items()), ""]
    return "\n".join(lines)


def _flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, str) else shown(value)
    return flat
