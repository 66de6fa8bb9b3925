"""The commands of `perdqn`: each in a file that is imported when it is asked for.

Knows nothing about what a command does, only what its end says to the shell.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from importlib import import_module

from holdfast.storage.lock import FolderInUse

from perdqn.cli.command_line import Refused, expand
from perdqn.cli.parsers import get_parsers
from perdqn.config import ConfigError
from perdqn.run.folder import RunNotFound

MODULES = {
    "fit": "fit",
    "resume": "resume",
    "verify": "verify",
    "fingerprint": "fingerprint",
    "report": "report",
    "advise": "advise",
    "validate": "reading",
    "test": "reading",
    "check": "reading",
    "export": "reading",
    "completion": "reading",
}


def run(command: str, argv: list[str]) -> int:
    """Exit code of one command; what the user can mend is said in one line each, without a traceback."""
    try:
        asked = _read(command, argv)
        return int(getattr(import_module(f"perdqn.cli.{MODULES[command]}"), command)(asked))
    except ConfigError as error:
        return _refuse(command, error.faults)
    except (Refused, RunNotFound, FolderInUse) as error:
        return _refuse(command, [str(error)])
    except KeyboardInterrupt:
        return 130
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else 1


def _read(command: str, argv: list[str]) -> Namespace | list[str]:
    """What can be read, answered or refused before the command is imported, which may take seconds."""
    if parser := get_parsers().get(command):
        return parser.parse_args(argv)
    expand(argv)  # each command does so itself; here, a config that is not there is refused
    return argv


def _refuse(command: str, reasons: list[str]) -> int:
    """Say why nothing was started; returns the exit code."""
    if len(reasons) == 1:
        print(f"perdqn {command}: {reasons[0]}", file=sys.stderr)
    else:
        heading = f"perdqn {command}: {len(reasons)} faults, nothing was started"
        print("\n  - ".join([heading, *reasons]), file=sys.stderr)
    return 2
