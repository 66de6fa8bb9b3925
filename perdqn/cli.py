"""The commands of `perdqn`.

Knows nothing about how an agent is trained, only how a run is started, continued, ended and read.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import shlex
import signal
import sys
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from holdfast.files import write_whole
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from perdqn import handover, shipped
from perdqn.acting.environment import MissingExtra, episode_seed, is_native
from perdqn.acting.exactness import self_test
from perdqn.assembly import RunCLI, list_changes, warn
from perdqn.config import (
    ConfigError,
    ConfigWarning,
    format_config_summary,
    get_config_summary,
    read,
    row_bytes,
)
from perdqn.module import PERDQN, STATE_KEY, STATE_VERSION
from perdqn.run.dashboard import log_score
from perdqn.run.folder import RunFolder, RunNotFound, find_checkpoint, require_writable
from perdqn.run.summary import (
    format_evaluation,
    format_table,
    get_evaluation,
    get_figures,
    get_resume_command,
)

QUIET = (
    ".*isinstance\\(treespec, LeafSpec\\).* is deprecated",  # Lightning 2.6 beside torch 2.13
    "Checkpoint directory .* exists and is not empty",  # a resumed run's own
    "Be aware that when using `ckpt_path`, callbacks",  # one was removed, and listed as a change
    ".*does not have many workers",
    "GPU available but not used",
    "Experiment logs directory .* exists and is not empty",
    "Using ModelCheckpoint with manual optimization",  # weights after an update are what is wanted
    ".*`dataloader_iter`",  # the step flavour the module is written for
)
FOR_LIFE = (
    "model.env.id",
    "model.env.kwargs",
    "model.env.num_envs",
    "model.env.vectorization",
    "model.env.wrappers",
    "model.env.frame_stack",
    "model.env.stack_padding",
    "model.replay.capacity",
    "model.network.",
    "model.head.",
    "model.learner.dueling",
    "model.seed",
)
ASKING = ("-h", "--help", "--print_config")
WRITTEN = ("state_dict", "hyper_parameters", "pytorch-lightning_version", STATE_KEY)  # by every save of ours
FLAGS = (*ASKING, "--best")  # options without a value


class Refused(ValueError):
    """A command that cannot be carried out, with the reason."""


def run(command: str, argv: list[str]) -> int:
    """Exit code of one command; what the user can mend is said in one line each, without a traceback."""
    expected = (Refused, RunNotFound, MissingExtra, MisconfigurationException, argparse.ArgumentError)
    try:
        with _quiet():
            return COMMANDS[command](argv)
    except ConfigError as error:
        return _refuse(command, error.faults)
    except expected as error:
        return _refuse(command, [str(error)])
    except KeyboardInterrupt:
        return 130
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else 1


# -- training


def fit(argv: list[str]) -> int:
    """Train; returns the exit code."""
    cli = RunCLI("fit", _expand(argv), told=_spell("fit", argv), approve=_approve_start)
    return _train(cli, cli.config.ckpt_path)


def _approve_start(cli: RunCLI) -> None:
    if cli.config.ckpt_path is not None:
        path = Path(cli.config.ckpt_path)
        _refuse_other_shapes(cli, _read_full_checkpoint(path), path)


def resume(argv: list[str]) -> int:
    """Go on with a run in its own folder."""
    if _is_asking(argv):
        return _ask("resume", argv)
    reference, options = _split_reference(argv)
    run, checkpoint = find_checkpoint(reference, _get_root(options))
    options = _expand(options)
    if not run.config.is_file():
        raise Refused(f"{checkpoint} has no {run.config} beside it; start anew with `perdqn fit --ckpt_path`")
    saved = _read_full_checkpoint(checkpoint)

    def approve(cli: RunCLI) -> None:
        _refuse_other_shapes(cli, saved, checkpoint)
        _refuse_finished(cli, run)

    settings = ["--config", str(run.config), *options]
    cli = RunCLI("resume", settings, resumed=run, told=_spell("resume", argv), approve=approve)
    print(f"resuming {checkpoint}")
    for change in cli.changes:
        print(f"  changed {change}")
    return _train(cli, str(checkpoint))


def _refuse_other_shapes(cli: RunCLI, saved: dict[str, Any], path: Path) -> None:
    """Say so where the saved state could not fit, before anything is touched."""
    before, _ = read(saved["hyper_parameters"])
    changes = list_changes({"model": asdict(before)}, {"model": asdict(cli.settings)})
    fixed = [change for change in changes if change.startswith(FOR_LIFE)]
    if fixed:
        reason = "a run keeps the shape of its environments, replay and network for life"
        raise Refused(f"{path}: {reason}; take back {', '.join(fixed)}, or start a new run with perdqn fit")


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


def _train(cli: RunCLI, checkpoint: str | None) -> int:
    warn(cli.report.warnings)
    with _naming_failure(cli):
        if cli.folder is not None:
            print(f"run folder {cli.folder.path}")
            cli.exactness = _test_exactness(cli)
        code, final = _run_to_the_end(cli, checkpoint)
    status, reason = _get_outcome(cli, code)
    figures = _get_run_figures(cli, status, reason, final)
    _write_run_figures(cli, figures)
    if final is not None:
        log_score(cli.trainer, cli.model.hparams, final["mean"], cli.model.env_steps)
    if cli.folder is None:
        print(f"{status}: {reason}")
    elif code:
        resumable = cli.folder.last.is_file()
        hint = f"; go on with: {get_resume_command(cli.folder.path)}" if resumable else ", before any save"
        print(f"{status} at {figures['env_steps']:,} env steps{hint}")
    else:
        print(format_table(figures, cli.folder))
    return code


def _test_exactness(cli: RunCLI) -> str:
    """Whether an interrupted episode can be played again as it was; found out once, when a run begins."""
    if cli.resumed is not None:
        return str(cli.resumed.read_summary().get("exactness", "not tested"))
    assert cli.spec is not None
    # ALE's seeded reset takes a fifth of a second
    num_episodes = 2 if is_native(cli.settings.env) else 100
    difference = self_test(cli.settings.env, cli.spec, num_episodes=num_episodes)
    if difference is None:
        return "bit-exact"
    warn([f"{difference}: episodes interrupted by a stop are cut on resume, which is then not bit-exact"])
    return f"not reproducible: {difference}"


def _run_to_the_end(cli: RunCLI, checkpoint: str | None) -> tuple[int, dict[str, float | None] | None]:
    """Train and evaluate; the exit code, 128 and the number of a signal if one came, and the evaluation."""
    try:
        cli.trainer.fit(cli.model, ckpt_path=checkpoint)
        cli.stop.release()
        cli.stop_clock()
        if cli.stop.received is not None:  # during the last save, when training was ending anyway
            return 128 + int(cli.stop.received), None
        return 0, _evaluate_finally(cli)
    except (SystemExit, KeyboardInterrupt):
        return 128 + int(cli.stop.received or signal.SIGINT), None
    finally:
        cli.stop.release()
        cli.stop_clock()


def _evaluate_finally(cli: RunCLI) -> dict[str, float | None]:
    """The final policy on episodes never used to choose anything."""
    cli.trainer.test(cli.model, verbose=False)
    return get_evaluation(cli.trainer.callback_metrics, "test")


def _get_outcome(cli: RunCLI, code: int) -> tuple[str, str]:
    """Status and the reason for the end."""
    reason, trainer = cli.model.stop_reason, cli.trainer
    if code:
        return "interrupted", (cli.stop.received or signal.SIGINT).name
    if reason is not None:
        return ("stopped at target" if "target" in reason else "completed"), reason
    if 0 <= trainer.max_steps <= trainer.global_step:
        return "stopped", f"trainer.max_steps of {trainer.max_steps} reached"
    callbacks: list[Any] = getattr(trainer, "callbacks", [])
    if any(isinstance(c, Timer) and (c.time_remaining() or 0) <= 0 for c in callbacks):
        return "stopped", f"trainer.max_time of {cli.config.trainer.max_time} reached"
    return "stopped", "a callback asked for it"


@contextlib.contextmanager
def _naming_failure(cli: RunCLI) -> Iterator[None]:
    """Leave a truthful summary behind where training fails, and let the failure go on."""
    try:
        with cli.discarding_empty_folder():
            yield
    except BaseException as error:
        if cli.folder is not None and cli.has_begun:
            _write_run_figures(cli, _get_run_figures(cli, "failed", f"{type(error).__name__}: {error}", None))
            if cli.folder.last.is_file():
                print(f"failed; go on with: {get_resume_command(cli.folder.path)}", file=sys.stderr)
        raise


def _get_run_figures(cli: RunCLI, status: str, reason: str, final: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "status": status,
        "stop_reason": reason,
        **get_figures(cli.model, cli.seconds, final),
        "exactness": cli.exactness,
        "command": cli.told,
        "changes": cli.changes,
    }


def _write_run_figures(cli: RunCLI, figures: dict[str, Any]) -> None:
    if cli.folder is not None:
        with contextlib.suppress(OSError):  # a full disk must not hide why training failed
            cli.folder.write_summary(figures)


# -- reading


def validate(argv: list[str]) -> int:
    """Evaluate a checkpoint on the episodes it was chosen by."""
    return _evaluate("validate", argv)


def test(argv: list[str]) -> int:
    """Evaluate a checkpoint on episodes never used to choose anything."""
    return _evaluate("test", argv)


def _evaluate(command: str, argv: list[str]) -> int:
    if _is_asking(argv):
        return _ask(command, argv)
    reference, options = _split_reference(argv)
    run, checkpoint = find_checkpoint(reference, _get_root(options), best="--best" in options)
    saved = _read_checkpoint(checkpoint)
    settings = ["--config", str(run.config)] if run.config.is_file() else _spell_settings(saved)
    cli = RunCLI(command, [*settings, *_expand(options)], approve=_approve_files)
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


def check(argv: list[str]) -> int:
    """Judge the settings without training."""
    cli = RunCLI("check", _expand(argv))
    if cli.spec is None:
        raise Refused("the environment could not be looked at")
    needed = cli.settings.replay.capacity * row_bytes(cli.spec)
    print(format_config_summary(get_config_summary(cli.settings)))
    print(f"the replay needs {needed / 2**20:,.1f} MiB")
    warn(cli.report.warnings)
    print("no faults")
    return 0


def export(argv: list[str]) -> int:
    """Write a checkpoint's policy as a program."""
    parser = argparse.ArgumentParser("perdqn export", description="Write a checkpoint's policy as a program.")
    parser.add_argument("run", nargs="?", help="run folder or checkpoint; the newest run where left out")
    parser.add_argument("--to", required=True, help="policy.onnx, or policy.pt2 for torch.export")
    parser.add_argument("--best", action="store_true", help="the run's best checkpoint, not its last")
    parser.add_argument("--trainer.default_root_dir", help="where runs lie")
    given = parser.parse_args(argv)
    _, checkpoint = find_checkpoint(given.run, _get_root(argv), given.best)
    _read_checkpoint(checkpoint)
    module = PERDQN.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
    try:
        with _naming_file("--to", given.to):
            difference = handover.export(module, Path(given.to))
    except ValueError as error:
        raise Refused(str(error)) from None
    print(f"{given.to} agrees with the network to {difference:.1e}")
    return 0


def completion(argv: list[str]) -> int:
    """Print a shell's completion script."""
    from perdqn.completion import SHELLS, get_script

    shell = argv[0] if argv else Path(os.environ.get("SHELL", "bash")).name
    if shell not in SHELLS:
        raise Refused(f"perdqn completion knows {', '.join(SHELLS)}, got {shell}")
    print(get_script(shell))
    return 0


COMMANDS = {
    "fit": fit,
    "resume": resume,
    "validate": validate,
    "test": test,
    "check": check,
    "export": export,
    "completion": completion,
}


# -- the command line


def _expand(argv: list[str]) -> list[str]:
    """Shipped configs by file name, also in the environment variable."""
    try:
        if "PERDQN_CONFIG" in os.environ:
            os.environ["PERDQN_CONFIG"] = shipped.find_config(os.environ["PERDQN_CONFIG"])
        return shipped.expand(argv)
    except ValueError as error:
        raise Refused(str(error)) from None


def _split_reference(argv: list[str]) -> tuple[str | None, list[str]]:
    """The run or checkpoint, which is the first word that is no option nor an option's value; the others."""
    is_value = False
    for i, word in enumerate(argv):
        if not is_value and not word.startswith("-"):
            return word, argv[:i] + argv[i + 1 :]
        is_value = not is_value and "=" not in word and word not in FLAGS
    return None, argv


def _get_root(options: list[str]) -> Path:
    """Where runs lie, known before the settings are: the newest run's are what is looked for."""
    name = "--trainer.default_root_dir"
    root = os.environ.get("PERDQN_TRAINER__DEFAULT_ROOT_DIR", ".")
    for i, option in enumerate(options):
        if option.startswith(f"{name}="):
            root = option.partition("=")[2]
        elif option == name and i + 1 < len(options):
            root = options[i + 1]
    return Path(root)


def _is_asking(argv: list[str]) -> bool:
    return any(argument.partition("=")[0] in ASKING or argument.endswith(".help") for argument in argv)


def _ask(command: str, argv: list[str]) -> int:
    """Let the parser print what it was asked for."""
    if command == "resume":
        print("perdqn resume [RUN|CHECKPOINT] [options]: options are those of fit, and win over the run's\n")
    RunCLI(command, _expand(_split_reference(argv)[1]))
    return 0


def _read_checkpoint(path: Path) -> dict[str, Any]:
    if path.is_file() and not zipfile.is_zipfile(path):
        raise Refused(f"{path} cannot be read as a checkpoint: it is damaged, or something else")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged file makes the reader raise almost anything
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise Refused(f"{path} cannot be read as a checkpoint: {reason}") from None
    missing = [key for key in WRITTEN if not isinstance(saved, dict) or key not in saved]
    if missing:
        raise Refused(f"{path} is no checkpoint of perdqn: it has no {', '.join(missing)}")
    if (version := saved[STATE_KEY]["version"]) > STATE_VERSION:
        raise Refused(f"{path} has format {version}, this perdqn reads up to {STATE_VERSION}; upgrade")
    return dict(saved)


def _read_full_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint that training can go on from."""
    saved = _read_checkpoint(path)
    if "optimizer_states" not in saved:
        weights = "where weights are enough, load them in Python with PERDQN.load_from_checkpoint"
        raise Refused(f"{path} holds weights alone, training goes on from the run's last.ckpt; {weights}")
    return saved


def _spell_settings(saved: dict[str, Any]) -> list[str]:
    """A checkpoint's own settings as an option, where no config.yaml lies beside it."""
    return ["--model", json.dumps(saved.get("hyper_parameters", {}))]


def _spell(command: str, argv: list[str]) -> str:
    return shlex.join(["perdqn", command, *argv])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's tips and known noise kept off the screen; anything else is shown in one line."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in QUIET:
            warnings.filterwarnings("ignore", message)
        warnings.simplefilter("ignore", ConfigWarning)  # `warn` has said it
        warnings.showwarning = _show_warning
        try:
            yield
        finally:
            logger.setLevel(level)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    warn([" ".join(str(message).split())])


def _refuse(command: str, reasons: list[str]) -> int:
    """Say why nothing was started; returns the exit code."""
    if len(reasons) == 1:
        print(f"perdqn {command}: {reasons[0]}", file=sys.stderr)
    else:
        heading = f"perdqn {command}: {len(reasons)} faults, nothing was started"
        print("\n  - ".join([heading, *reasons]), file=sys.stderr)
    return 2
