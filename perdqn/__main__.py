"""`perdqn COMMAND ...`: answers --help and --version, and hands every command to `perdqn.cli`.

Knows nothing about settings, and imports nothing heavy before a command is chosen.
"""

import difflib
import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "fit": "train an agent",
    "resume": "go on where a run stopped (default: the newest run), or fork it",
    "verify": "check a run's saved states: what is whole, damaged or left over",
    "fingerprint": "SHA-256 of each part of a run's state; compare two",
    "report": "one page and JSON on how a run is doing, or several side by side",
    "advise": "what should be changed in a run, most urgent first; --prove measures it",
    "validate": "evaluate a checkpoint on the episodes it was chosen by",
    "test": "evaluate a checkpoint on episodes never used to choose anything",
    "check": "look for faults in the settings, without training",
    "export": "write a checkpoint's policy as ONNX or as a torch.export program",
    "completion": "print a completion script for bash, zsh or tcsh",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of one command line: 0 done, 1 damage or a difference found, 2 refused, above 128 stopped."""
    args = list(sys.argv[1:] if argv is None else argv)
    if sys.platform == "win32":
        return _refuse("perdqn runs on Linux and macOS; on Windows, run it inside WSL 2")
    if not args or args[0] in ("-h", "--help", "help"):
        print(_get_help())
        return 0
    if args[0] in ("-V", "--version"):
        from perdqn import __version__

        print(f"perdqn {__version__}")
        return 0
    if args[0] not in COMMANDS:
        return _refuse(_get_unknown(args[0]))
    _import_from_here()
    from perdqn.cli import run

    return run(args[0], args[1:])


def _import_from_here() -> None:
    """Let settings name classes in the current directory, as under ``python -m perdqn``."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def _get_help() -> str:
    rows = [f"  {name:<11} {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: perdqn COMMAND [options]",
            "",
            "Value-based agents with prioritized replay on PyTorch Lightning.",
            "",
            "commands:",
            *rows,
            "",
            "  perdqn COMMAND --help lists its options, perdqn --version names the version.",
            "",
            "example:",
            "  perdqn fit --config cartpole",
        ]
    )


def _get_unknown(word: str) -> str:
    if word.startswith("-"):
        return f"name a command before {word}: {', '.join(COMMANDS)}"
    near = difflib.get_close_matches(word, COMMANDS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(COMMANDS)}"
    return f"no command {word!r}; {hint}"


def _refuse(reason: str) -> int:
    print(f"perdqn: {reason}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
