"""What the commands without settings can be asked: their options.

Knows nothing about what a command does, and imports nothing heavy: help and refusals come at once.
"""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path

from perdqn.cli.command_line import get_root


def get_parsers() -> dict[str, ArgumentParser]:
    """Each command's parser, by name."""
    return {
        "verify": _get_verify_parser(),
        "fingerprint": _get_fingerprint_parser(),
        "report": _get_report_parser(),
        "advise": _get_advise_parser(),
        "export": _get_export_parser(),
        "completion": _get_completion_parser(),
    }


def _get_verify_parser() -> ArgumentParser:
    parser = ArgumentParser(
        "perdqn verify",
        description="Check a run's saved states against their checksums.",
        epilog="exit code: 0 all good, 1 damage was found, 2 there is nothing to check",
    )
    parser.add_argument("path", nargs="?", help="run folder or a file of one; the newest run where left out")
    repair = "set damaged files aside, and clear away what a process that died has left"
    parser.add_argument("--repair", action="store_true", help=repair)
    parser.add_argument("--json", action="store_true", help="print JSON")
    _add_root(parser)
    return parser


def _get_fingerprint_parser() -> ArgumentParser:
    parser = ArgumentParser(
        "perdqn fingerprint",
        description="SHA-256 of each part of a run's state as JSON; of two, the parts in which they differ.",
        epilog="A path is a run folder, a checkpoint, or a fingerprint written by --out.",
    )
    parser.add_argument("path", nargs="?", help="the newest run where left out")
    parser.add_argument("other", nargs="?", help="compare with this one: exit code 1 where they differ")
    parser.add_argument("--out", type=Path, help="write the JSON to a file")
    _add_root(parser)
    return parser


def _get_report_parser() -> ArgumentParser:
    parser = ArgumentParser(
        "perdqn report",
        description="One self-contained page on a run, also while it goes on, and the same as JSON.",
    )
    text = "run folders, drawn into one page; the newest run where left out"
    parser.add_argument("runs", nargs="*", metavar="run", help=text)
    text = "the page (default: report.html in the first run's folder)"
    parser.add_argument("--out", type=Path, help=text)
    parser.add_argument("--json", type=Path, help="the data (default: beside the page, as .json)")
    text = "do not look into the newest save's replay, which takes some seconds where it is large"
    parser.add_argument("--no-replay", action="store_true", help=text)
    _add_root(parser)
    return parser


def _get_advise_parser() -> ArgumentParser:
    parser = ArgumentParser(
        "perdqn advise",
        description="Say what should be changed in a run, most urgent first; or measure what a change does.",
        epilog="example: perdqn advise lightning_logs/version_0 --prove --change model.learner.gamma=0.99",
    )
    parser.add_argument("path", nargs="?", help="run folder; the newest run where left out")
    parser.add_argument("--json", action="store_true", help="print JSON")
    _add_root(parser)
    proof = parser.add_argument_group("measuring", "Settings of --prove.")
    fork = "fork the newest checkpoint into paired runs, as is and changed, and compare them"
    proof.add_argument("--prove", action="store_true", help=fork)
    changed = "what to change, may be given several times; by default what is advised"
    proof.add_argument("--change", action="append", metavar="SETTING=VALUE", type=_change, help=changed)
    proof.add_argument(
        "--rank", type=_positive, help="of the advice to follow (default: the first with a change)"
    )
    proof.add_argument("--seeds", type=_positive, default=5, help="pairs of runs (default: 5)")
    budget = "of each run (default: a fifth of what the run has done)"
    proof.add_argument("--budget-env-steps", type=_positive, metavar="N", help=budget)
    proof.add_argument("--jobs", type=_positive, default=2, help="runs at a time (default: 2)")
    control = "a third run of each seed, with another setting changed as much at random"
    proof.add_argument("--control", action="store_true", help=control)
    start = "compare runs from their beginning instead of forks"
    proof.add_argument("--from-start", action="store_true", help=start)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise ArgumentTypeError(f"must be a whole number from 1 on, got {text}")
    return int(text)


def _change(text: str) -> str:
    if not all(text.partition("=")):
        raise ArgumentTypeError(f"must be SETTING=VALUE, such as model.learner.gamma=0.99, got {text}")
    return text


def _get_export_parser() -> ArgumentParser:
    parser = ArgumentParser("perdqn export", description="Write a checkpoint's policy as a program.")
    parser.add_argument("run", nargs="?", help="run folder or checkpoint; the newest run where left out")
    parser.add_argument("--to", required=True, help="policy.onnx, or policy.pt2 for torch.export")
    parser.add_argument("--best", action="store_true", help="the run's best checkpoint, not its last")
    _add_root(parser)
    return parser


def _get_completion_parser() -> ArgumentParser:
    parser = ArgumentParser("perdqn completion", description="Print a shell's completion script.")
    parser.add_argument("shell", nargs="?", help="bash, zsh or tcsh; that of $SHELL where left out")
    return parser


def _add_root(parser: ArgumentParser) -> None:
    name = "--trainer.default_root_dir"
    parser.add_argument(name, dest="root", type=Path, default=get_root([]), help="where runs lie")
