"""Files that torch writes are zips, with a checksum of each entry, which torch itself does not look at.

Knows nothing about what is in the entries.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path


def find_fault(path: Path) -> str | None:
    """What is wrong with a file that no manifest vouches for; None if it is whole."""
    try:
        with zipfile.ZipFile(path) as file:
            broken = file.testzip()
    except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, ValueError) as error:
        return f"{error}"
    return None if broken is None else f"{broken} in it does not match its CRC"
