"""The command `perdqn fingerprint`: digests of a run's state, or the parts in which two differ.

Knows nothing about how a part is encoded.
"""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from holdfast.storage.durable import write_whole

from perdqn.cli.command_line import Refused
from perdqn.fingerprint import FORMAT, VERSION, differing
from perdqn.fingerprint import fingerprint as fingerprint_of
from perdqn.run.saves import find_save


def fingerprint(given: Namespace) -> int:
    """Exit code 0, or 1 where two states differ."""
    found = _take(given.path, given.root)
    if given.other is None:
        _write(found, given.out)
        return 0
    other = _take(given.other, given.root)
    names = differing(found, other)
    for name in found["parts"]:
        print(f"{name:<12} {'differs' if name in names else 'same'}")
    if given.out:
        _write({"differs": names, "one": found, "other": other}, given.out)
    return 1 if names else 0


def _take(reference: str | None, root: Path) -> dict[str, Any]:
    if reference is not None and reference.endswith(".json") and (read := _read(Path(reference))):
        return read
    save = find_save(reference, root)
    from perdqn.cli.checkpoints import read_state  # not for two that were written

    return fingerprint_of(read_state(save))


def _read(path: Path) -> dict[str, Any] | None:
    """A fingerprint written earlier; None where the file is something else."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return None
    if content["version"] != VERSION:
        raise Refused(f"{path} is a fingerprint of version {content['version']}, this perdqn makes {VERSION}")
    return content


def _write(content: dict[str, Any], path: Path | None) -> None:
    text = json.dumps(content, indent=2) + "\n"
    if path is None:
        print(text, end="")
    else:
        write_whole(path, text)
