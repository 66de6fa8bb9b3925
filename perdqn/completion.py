"""Completion scripts for shells, made from the parsers themselves.

Knows nothing about what the options mean.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from jsonargparse import ArgumentParser

from perdqn.__main__ import COMMANDS
from perdqn.acting.environment import MissingExtra
from perdqn.assembly import parser_of

SHELLS = ("bash", "zsh", "tcsh")
CONFIGURED = ("fit", "resume", "validate", "test", "check")


def get_script(shell: str, plain: Mapping[str, argparse.ArgumentParser]) -> str:
    """A script for ``shell``; in bash, load it with ``eval "$(perdqn completion bash)"``.

    Args:
        plain: parsers of commands without settings, by name.

    Raises:
        MissingExtra: shtab is not installed.
    """
    if find_spec("shtab") is None:
        raise MissingExtra("perdqn completion needs shtab: pip install 'perdqn[completion]'")
    parser = ArgumentParser(prog="perdqn")
    commands = parser.add_subcommands()
    for name, text in COMMANDS.items():
        own = parser_of(name) if name in CONFIGURED else ArgumentParser(prog=f"perdqn {name}")
        for action in plain[name]._actions if name in plain else ():
            if action.option_strings and action.dest != "help":
                kind: dict[str, Any] = {"action": "store_true"} if action.nargs == 0 else {}
                own.add_argument(*action.option_strings, help=action.help, **kind)
        commands.add_subcommand(name, own, help=text)
    return str(parser.get_completion_script(f"shtab-{shell}"))
