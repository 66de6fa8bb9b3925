"""Advice for a run that had none as it went: from its settings, its logs and its newest checkpoint.

Knows nothing about single rules.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import yaml
from holdfast.advising.signals import Signals
from holdfast.storage.parts import load_parts

from perdqn.advice import RULES, advise
from perdqn.cli.checkpoints import read_checkpoint
from perdqn.cli.command_line import Refused
from perdqn.cli.quiet import quiet
from perdqn.config import read
from perdqn.config.values import flatten
from perdqn.health import Health
from perdqn.module import PERDQN, STATE_KEY
from perdqn.reporting.curves import read_curves
from perdqn.run.advice import Record
from perdqn.run.folder import RunFolder
from perdqn.run.saves import find_save


def examine(run: RunFolder) -> list[Record]:
    """Advice as in `perdqn.run.advice.read_advice`.

    Raises:
        Refused: nothing is known of the run.
    """
    if not run.config.is_file():
        raise Refused(f"{run.path} has no config.yaml and no advice; name a run folder")
    config, _ = read(yaml.safe_load(run.config.read_text())["model"])
    signals, newest = Signals({f"model.{key}": value for key, value in flatten(config).items()}), 0
    scalars = sorted(_read_scalars(run))
    if not any(name.startswith("health/") for _, name, _ in scalars):
        scalars += _measure(run)
    for newest, name, value in scalars:
        signals.add(newest, {name: value})
    found = advise(RULES, signals)
    return [
        {"time": time.time(), "step": newest, "event": "advised", "advice": advice.as_dict()}
        for advice in found
    ]


def _read_scalars(run: RunFolder) -> Iterator[tuple[int, str, float]]:
    """Env step, name and value of all that was logged to TensorBoard."""
    for name, curve in read_curves(run.path).items():
        yield from zip(curve.steps.tolist(), [name] * len(curve.steps), curve.values.tolist(), strict=True)


def _measure(run: RunFolder) -> Iterator[tuple[int, str, float]]:
    """What a run that logs nothing, or is of an earlier version, would have logged at its newest save."""
    save = find_save(str(run.path), run.path)
    saved = read_checkpoint(save)
    with quiet():
        module = PERDQN(**saved["hyper_parameters"])
        health = Health(module)  # remembers the weights it began with
        module.load_state_dict(saved["state_dict"])
        module.on_load_checkpoint(saved)
        if "replay" in saved[STATE_KEY]:
            module.memory.load_state_dict(saved[STATE_KEY]["replay"])
        else:
            load_parts("module", module, saved, save.folder)
        figures = health.measure(module)
    yield from ((module.env_steps, name, value) for name, value in figures.items())
