"""The command `perdqn resume`: a run goes on in its folder, or as a fork in a new one.

Knows nothing about how a run is carried out once it may begin.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from holdfast.exact.logs import forget_logs
from holdfast.saving.environment import compare, environment_fingerprint
from holdfast.storage.durable import write_whole
from holdfast.storage.generations import GenerationFolder
from holdfast.storage.lock import FolderLock

from perdqn.assembly import RunCLI
from perdqn.cli.checkpoints import list_fixed, read_full_checkpoint, refuse_other_shapes, without_replay
from perdqn.cli.command_line import Refused, expand, find_root, get_root, is_asking, spell, split_reference
from perdqn.cli.quiet import quietly
from perdqn.cli.sitting import train
from perdqn.run.folder import LOGS, RunFolder
from perdqn.run.report import format_report
from perdqn.run.saves import Save, adopt, find_run, find_save, set_aside
from perdqn.run.shape import FORKABLE, OF_REPLAY, SEED


@quietly
def resume(argv: list[str]) -> int:
    """Go on where a run was saved; returns the exit code."""
    reference, options = split_reference(argv)
    if is_asking(argv):
        print("perdqn resume [RUN|CHECKPOINT] [options]: options are those of fit, and win over the run's\n")
        RunCLI("resume", expand(options))  # prints what was asked for
        return 0
    is_fork, root, told = "--fork" in options, get_root(options), spell("resume", argv)
    run = find_run(reference, root)
    with contextlib.nullcontext() if is_fork else _owning(run):
        if run.config.is_file() and not run.has_save and not is_fork:
            return _begin_anew(run, expand(options), told)
        return _go_on(find_save(reference, root), expand(options), told, is_fork)


def _begin_anew(run: RunFolder, options: list[str], told: str) -> int:
    """A run that was killed in the instant before its first save."""
    cli = RunCLI("resume", ["--config", str(run.config), *options], origin=run, told=told)
    print(f"{run.path} was killed before anything was saved: it begins anew, with its own settings")
    forget_logs(cli.trainer)
    return train(cli, None)


@contextlib.contextmanager
def _owning(run: RunFolder) -> Iterator[None]:
    """Nobody else writes to the run; what a process that died was about to do is finished or undone."""
    folder = GenerationFolder(run.checkpoints)
    if not (folder.generations() or folder.unreadable() or any(folder.path.glob(".*.part"))):
        yield  # of an earlier version, or not even a run: it is left as it is until training begins
        return
    with FolderLock(folder.path):
        folder.collect()
        yield


def _go_on(save: Save, options: list[str], told: str, is_fork: bool) -> int:
    if not save.run.config.is_file():
        remedy = "start anew with `perdqn fit --ckpt_path`"
        raise Refused(f"{save.checkpoint} has no {save.run.config} beside it; {remedy}")
    saved = read_full_checkpoint(save)
    lineage = _get_lineage(save, saved) if is_fork else None

    def approve(cli: RunCLI) -> None:
        refuse_other_shapes(cli, saved, save.checkpoint, _get_free(cli, saved, is_fork))
        _refuse_finished(cli, saved)
        if lineage is not None and list_fixed(cli, saved, (SEED,)):
            lineage["seed"] = saved["hyper_parameters"]["seed"]

    settings = ["--config", str(save.run.config), *_choose_root(save.run, options, lineage), *options]
    cli = RunCLI("resume", settings, origin=save.run, lineage=lineage, told=told, approve=approve)
    print(_report(cli, save, saved))
    checkpoint = save.checkpoint if lineage is None else _start_fork(cli, save, saved)
    for said in ("the checkpoint holds no replay", ".* arithmetic may differ because"):  # in the report
        warnings.filterwarnings("ignore", said)
    return train(cli, str(checkpoint))


def _get_free(cli: RunCLI, saved: dict[str, Any], is_fork: bool) -> tuple[str, ...]:
    """What need not fit the saved state; a fork may have died before it saved anything with its own seed."""
    if is_fork:
        return FORKABLE
    is_from_before = (cli.lineage or {}).get("seed") == saved["hyper_parameters"]["seed"]
    return (SEED,) if is_from_before else ()


def _choose_root(run: RunFolder, options: list[str], lineage: dict[str, Any] | None) -> list[str]:
    """A fork lies beside its run, wherever that was moved, unless the user says otherwise."""
    if lineage is None or find_root(options) is not None or run.path.parent.name != LOGS:
        return []
    return ["--trainer.default_root_dir", str(run.path.parent.parent)]


def _get_lineage(save: Save, saved: dict[str, Any]) -> dict[str, Any]:
    """What a fork remembers of where it comes from."""
    generation = save.generation
    if generation is None:
        with save.checkpoint.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    else:
        sha256 = generation.files[0].sha256
    return {
        "run": str(save.run.path.absolute()),
        "generation": save.checkpoint.stem if generation is None else generation.name,
        "sequence": None if generation is None else generation.sequence,
        "env_steps": saved["perdqn"]["env_steps"],
        "sha256": sha256,
    }


def _refuse_finished(cli: RunCLI, saved: dict[str, Any]) -> None:
    """Say so where nothing is left to do, before anything is touched."""
    assert cli.origin is not None
    done, budget, path = saved["perdqn"], cli.settings, cli.origin.path
    status = cli.origin.read_summary().get("status")  # interrupted at its end, it is still to be evaluated
    for unit, total in (("env_steps", budget.total_env_steps), ("episodes", budget.total_episodes)):
        is_over = status == "completed" or cli.lineage is not None
        if total is not None and is_over and done[unit] >= total:
            more = f"give it more, such as --model.total_{unit} {2 * total}"
            raise Refused(f"{path} has finished its {total:,} {unit.replace('_', ' ')}; {more}")
    target, evaluations = budget.evaluation.stop_at_return, done["evaluations"]
    if status == "stopped at target" and target is not None and evaluations and evaluations[-1][0] >= target:
        more = "set --model.evaluation.stop_at_return higher, or to null"
        raise Refused(f"{path} has reached its target of {target:g}; {more}")


def _has_other_replay(cli: RunCLI, saved: dict[str, Any]) -> bool:
    """Whether the replay could not be filled with what was saved; only a fork's may be another one."""
    return bool(list_fixed(cli, saved, OF_REPLAY))


def _start_fork(cli: RunCLI, save: Save, saved: dict[str, Any]) -> Path:
    """Put what a fork begins with into its folder, so that it goes on by itself whatever happens next."""
    assert cli.folder is not None
    if _has_other_replay(cli, saved):
        kept = without_replay(saved, asdict(cli.settings))
        write_whole(cli.folder.last, lambda file: torch.save(kept, file))
        return cli.folder.last
    try:
        return adopt(save, cli.folder)
    except FileNotFoundError as error:
        reason = f"{error.filename} went away: the run that it belongs to has saved anew meanwhile"
        raise Refused(f"{reason}; fork it once more") from None


def _report(cli: RunCLI, save: Save, saved: dict[str, Any]) -> str:
    return format_report(
        save,
        saved,
        exactness=str(save.run.read_summary().get("exactness", "not tested")),
        changes=cli.changes,
        environment=_compare_environment(cli, save, saved),
        set_aside=[] if cli.lineage else set_aside(GenerationFolder(save.folder), save.damages),
        lineage=cli.lineage,
        leaves_replay=cli.lineage is not None and _has_other_replay(cli, saved),
    )


def _compare_environment(cli: RunCLI, save: Save, saved: dict[str, Any]) -> list[str] | None:
    """What is different here from where the state was saved; None where that was not recorded."""
    recorded = save.generation and save.generation.manifest.get("environment")
    if not recorded:
        return None
    before = torch.get_num_threads()
    torch.set_num_threads(cli.settings.learner.num_threads or saved["perdqn"].get("num_threads") or before)
    try:
        return list(compare(recorded, environment_fingerprint()))
    finally:
        torch.set_num_threads(before)
