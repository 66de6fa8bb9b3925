"""The command `perdqn fit`: a new run.

Knows nothing about how a run is carried out once it may begin.
"""

from __future__ import annotations

from pathlib import Path

from perdqn.assembly import RunCLI
from perdqn.cli.checkpoints import read_full_checkpoint, refuse_other_shapes
from perdqn.cli.command_line import expand, spell
from perdqn.cli.quiet import quietly
from perdqn.cli.sitting import train
from perdqn.run.saves import find_save


@quietly
def fit(argv: list[str]) -> int:
    """Train; returns the exit code."""
    checkpoint: str | None = None

    def approve(cli: RunCLI) -> None:
        nonlocal checkpoint
        if cli.config.ckpt_path is not None:
            save = find_save(cli.config.ckpt_path, Path())
            checkpoint = str(save.checkpoint)
            refuse_other_shapes(cli, read_full_checkpoint(save), save.checkpoint)

    cli = RunCLI("fit", expand(argv), told=spell("fit", argv), approve=approve)
    return train(cli, checkpoint)
