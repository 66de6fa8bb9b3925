"""What Lightning says on the way: kept off the screen, or put in one line.

Knows nothing about commands.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from holdfast.checkpoint import RehearsalFailed
from holdfast.saving.save import DamagedCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread
from tqdm import tqdm

from perdqn.acting.environment import MissingExtra
from perdqn.assembly import warn
from perdqn.cli.command_line import Refused
from perdqn.config import ConfigWarning

KNOWN = (
    ".*isinstance\\(treespec, LeafSpec\\).* is deprecated",  # Lightning 2.6 beside torch 2.13
    "Checkpoint directory .* exists and is not empty",  # a resumed run's own
    "Be aware that when using `ckpt_path`, callbacks",  # one was removed, and listed as a change
    ".*does not have many workers",
    "GPU available but not used",
    "Experiment logs directory .* exists and is not empty",
    "Using ModelCheckpoint with manual optimization",  # weights after an update are what is wanted
    ".*`dataloader_iter`",  # the step flavour the module is written for
)

WATCHERS = {"resource_monitor.py", "performance_monitor.py", "tuning_advisor.py", "auto_scaler.py"}

EXPECTED = (
    MissingExtra,
    MisconfigurationException,
    ArgumentError,
    DamagedCheckpoint,
    RehearsalFailed,
)
Command = Callable[..., int]  # of its words, or of what a parser read from them


def quietly(command: Command) -> Command:
    """Let a command show nothing but its own lines, and name what the user can mend as a refusal."""

    @functools.wraps(command)
    def wrapped(*asked: Any) -> int:
        try:
            with quiet():
                return command(*asked)
        except EXPECTED as error:
            raise Refused(str(error)) from error

    return wrapped


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Lightning's tips and known noise kept off the screen; anything else is shown in one line."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    with warnings.catch_warnings(), _hearing_watchers(), _hushing_writers():
        for message in KNOWN:
            warnings.filterwarnings("ignore", message)
        warnings.simplefilter("ignore", ConfigWarning)  # `warn` has said it
        warnings.showwarning = _show_warning
        try:
            yield
        finally:
            logger.setLevel(level)


@contextlib.contextmanager
def _hearing_watchers() -> Iterator[None]:
    """What watches a run speaks by Lightning's log, too, and is there to be heard."""
    logger, handler = logging.getLogger("lightning.pytorch.utilities.rank_zero"), _AboveTheBar()
    level = logger.level
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
        logger.setLevel(level)


@contextlib.contextmanager
def _hushing_writers() -> Iterator[None]:
    """A thread of TensorBoard's hands its error to whoever logs next, who tells of it without a traceback."""
    others = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if not isinstance(failed.thread, _AsyncWriterThread):
            others(failed)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = others


class _AboveTheBar(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if Path(record.pathname).name in WATCHERS or record.levelno >= logging.WARNING:
            tqdm.write(record.getMessage())


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    warn([" ".join(str(message).split())])
