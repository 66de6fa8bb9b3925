"""The text beside a checkpoint that says what it is: written with a checksum, read with suspicion.

Knows nothing about the files it names beyond their paths, sizes and checksums.

Version 1 is the only one so far. A reader takes every version up to its own and refuses newer ones by
name; a change of meaning raises ``FORMAT_VERSION`` and adds the step from the version before.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from .durable import find_inside, is_inside

FORMAT = "holdfast"
FORMAT_VERSION = 1
PARTS = "parts"
_LARGEST_BYTES = 64 << 20
_LARGEST_INTEGER = 1 << 53  # what every JSON reader holds exactly
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ManifestError(ValueError):
    """Why a manifest is not to be believed. ``is_foreign``: it is someone else's file, not a damaged one."""

    def __init__(self, reason: str, sequence: int = 0, is_foreign: bool = False) -> None:
        super().__init__(reason)
        self.sequence = sequence
        self.is_foreign = is_foreign


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it: numbers that are not finite, and all it does not know, become text."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) <= _LARGEST_INTEGER else str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [plain(item) for item in value]
    return str(value)


def checksum_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of everything but the checksum itself, as JSON with sorted keys and no spaces."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def signed(content: Mapping[str, Any]) -> dict[str, Any]:
    """With its checksum, whatever it had before."""
    return {**content, "sha256": checksum_of(content)}


def text_of(content: Mapping[str, Any]) -> str:
    """A signed manifest as it is written."""
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read(folder: Path, path: str, name: str) -> dict[str, Any]:
    """The manifest of ``name`` at ``path`` in the folder, checked in everything the reader relies on.

    Raises:
        ManifestError: with the reason in words.
    """
    content = _parse(folder, path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ManifestError("is no manifest of holdfast", is_foreign=not (folder / f"{name}.ckpt").exists())
    sequence = content["sequence"] if _is_count(content.get("sequence")) else 0
    if (reason := _fault_in_version(content) or _fault_in(content)) is not None:
        raise ManifestError(reason, sequence)
    if content["name"] != name:
        reason = f"is the manifest of {content['name']!r}, not of {name!r}"
        raise ManifestError(reason, sequence, is_foreign="/" in name)  # that of a folder inside this one
    return content


def _parse(folder: Path, path: str) -> Any:
    text = b""
    try:
        real = find_inside(folder, path)
        if (size := real.stat().st_size) > _LARGEST_BYTES:
            raise ValueError(f"{size} bytes are more than any manifest has")
        text = real.read_bytes()
        return json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_refuse)
    except (OSError, ValueError, RecursionError) as error:
        is_foreign = FORMAT.encode() not in text and not (folder / path).with_suffix(".ckpt").exists()
        raise ManifestError(f"cannot be read: {_in_words(error)}", is_foreign=is_foreign) from None


def _in_words(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key stands there twice")
    return content


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _fault_in_version(content: Mapping[str, Any]) -> str | None:
    version = content.get("format_version")
    if not _is_count(version) or version == 0:
        return f"format_version must be a number from 1 on, got {version!r}"
    if version > FORMAT_VERSION:
        newest = f"{FORMAT_VERSION}, the newest that this lightning-holdfast reads"
        return f"format_version {version} is newer than {newest}; update lightning-holdfast"
    return None


def _fault_in(content: Mapping[str, Any]) -> str | None:
    try:
        if content.get("sha256") != checksum_of(content):
            return "does not match its own checksum"
    except (ValueError, RecursionError) as error:
        return f"cannot be checked: {error}"
    for key, kind in _TYPES.items():
        if not isinstance(content.get(key), kind):
            return f"{key} is missing or of the wrong type"
    if not _is_count(content["sequence"]) or content["sequence"] == 0:
        return f"sequence must be a number from 1 on, got {content['sequence']}"
    if not all(_is_count(count) for count in content["counters"].values()):
        return "counters must be whole numbers"
    return _fault_in_files(content["name"], content["files"])


_TYPES: dict[str, type] = {
    "name": str,
    "kind": str,
    "sequence": int,
    "files": list,
    "counters": dict,
    "user": dict,
    "is_resumable": bool,
}


def _fault_in_files(name: str, files: list[Any]) -> str | None:
    for file in files:
        if not isinstance(file, dict) or set(file) != {"path", "size", "sha256"}:
            return "files must hold a path, a size and a sha256 each"
        path, digest = file["path"], file["sha256"]
        if not isinstance(path, str) or not is_inside(path):
            return f"names a file outside its folder: {path!r}"
        if not _is_count(file["size"]) or not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            return f"gives no size and checksum of {path!r}"
    paths = [file["path"] for file in files]
    if paths[:1] != [f"{name}.ckpt"] or len(set(paths)) < len(paths):
        return f"files must begin with {name}.ckpt and name each once"
    if not all(path.startswith(f"{PARTS}/") for path in paths[1:]):
        return f"names a part outside {PARTS}/"
    return None


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST_INTEGER
