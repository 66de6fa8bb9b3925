"""The commands of `perdqn`: each in a file that is imported when it is asked for.

Knows nothing about what a command does, only what its end says to the shell.
"""

from __future__ import annotations

import sys
from importlib import import_module

from holdfast.storage.lock import FolderInUse

from perdqn.cli.command_line import Refused
from perdqn.config import ConfigError
from perdqn.run.folder import RunNotFound

MODULES = {
    "fit": "fit",
    "resume": "resume",
    "verify": "verify",
    "fingerprint": "fingerprint",
    "validate": "reading",
    "test": "reading",
    "check": "reading",
    "export": "reading",
    "completion": "reading",
}


def run(command: str, argv: list[str]) -> int:
    """Exit code of one command; what the user can mend is said in one line each, without a traceback."""
    try:
        return int(getattr(import_module(f"perdqn.cli.{MODULES[command]}"), command)(argv))
    except ConfigError as error:
        return _refuse(command, error.faults)
    except (Refused, RunNotFound, FolderInUse) as error:
        return _refuse(command, [str(error)])
    except KeyboardInterrupt:
        return 130
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else 1


def _refuse(command: str, reasons: list[str]) -> int:
    """Say why nothing was started; returns the exit code."""
    if len(reasons) == 1:
        print(f"perdqn {command}: {reasons[0]}", file=sys.stderr)
    else:
        heading = f"perdqn {command}: {len(reasons)} faults, nothing was started"
        print("\n  - ".join([heading, *reasons]), file=sys.stderr)
    return 2
