"""Whether the settings of a run can work: every fault at once, and a warning for what is legal but unwise.

Knows nothing about torch, Lightning or Gymnasium; an environment is known by its observation columns only.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from perdqn.config.coercion import ConfigError
from perdqn.config.rules import RULES, Fault
from perdqn.config.settings import Config
from perdqn.config.trainer import trainer_faults
from perdqn.config.values import SECTIONS, flatten, own_fault, own_warning
from perdqn.config.wording import sentence

# action 4, reward 4, flags 1, priority 8, whether it was measured 1, leaf and its share of the tree 9
ROW_OVERHEAD_BYTES = 31
COMPRESSED_OVERHEAD_BYTES = 12  # where a frame lies, and its size


class ConfigWarning(UserWarning):
    """A setting that is legal but unwise."""


@dataclass
class Report:
    """What `check` found, one sentence each."""

    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def raise_faults(self) -> None:
        """Do nothing where there are none.

        Raises:
            ConfigError: with all of them.
        """
        if self.faults:
            raise ConfigError(self.faults)


def check(
    config: Config,
    *,
    trainer: Mapping[str, Any] | None = None,
    known_faulty: Collection[str] = (),
) -> Report:
    """All that is wrong or unwise in ``config``.

    Args:
        trainer: arguments of the Trainer, those the user gave or all.
        known_faulty: settings reported elsewhere, such as ``replay.alpha``; nothing is judged by their value.
    """
    if misplaced := _misplaced_sections(config):
        return Report(misplaced)
    values = {key: value for key, value in flatten(config).items() if key not in known_faulty}
    faults = {key: text for key, value in values.items() if (text := own_fault(key, value))}
    sound = {key: value for key, value in values.items() if key not in faults}
    report = Report(list(faults.values()), list(filter(None, (own_warning(*item) for item in sound.items()))))
    for rule in RULES:
        if sound.keys() >= set(rule.keys):
            for finding in rule.judge(*(sound[key] for key in rule.keys)):
                (report.faults if isinstance(finding, Fault) else report.warnings).append(str(finding))
    report.faults += trainer_faults(trainer or {})
    return report


def row_bytes(spec: Any, storage: str = "raw") -> int:
    """Bytes one replay row takes: a single frame of every column, and what is kept beside it.

    What images shrink to by ``lz4`` is known only once there are some: it is not counted.
    """

    def frame_bytes(column: Any) -> int:
        if storage == "lz4" and column.is_byte_image:
            return COMPRESSED_OVERHEAD_BYTES
        return math.prod(column.shape) * int(column.dtype.itemsize)

    return sum(map(frame_bytes, spec.columns)) + ROW_OVERHEAD_BYTES


def _misplaced_sections(config: Config) -> list[str]:
    """A fault for each section that is not of its dataclass, as when a `Config` is built with a dict."""
    given = {name: getattr(config, name) for name in SECTIONS}
    return [
        sentence(f"model.{name}", f"be of {SECTIONS[name].__name__}", value, "from_dict takes dicts")
        for name, value in given.items()
        if not isinstance(value, SECTIONS[name])
    ]
