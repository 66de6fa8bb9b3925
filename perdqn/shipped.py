"""The configs that travel with perdqn, by name.

Knows nothing about what they say.
"""

from __future__ import annotations

import difflib
from pathlib import Path

OPTIONS = ("-c", "--config")


def find_folder() -> Path:
    """Inside the package where it was installed from a wheel, beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def get_names() -> list[str]:
    return sorted(path.stem for path in find_folder().glob("*.yaml"))


def find_config(name: str) -> str:
    """The file that ``--config name`` means: a file of that name, else a shipped config.

    Raises:
        ValueError: neither exists.
    """
    if Path(name).is_file() or "{" in name or "\n" in name:
        return name
    if name in get_names():
        return str(find_folder() / f"{name}.yaml")
    near = difflib.get_close_matches(name, get_names(), n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    shipped = ", ".join(get_names())
    raise ValueError(f"--config {name}: no such file or shipped config; {meant}shipped are {shipped}")


def names_in(argv: list[str]) -> list[str]:
    """Shipped names behind ``--config``, in order."""
    options = (argument.partition("=") for argument in argv)
    given = [
        value or following
        for (name, _, value), following in zip(options, [*argv[1:], ""], strict=True)
        if name in OPTIONS
    ]
    return [name for name in given if name in get_names()]


def expand(argv: list[str]) -> list[str]:
    """``argv`` with each shipped name behind ``--config`` replaced by its file.

    Raises:
        ValueError: see `find_config`.
    """
    expanded = list(argv)
    for i, argument in enumerate(argv):
        option, has_value, value = argument.partition("=")
        if option in OPTIONS and has_value:
            expanded[i] = f"{option}={find_config(value)}"
        elif i and argv[i - 1] in OPTIONS:
            expanded[i] = find_config(argument)
    return expanded
