"""Words of a command line that are read before its settings are: the run, its root, shipped configs.

Knows nothing about what a command does, and imports nothing heavy.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from perdqn import shipped

ASKING = ("-h", "--help", "--print_config")
FLAGS = (*ASKING, "--best", "--fork")  # options without a value


class Refused(ValueError):
    """A command that cannot be carried out, with the reason."""


def expand(argv: list[str]) -> list[str]:
    """Shipped configs by file name, also in the environment variable."""
    try:
        if "PERDQN_CONFIG" in os.environ:
            os.environ["PERDQN_CONFIG"] = shipped.find_config(os.environ["PERDQN_CONFIG"])
        return shipped.expand(argv)
    except ValueError as error:
        raise Refused(str(error)) from None


def split_reference(argv: list[str]) -> tuple[str | None, list[str]]:
    """The run or checkpoint, which is the first word that is no option nor an option's value; the others."""
    is_value = False
    for i, word in enumerate(argv):
        if not is_value and not word.startswith("-"):
            return word, argv[:i] + argv[i + 1 :]
        is_value = not is_value and "=" not in word and word not in FLAGS
    return None, argv


def get_root(options: list[str]) -> Path:
    """Where runs lie, known before the settings are: the newest run's are what is looked for."""
    return find_root(options) or Path()


def find_root(options: list[str]) -> Path | None:
    """Where the user says that runs lie."""
    name = "--trainer.default_root_dir"
    root = os.environ.get("PERDQN_TRAINER__DEFAULT_ROOT_DIR")
    for i, option in enumerate(options):
        if option.startswith(f"{name}="):
            root = option.partition("=")[2]
        elif option == name and i + 1 < len(options):
            root = options[i + 1]
    return None if root is None else Path(root)


def is_asking(argv: list[str]) -> bool:
    """Whether the parser is to print something instead of anything being done."""
    return any(argument.partition("=")[0] in ASKING or argument.endswith(".help") for argument in argv)


def spell(command: str, argv: list[str]) -> str:
    """The command as it could be typed again."""
    return shlex.join(["perdqn", command, *argv])
