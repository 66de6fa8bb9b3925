"""Loggers whose failures end no run: silenced with one warning, and back when they work again.

Knows nothing about training, nor about checkpoints.

Rows are kept in memory from the failure on, and written when the logger works again. For files it is known
how far they reached at the last flush, so they are cut back to it before the rows since then are written:
none doubles, also where a full disk took half of them.
"""

from __future__ import annotations

import contextlib
import csv
import os
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from .exact.logs import open_event_files, write_rows

_CONFIRM_EVERY = 500  # rows
_LONGEST_WAIT_S = 300.0
_MISUSE = (TypeError, ValueError, AssertionError, AttributeError, NotImplementedError)


class LoggerGuard:
    """Stands around the methods of one logger that may fail, from `install` on.

    Args:
        retry_seconds: until the first attempt to come back; doubles with each that fails, up to 5 minutes.
        max_rows: to keep in memory; the oldest are lost, and counted, when there are more.
        on_failure: told why, once for each silence.
        on_return: told the seconds of silence, and the rows written and lost.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        logger: Logger,
        retry_seconds: float,
        max_rows: int,
        on_failure: Callable[[str], None],
        on_return: Callable[[float, int, int], None],
        clock: Callable[[], float],
    ) -> None:
        self.num_lost = 0
        self.logger: Any = logger
        self._retry_seconds, self._clock = retry_seconds, clock
        self._on_failure, self._on_return = on_failure, on_return
        self._rows: deque[tuple[Any, ...]] = deque(maxlen=max_rows)  # not known to have reached the disk
        self._silent_since: float | None = None
        self._retry_at = self._wait = 0.0
        self._sizes: dict[Path, int] = {}  # of the files at the last flush
        self._columns: list[str] = []
        self._originals: dict[str, Callable[..., Any]] = {}

    @property
    def is_silent(self) -> bool:
        return self._silent_since is not None

    def install(self) -> None:
        around: dict[str, Callable[..., Any]] = {
            "log_metrics": self._log_metrics,
            "save": self._save,
            "finalize": self._finalize,
        }
        for name in ("log_hyperparams", "log_graph", "after_save_checkpoint"):
            around[name] = partial(self._call_unless_silent, name)
        self._originals = {name: getattr(self.logger, name) for name in around}
        for name, method in around.items():
            setattr(self.logger, name, method)
        if isinstance(self.logger, CSVLogger):
            self.logger.experiment._rewrite_with_new_header = self._rewrite_columns
        self.flush()

    def flush(self) -> None:
        """Look where the files end; also after something else has cut them."""
        if self.is_silent or not self._has_files:
            return
        experiment = (
            self.logger.experiment
        )  # TensorBoardLogger.save would write hparams.yaml before there are any
        if self._attempt(experiment.save if isinstance(self.logger, CSVLogger) else experiment.flush):
            self._confirm()

    # -- around the logger's own -----------------------------------------------------------------

    def _log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if len(self._rows) == self._rows.maxlen:
            self.num_lost += 1
        self._rows.append((dict(metrics), step))
        if self.is_silent:
            self._come_back_if_due()
            return
        if self._attempt(partial(self._originals["log_metrics"], metrics, step)):
            if not self._has_files:
                self._rows.clear()
            elif len(self._rows) >= _CONFIRM_EVERY:
                self._save()

    def _save(self) -> None:
        if not self.is_silent and self._attempt(self._originals["save"]):
            self._confirm()

    def _finalize(self, status: str) -> None:
        if self.is_silent:
            self._come_back()
        if self.is_silent:
            self.num_lost += len(self._rows)
            self._on_return(self._clock() - self._silent_since, 0, self.num_lost)  # type: ignore[operator]
        else:
            self._attempt(partial(self._originals["finalize"], status))

    def _call_unless_silent(self, name: str, *args: Any, **kwargs: Any) -> None:
        if not self.is_silent:
            self._attempt(partial(self._originals[name], *args, **kwargs))

    def _attempt(self, call: Callable[[], Any]) -> bool:
        try:
            call()
        except Exception as error:
            if not is_failure(error):
                if self._rows:
                    self._rows.pop()  # the row nobody can log
                raise
            self._fall_silent(error)
            return False
        return True

    # -- silence ---------------------------------------------------------------------------------

    def _fall_silent(self, error: Exception) -> None:
        now = self._clock()
        if self._silent_since is None:
            self._silent_since, self._wait = now, self._retry_seconds
            self._on_failure(_reason(error))
        else:
            self._wait = min(2 * self._wait, _LONGEST_WAIT_S)
        self._retry_at = now + self._wait
        self._cut_back()

    def _come_back_if_due(self) -> None:
        if self._clock() >= self._retry_at:
            self._come_back()

    def _come_back(self) -> None:
        rows = list(self._rows)
        try:
            for metrics, step in rows:
                self._originals["log_metrics"](metrics, step)
            self._originals["save"]()
        except Exception as error:
            self._fall_silent(error)
            return
        assert self._silent_since is not None
        seconds, self._silent_since = self._clock() - self._silent_since, None
        self._confirm()
        self._on_return(seconds, len(rows), self.num_lost)

    # -- files -----------------------------------------------------------------------------------

    @property
    def _has_files(self) -> bool:
        return isinstance(self.logger, CSVLogger | TensorBoardLogger)

    def _confirm(self) -> None:
        """All rows until now are in the files."""
        if isinstance(self.logger, CSVLogger):
            path = Path(self.logger.experiment.metrics_file_path)
            self._sizes = {path: path.stat().st_size if path.exists() else 0}
            self._columns = list(self.logger.experiment.metrics_keys)
        elif isinstance(self.logger, TensorBoardLogger):
            self._sizes = {path: path.stat().st_size for path in open_event_files(self.logger)}
        self._rows.clear()

    def _cut_back(self) -> None:
        """Take away what may be half there, so that the rows since the last flush can be written again."""
        if isinstance(self.logger, CSVLogger):
            self.logger.experiment.metrics, self.logger.experiment.metrics_keys = [], list(self._columns)
            paths = set(self._sizes)
        elif isinstance(self.logger, TensorBoardLogger):
            paths = open_event_files(self.logger)
            with contextlib.suppress(Exception):
                self.logger.experiment.close()  # its thread has ended, or would write behind the cut
            self.logger._experiment = None  # the next row opens a file of its own
        else:
            return
        for path in paths:
            with contextlib.suppress(OSError):
                if path.stat().st_size > self._sizes.get(path, 0):
                    os.truncate(path, self._sizes.get(path, 0))
        self._sizes = {path: size for path, size in self._sizes.items() if path in paths}

    def _rewrite_columns(self, columns: list[str]) -> None:
        """As Lightning's, which empties the file first, and loses it where the disk is full."""
        path = Path(self.logger.experiment.metrics_file_path)
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        write_rows(path, columns, rows)
        self._sizes, self._columns = {path: path.stat().st_size}, list(columns)


def is_failure(error: BaseException) -> bool:
    """Whether it came from the disk or the network, rather than from how the logger was called."""
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, OSError):
            return True
        chain = chain.__cause__ or chain.__context__
    return not isinstance(error, _MISUSE)


def _reason(error: BaseException) -> str:
    """The disk's word, where the logger has put another around it."""
    while not isinstance(error, OSError) and (error.__cause__ or error.__context__) is not None:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return f"{type(error).__name__}: {error}" if not isinstance(error, OSError) else str(error)
