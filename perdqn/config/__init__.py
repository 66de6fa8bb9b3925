"""The settings of a run: dataclasses, what is wrong with them, and a summary.

Knows nothing about torch, Lightning or Gymnasium: whatever reads a setting, imports this package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perdqn.config.checks import ConfigWarning, Report, check, row_bytes
from perdqn.config.coercion import ConfigError, coerce, read
from perdqn.config.settings import (
    HEAD_NAMES,
    TORSO_NAMES,
    ClassSpec,
    Config,
    EnvConfig,
    EvaluationConfig,
    ExplorationConfig,
    LearnerConfig,
    ReplayConfig,
)
from perdqn.config.summary import format_config_summary, get_config_summary

__all__ = [
    "HEAD_NAMES",
    "TORSO_NAMES",
    "ClassSpec",
    "Config",
    "ConfigError",
    "ConfigWarning",
    "EnvConfig",
    "EvaluationConfig",
    "ExplorationConfig",
    "LearnerConfig",
    "ReplayConfig",
    "Report",
    "check",
    "coerce",
    "format_config_summary",
    "from_dict",
    "get_config_summary",
    "read",
    "row_bytes",
]


def from_dict(data: Mapping[str, Any]) -> Config:
    """A checked `Config`; each section may be a dataclass, a dict, or where it has a short form a string.

    Raises:
        ConfigError: unknown names, wrong types, values and combinations, all together.
    """
    config, faults = read(data)
    if faults := faults + check(config).faults:
        raise ConfigError(faults)
    return config


check(Config()).raise_faults()
