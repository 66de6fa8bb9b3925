"""The commands that train: `perdqn fit` and `perdqn resume`.

Knows nothing about how a run is carried out once it may begin.
"""

from __future__ import annotations

from pathlib import Path

from perdqn.assembly import RunCLI
from perdqn.cli.checkpoints import read_full_checkpoint, refuse_other_shapes
from perdqn.cli.command_line import Refused, expand, get_root, is_asking, spell, split_reference
from perdqn.cli.quiet import quietly
from perdqn.cli.sitting import train
from perdqn.run.folder import RunFolder, find_checkpoint


@quietly
def fit(argv: list[str]) -> int:
    """Train; returns the exit code."""
    cli = RunCLI("fit", expand(argv), told=spell("fit", argv), approve=_approve_start)
    return train(cli, cli.config.ckpt_path)


def _approve_start(cli: RunCLI) -> None:
    if cli.config.ckpt_path is not None:
        path = Path(cli.config.ckpt_path)
        refuse_other_shapes(cli, read_full_checkpoint(path), path)


@quietly
def resume(argv: list[str]) -> int:
    """Go on with a run in its own folder."""
    reference, options = split_reference(argv)
    if is_asking(argv):
        print("perdqn resume [RUN|CHECKPOINT] [options]: options are those of fit, and win over the run's\n")
        RunCLI("resume", expand(options))  # prints what was asked for
        return 0
    run, checkpoint = find_checkpoint(reference, get_root(options))
    options = expand(options)
    if not run.config.is_file():
        raise Refused(f"{checkpoint} has no {run.config} beside it; start anew with `perdqn fit --ckpt_path`")
    saved = read_full_checkpoint(checkpoint)

    def approve(cli: RunCLI) -> None:
        refuse_other_shapes(cli, saved, checkpoint)
        _refuse_finished(cli, run)

    settings = ["--config", str(run.config), *options]
    cli = RunCLI("resume", settings, resumed=run, told=spell("resume", argv), approve=approve)
    print(f"resuming {checkpoint}")
    for change in cli.changes:
        print(f"  changed {change}")
    return train(cli, str(checkpoint))


def _refuse_finished(cli: RunCLI, run: RunFolder) -> None:
    """Say so where nothing is left to do, before anything is touched."""
    done, budget = run.read_summary(), cli.settings
    for unit, total in (("env_steps", budget.total_env_steps), ("episodes", budget.total_episodes)):
        if total is not None and done.get("status") == "completed" and done.get(unit, 0) >= total:
            more = f"give it more, such as --model.total_{unit} {2 * total}"
            raise Refused(f"{run.path} has finished its {total:,} {unit.replace('_', ' ')}; {more}")
    target, reached = budget.evaluation.stop_at_return, done.get("status") == "stopped at target"
    if reached and target is not None and not any("stop_at_return" in change for change in cli.changes):
        more = "set --model.evaluation.stop_at_return higher, or to null"
        raise Refused(f"{run.path} has reached its target of {target:g}; {more}")
