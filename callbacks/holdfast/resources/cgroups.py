"""Which control groups this process is in, versions 1 and 2, also inside containers.

Knows nothing about what is counted or limited there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .kernel_file import read_once


class Group(NamedTuple):
    """A control group: its folder, what to call it, and which version of the kernel's files is in it."""

    folder: Path
    name: str
    is_v2: bool


def groups_of(root: Path, controller: str, *marks: str) -> Iterator[Group]:
    """This process's groups for ``memory``, ``cpu`` or the like, innermost first, then all above them.

    Args:
        root: where ``proc`` and ``sys`` are found.
        marks: files of which a group has one, by either version's name.
    """
    for line in read_once(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        is_v2 = controllers == ""
        if not is_v2 and controller not in controllers.split(","):
            continue
        mounted, shown = _mount(root, None if is_v2 else controller)
        inside = Path(path).relative_to(shown) if Path(path).is_relative_to(shown) else Path()
        for below in (inside, *inside.parents):
            folder = mounted / below
            if any((folder / mark).exists() for mark in marks):
                yield Group(folder, f"cgroup /{below}".removesuffix("."), is_v2)


def _mount(root: Path, controller: str | None) -> tuple[Path, Path]:
    """Where the hierarchy is mounted, and which of its folders that is: in containers not the top.

    Args:
        controller: of version 1; None is version 2.
    """
    for line in read_once(root / "proc/self/mountinfo").splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        if kind == "cgroup2" if controller is None else controller in options.split(" ")[-1].split(","):
            shown, mounted = fields.split(" ")[3:5]
            return root / mounted.lstrip("/"), Path(shown)
    return root / "sys/fs/cgroup" / (controller or ""), Path("/")
