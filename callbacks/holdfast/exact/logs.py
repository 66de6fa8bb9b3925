"""Logs that neither double nor lose a row when a run goes on from a checkpoint.

Knows nothing about when checkpoints are written, nor about what is logged.

`log_positions` says, while a checkpoint is being made, how far each log file reached; everything up to there
is on the disk by then. `restore_log_positions` cuts the files back to it, so that what is logged again
stands there once. Positions are bytes, never step numbers: projects log against steps of their own.

**TensorBoard** Event files are truncated in place, and the resumed process writes a file of its own behind
them. The alternative, a session start that purges (`SummaryWriter(purge_step=...)`), was tried: it leaves
the doubles in the file, purges across tags that count other steps (a tag logged against ten times the step
lost five of its six good points) and is ignored by the reader TensorBoard falls back to. Truncated files
are right in every reader that opens them. A TensorBoard that is watching meanwhile shows the resumed curve
too; only one without its data server shows the old points beside it until it is restarted.

**CSV** Lightning's CSVLogger deletes `metrics.csv` as it starts, before any callback is asked, and rewrites
it in place when a column appears. So each checkpoint appends the rows that are new to a journal beside it,
from which a resumed run gets its `metrics.csv` back: same rows, same columns.

What is cut off is kept in `set-aside/`. Other loggers have no files here: they are not rewound, and a
warning says so.
"""

from __future__ import annotations

import csv
import json
import os
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from ..storage.durable import find_inside, sync_folder, write_whole

SET_ASIDE = "set-aside"
Position = dict[str, Any]


def log_positions(trainer: Trainer) -> dict[str, Any]:
    """Flush every logger to the disk, and say how far its files reach; plain types.

    A logger that cannot be flushed is left out with a warning: on resume nothing of it is cut.
    """
    loggers = trainer.loggers if trainer.is_global_zero else []
    return {"version": 1, "loggers": [_position(logger) for logger in loggers]}


def restore_log_positions(trainer: Trainer, positions: dict[str, Any]) -> None:
    """Cut the loggers' files back to ``positions``; call before a resumed fit logs anything.

    Loggers are matched by their order and kind. One that now writes into another folder is left alone.
    Until `resume_logging` is called, what is logged is discarded: whatever a process logs as it starts
    stands in the files already, from when the run began.
    """
    if not trainer.is_global_zero or trainer.state.fn != "fit":
        return
    for logger, position in zip(trainer.loggers, positions.get("loggers", []), strict=False):
        if _kind(logger) is None and not isinstance(logger, DummyLogger):
            rank_zero_warn(f"{type(logger).__name__} is not rewound: steps logged twice appear twice in it")
        if position is None or position["kind"] != _kind(logger):
            continue
        rewind = _rewind_rows if isinstance(logger, CSVLogger) else _rewind_events
        if rewind(logger, position):
            _mute(logger)


def forget_logs(trainer: Trainer) -> None:
    """Set aside what an earlier start of a run left that begins anew, killed before its first checkpoint.

    CSVLogger does that by itself.
    """
    for logger in trainer.loggers if trainer.is_global_zero else []:
        if _kind(logger) == "tensorboard":
            _set_events_aside(logger, keep=set())


def resume_logging(trainer: Trainer) -> None:
    """End the silence that `restore_log_positions` began; call where training goes on, and at the end."""
    for logger in trainer.loggers if _muted else ():
        if logger in _muted:
            del logger.__dict__["log_metrics"]
            logger.__dict__.update(_muted.pop(logger))


# The attributes a muted logger had; a wrapper that others have put around `log_metrics` comes back.
_muted: WeakKeyDictionary[Logger, dict[str, Any]] = WeakKeyDictionary()


def _mute(logger: Logger) -> None:
    if logger not in _muted:
        _muted[logger] = {key: value for key, value in logger.__dict__.items() if key == "log_metrics"}
        logger.log_metrics = lambda *_, **__: None  # type: ignore[method-assign]


def _kind(logger: Logger) -> str | None:
    """What we know how to rewind: local files of two loggers."""
    if not isinstance(logger, CSVLogger | TensorBoardLogger) or "://" in str(logger.log_dir):
        return None
    return "csv" if isinstance(logger, CSVLogger) else "tensorboard"


def _position(logger: Logger) -> Position | None:
    if _kind(logger) is None:
        return None
    try:
        return _position_of_rows(logger) if isinstance(logger, CSVLogger) else _position_of_events(logger)
    except OSError as error:
        rank_zero_warn(f"{type(logger).__name__} was not flushed: {error}; its newest rows may be lost")
        return None


# -- TensorBoard ---------------------------------------------------------------------------------


def _position_of_events(logger: Any) -> Position:
    logger.save()
    folder = Path(logger.log_dir)
    for path in open_event_files(logger):
        _flush(path)
        sync_folder(path.parent)
    return {
        "kind": "tensorboard",
        "files": {path.relative_to(folder).as_posix(): path.stat().st_size for path in _event_files(folder)},
    }


def _rewind_events(logger: Any, position: Position) -> bool:
    """Cut the event files; returns whether they are those of the position."""
    folder = Path(logger.log_dir)
    files = {folder / name: size for name, size in position["files"].items() if "tfevents" in Path(name).name}
    if not any(_is_ours(folder, path) for path in files):
        return False
    if files.keys() & open_event_files(logger):  # this process goes back: it will open a new file
        logger.experiment.close()
    for path, size in files.items():
        _cut_events(path, size, folder)
    _set_events_aside(logger, keep=set(files))
    return True


def _set_events_aside(logger: Any, keep: set[Path]) -> None:
    folder = Path(logger.log_dir)
    for path in set(_event_files(folder)) - keep - open_event_files(logger):
        os.replace(path, _place_aside(folder, path))


def _cut_events(path: Path, size: int, folder: Path) -> None:
    whole = whole_records(path, size) if _is_ours(folder, path) else 0
    if whole < size:
        rank_zero_warn(f"{path} lacks {size - whole} bytes that were logged before the checkpoint")
    if whole:
        _cut(path, whole, folder)


def whole_records(path: Path, limit: int) -> int:
    """Bytes of ``path``, at most ``limit``, that are whole event records.

    A record is: length (uint64), masked CRC of the length, content, masked CRC of the content. The content
    is checked for the last one only: the others had the next one written behind them.
    """
    end, last = 0, (0, 0)
    size = min(limit, path.stat().st_size)
    with path.open("rb") as file:
        while end + 16 <= size:
            header = file.read(12)
            (length,), crc = struct.unpack("<Q", header[:8]), header[8:]
            if masked_crc32c(header[:8]) != crc or end + 16 + length > size:
                break
            last = (end, length)
            end += 16 + length
            file.seek(end)
        start, length = last
        file.seek(start + 12)
        content, crc = file.read(length), file.read(4)
    return end if masked_crc32c(content) == crc or end == 0 else start


def masked_crc32c(data: bytes) -> bytes:
    """The checksum of TFRecord files: CRC-32C, rotated and shifted; 4 bytes, little-endian."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _crc_of_byte(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC_TABLE = [_crc_of_byte(byte) for byte in range(256)]


def _event_files(folder: Path) -> Iterator[Path]:
    """Event files of one run: in its folder, and in folders below that hold nothing else (`add_scalars`)."""
    if not folder.is_dir():
        return
    entries = sorted(folder.iterdir())
    yield from (path for path in entries if path.is_file() and "tfevents" in path.name)
    for below in (path for path in entries if path.is_dir() and path.name != SET_ASIDE):
        if all(path.is_dir() or "tfevents" in path.name for path in below.rglob("*")):
            yield from _event_files(below)


def open_event_files(logger: Any) -> set[Path]:
    """Files this process is writing: TensorBoard's writer or tensorboardX's, one per `add_scalars` name."""
    writers = getattr(logger._experiment, "all_writers", None) or {}
    events = [writer.event_writer for writer in writers.values()]
    return {Path(getattr(event, "_ev_writer", event)._file_name) for event in events}


# -- CSV -----------------------------------------------------------------------------------------


class _Journal:
    """The rows of one `metrics.csv`, as JSON lines: append-only, whatever happens to the columns.

    Args:
        path: its file; the first ``size`` bytes, with checksum ``crc``, are ours.
        num_rows: rows of `metrics.csv` that are in it.
    """

    def __init__(self, path: Path, size: int = 0, crc: int = 0, num_rows: int = 0) -> None:
        self.path, self.size, self.crc, self.num_rows = path, size, crc, num_rows
        self._columns: list[str] = []
        self._read_until = 0  # in `metrics.csv`, while its columns stay

    def append_new_rows(self, metrics: Path) -> None:
        rows = self._read_new_rows(metrics) if metrics.is_file() else []
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        with self.path.open("r+b" if self.size else "wb") as file:
            file.truncate(self.size)  # a failed append may have left half a row
            file.seek(self.size)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self.size += len(content)
        self.crc = zlib.crc32(content, self.crc)
        self.num_rows += len(rows)

    def _read_new_rows(self, metrics: Path) -> list[dict[str, str]]:
        with metrics.open(newline="") as file:
            rows = csv.reader(iter(file.readline, ""))  # unlike iteration over a file, this can tell()
            columns, skipped = next(rows, []), self.num_rows
            if columns == self._columns:
                file.seek(self._read_until)
                skipped = 0
            new = [dict(zip(columns, row, strict=False)) for row in rows][skipped:]
            self._columns, self._read_until = columns, file.tell()
        return [{name: value for name, value in row.items() if value} for row in new]


_journals: WeakKeyDictionary[Any, _Journal] = WeakKeyDictionary()


def _position_of_rows(logger: Any) -> Position:
    logger.save()
    folder = Path(logger.log_dir)
    if logger not in _journals:
        taken = [int(path.stem.rpartition("-")[2]) for path in folder.glob(".metrics-*.jsonl")]
        _journals[logger] = _Journal(folder / f".metrics-{max(taken, default=-1) + 1}.jsonl")
    journal = _journals[logger]
    journal.append_new_rows(folder / "metrics.csv")
    sync_folder(folder)
    return {"kind": "csv", "journal": journal.path.name, "bytes": journal.size, "crc32": journal.crc}


def _rewind_rows(logger: Any, position: Position) -> bool:
    """Write `metrics.csv` from the journal; returns whether it is that of the position."""
    folder, size = Path(logger.log_dir), position["bytes"]
    path = folder / position["journal"]
    if not re.fullmatch(r"\.metrics-\d+\.jsonl", path.name) or not _is_ours(folder, path):
        return False
    with path.open("rb") as file:
        content = file.read(size)
    if len(content) < size or zlib.crc32(content) != position["crc32"]:
        rank_zero_warn(f"{path} holds other rows than the checkpoint says; metrics.csv begins anew")
        return False
    _cut(path, size, folder)
    rows = [json.loads(line) for line in content.splitlines()]
    columns = sorted({name for row in rows for name in row})
    write_rows(folder / "metrics.csv", columns, rows)
    _journals[logger] = _Journal(path, size, position["crc32"], len(rows))
    logger.experiment.metrics, logger.experiment.metrics_keys = [], columns
    return True


def write_rows(path: Path, columns: list[str], rows: list[dict[str, str]]) -> None:
    if not rows:
        path.unlink(missing_ok=True)  # the logger writes its header with the first row
        return
    lines: list[str] = []

    class Lines:
        write = staticmethod(lines.append)

    writer = csv.DictWriter(Lines, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, "".join(lines))


# -- files ---------------------------------------------------------------------------------------


def _cut(path: Path, size: int, folder: Path) -> None:
    """Truncate ``path``, keeping what is cut off; in place, for the sake of who reads it meanwhile."""
    if path.stat().st_size <= size:
        return
    with path.open("r+b") as file:
        file.seek(size)
        tail = file.read()
        write_whole(_place_aside(folder, path, f".from-{size}"), lambda aside: aside.write(tail))
        file.truncate(size)
        os.fsync(file.fileno())


def _place_aside(folder: Path, path: Path, suffix: str = "") -> Path:
    """Where ``path`` goes; TensorBoard, which reads every file named tfevents, must not find it."""
    name = ".".join(path.relative_to(folder).parts).replace("tfevents", "tf-events") + suffix
    (folder / SET_ASIDE).mkdir(exist_ok=True)
    numbered = (folder / SET_ASIDE / f"{name}.{number}" for number in range(1_000_000))
    return next(place for place in numbered if not place.exists())


def _is_ours(folder: Path, path: Path) -> bool:
    """Whether a recorded path is a file inside ``folder``: a checkpoint may name anything."""
    try:
        find_inside(folder, path.relative_to(folder).as_posix())
    except (OSError, ValueError):
        return False
    return True


def _flush(path: Path) -> None:
    """Wait until a file is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
