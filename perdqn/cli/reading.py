"""The commands that read: `perdqn validate`, `test`, `check`, `export` and `completion`.

Knows nothing about training; a run is left as it is.
"""

from __future__ import annotations

import contextlib
import json
import os
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from holdfast.storage.durable import write_whole

from perdqn import handover
from perdqn.acting.environment import episode_seed
from perdqn.assembly import RunCLI, warn
from perdqn.cli.checkpoints import read_checkpoint, spell_settings
from perdqn.cli.command_line import Refused, expand, get_root, is_asking, split_reference
from perdqn.cli.parsers import get_parsers
from perdqn.cli.quiet import quietly
from perdqn.config import format_config_summary, get_config_summary
from perdqn.module import PERDQN
from perdqn.run.folder import require_writable
from perdqn.run.saves import find_save
from perdqn.run.summary import format_evaluation, get_evaluation


@quietly
def validate(argv: list[str]) -> int:
    """Evaluate a checkpoint on the episodes it was chosen by."""
    return _evaluate("validate", argv)


@quietly
def test(argv: list[str]) -> int:
    """Evaluate a checkpoint on episodes never used to choose anything."""
    return _evaluate("test", argv)


def _evaluate(command: str, argv: list[str]) -> int:
    reference, options = split_reference(argv)
    if is_asking(argv):
        RunCLI(command, expand(options))  # prints what was asked for
        return 0
    save = find_save(reference, get_root(options), best="--best" in options)
    run, checkpoint, saved = save.run, save.checkpoint, read_checkpoint(save)
    settings = ["--config", str(run.config)] if run.config.is_file() else spell_settings(saved)
    cli = RunCLI(command, [*settings, *expand(options)], approve=_approve_files)
    warn(cli.report.warnings)
    try:
        cli.model.load_state_dict(saved["state_dict"])
    except RuntimeError as error:
        raise Refused(f"{checkpoint} does not fit the settings: {error}") from None
    getattr(cli.trainer, command)(cli.model, verbose=False)
    metrics, prefix = cli.trainer.callback_metrics, "eval" if command == "validate" else "test"
    num_episodes = int(metrics.get(f"{prefix}/num_episodes", 0))
    statistics = get_evaluation(metrics, prefix)
    _report(cli, {"checkpoint": str(checkpoint), "episodes": num_episodes, **statistics})
    return 0


def _approve_files(cli: RunCLI) -> None:
    """Say so where a file could not be written, before episodes are played for it."""
    for option in ("out", "video"):
        path = cli.config[option]
        with _naming_file(f"--{option}", path):
            if path:
                require_writable(Path(path))


@contextlib.contextmanager
def _naming_file(option: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"{option} {path} cannot be written: {error.strerror or error}"
        raise Refused(f"{reason}; name a file in a folder of yours") from None


def _report(cli: RunCLI, figures: dict[str, Any]) -> None:
    print(f"checkpoint  {figures['checkpoint']}")
    print(f"episodes    {figures['episodes']}, {figures['length_mean'] or 0:,.1f} steps each")
    print(f"return      {format_evaluation(figures)}")
    if cli.config.video:
        figures |= _record(cli, Path(cli.config.video))
    if cli.config.out:
        write_whole(Path(cli.config.out), json.dumps(figures, indent=2, allow_nan=False) + "\n")
        print(f"figures     {cli.config.out}")


def _record(cli: RunCLI, path: Path) -> dict[str, Any]:
    from perdqn.recording import record

    try:
        played = record(cli.model, path, seed=episode_seed(cli.settings.seed, "record", 0, 0))
    except ValueError as error:
        raise Refused(str(error)) from None
    print(f"video       {path}, return {played.episode_return:,.1f} in {played.length} steps")
    return {"video": str(path), "video_return": played.episode_return}


@quietly
def check(argv: list[str]) -> int:
    """Judge the settings without training."""
    cli = RunCLI("check", expand(argv))
    if cli.preflight is None:
        raise Refused("the environment could not be looked at")
    print(format_config_summary(get_config_summary(cli.settings)))
    print(cli.preflight.table())
    warn(cli.report.warnings)
    print("no faults")
    return 0


@quietly
def export(given: Namespace) -> int:
    """Write a checkpoint's policy as a program."""
    save = find_save(given.run, given.root, given.best)
    read_checkpoint(save)
    module = PERDQN.load_from_checkpoint(save.checkpoint, map_location="cpu", weights_only=True)
    try:
        with _naming_file("--to", given.to):
            difference = handover.export(module, Path(given.to))
    except ValueError as error:
        raise Refused(str(error)) from None
    print(f"{given.to} agrees with the network to {difference:.1e}")
    return 0


@quietly
def completion(given: Namespace) -> int:
    """Print a shell's completion script."""
    from perdqn.completion import SHELLS, get_script

    shell = given.shell or Path(os.environ.get("SHELL", "bash")).name
    if shell not in SHELLS:
        raise Refused(f"perdqn completion knows {', '.join(SHELLS)}, got {shell}")
    print(get_script(shell, get_parsers()))
    return 0
