"""One sitting of a run: train, evaluate, and leave its figures behind, also where it fails.

Knows nothing about how the run was found or started.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import Any

from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from perdqn.acting.environment import is_native
from perdqn.acting.exactness import BIT_EXACT, self_test
from perdqn.assembly import RunCLI, warn
from perdqn.run.dashboard import log_result
from perdqn.run.summary import format_table, get_evaluation, get_figures, get_resume_command

_INTERRUPTED = 128 + signal.SIGINT


def train(cli: RunCLI, checkpoint: str | None) -> int:
    """Train from ``checkpoint`` or from nothing, to the end; returns the exit code."""
    warn(cli.report.warnings)
    with _naming_failure(cli):
        if cli.folder is not None:
            print(f"run folder {cli.folder.path}")
            if cli.preflight is not None:
                print(cli.preflight.table())
            cli.exactness = _get_exactness(cli)
            if checkpoint is None:  # else the report has said so
                print(f"exactness  {cli.exactness}")
        code, final = _run_to_the_end(cli, checkpoint)
    status, reason = _get_outcome(cli, code)
    figures = _get_run_figures(cli, status, reason, final)
    _write_run_figures(cli, figures)
    if final is not None and cli.folder is not None:
        table = format_table(figures, cli.folder)
        log_result(cli.trainer, cli.model.hparams, final["mean"], table, cli.model.env_steps)
    if cli.folder is None:
        print(f"{status}: {reason}")
    elif code:
        resumable = cli.folder.has_save
        hint = f"; go on with: {get_resume_command(cli.folder.path)}" if resumable else ", before any save"
        print(f"{status} at {figures['env_steps']:,} env steps{hint}")
    else:
        print(format_table(figures, cli.folder))
    return code


def _get_exactness(cli: RunCLI) -> str:
    """Whether an interrupted episode can be played again as it was; found out once, when a run begins."""
    known = cli.origin.read_summary().get("exactness") if cli.origin is not None else None
    return _test_exactness(cli) if known is None else str(known)


def _test_exactness(cli: RunCLI) -> str:
    assert cli.spec is not None
    # ALE's seeded reset takes a fifth of a second
    num_episodes = 2 if is_native(cli.settings.env) else 100
    exactness = self_test(cli.settings.env, cli.spec, num_episodes=num_episodes)
    if exactness.level != BIT_EXACT:
        warn(
            [f"{exactness.reason}: episodes interrupted by a stop are cut on resume, which is then not exact"]
        )
    return str(exactness)


def _run_to_the_end(cli: RunCLI, checkpoint: str | None) -> tuple[int, dict[str, float | None] | None]:
    """Train and evaluate; the exit code, 128 and the number of a signal if one came, and the evaluation."""
    try:
        cli.trainer.fit(cli.model, ckpt_path=checkpoint)
        cli.stop_clock()
        return 0, _evaluate_finally(cli)
    except KeyboardInterrupt:
        return _INTERRUPTED, None
    except SIGTERMException:  # it came when training was ending anyway, so Lightning's own handler took it
        return 128 + signal.SIGTERM, None
    except SystemExit as end:
        is_ctrl_c = isinstance(end.__context__, KeyboardInterrupt)  # Lightning makes it an exit code of 1
        return _INTERRUPTED if is_ctrl_c or not end.code else int(end.code), None
    finally:
        cli.stop_clock()


def _evaluate_finally(cli: RunCLI) -> dict[str, float | None]:
    """The final policy on episodes never used to choose anything."""
    try:
        cli.trainer.test(cli.model, verbose=False)
    except OSError as error:  # loggers open their files anew, which a full disk refuses
        warn([f"the final evaluation is not logged: {error}"])
        cli.trainer.loggers = []
        cli.trainer.test(cli.model, verbose=False)
    return get_evaluation(cli.trainer.callback_metrics, "test")


def _get_outcome(cli: RunCLI, code: int) -> tuple[str, str]:
    """Status and the reason for the end."""
    reason, trainer = cli.model.stop_reason, cli.trainer
    if code:
        return "interrupted", _get_cause(cli, code)
    if reason is not None:
        return ("stopped at target" if "target" in reason else "completed"), reason
    if 0 <= trainer.max_steps <= trainer.global_step:
        return "stopped", f"trainer.max_steps of {trainer.max_steps} reached"
    callbacks: list[Any] = getattr(trainer, "callbacks", [])
    if any(isinstance(c, Timer) and (c.time_remaining() or 0) <= 0 for c in callbacks):
        return "stopped", f"trainer.max_time of {cli.config.trainer.max_time} reached"
    return "stopped", "a callback asked for it"


def _get_cause(cli: RunCLI, code: int) -> str:
    try:
        return signal.Signals(code - 128).name
    except ValueError:
        messages = [event["message"] for event in cli.events if "message" in event]
        return str(messages[-1]) if messages else f"exit code {code}"


@contextlib.contextmanager
def _naming_failure(cli: RunCLI) -> Iterator[None]:
    """Leave a truthful summary behind where training fails, and let the failure go on."""
    try:
        with cli.discarding_empty_folder():
            yield
    except BaseException as error:
        if cli.folder is not None and cli.has_begun:
            _write_run_figures(cli, _get_run_figures(cli, "failed", f"{type(error).__name__}: {error}", None))
            if cli.folder.has_save:
                print(f"failed; go on with: {get_resume_command(cli.folder.path)}", file=sys.stderr)
        raise


def _get_run_figures(cli: RunCLI, status: str, reason: str, final: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "status": status,
        "stop_reason": reason,
        **get_figures(cli.model, cli.seconds, final),
        "events": cli.events,
        **cli.provenance,
    }


def _write_run_figures(cli: RunCLI, figures: dict[str, Any]) -> None:
    if cli.folder is not None:
        with contextlib.suppress(OSError):  # a full disk must not hide why training failed
            cli.folder.write_summary(figures)
