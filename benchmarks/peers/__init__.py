"""What the comparisons share: the peers' environments, a process for each side, rounds, what is recorded.

Knows nothing about what is measured, nor about perdqn; needs the standard library alone, since it is
imported in every side's process. The files beside it drive one library each.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

TORCH = "torch==2.13.0"
GAMES = ["gymnasium==1.4.0", "minatar==1.0.15", "ale-py==0.12.1"]
PACKAGES = {
    "sb3": ["stable-baselines3==2.9.2", "opencv-python-headless==4.13.0.90", *GAMES],
    "tianshou": ["tianshou==2.0.1", "opencv-python-headless==4.13.0.90", *GAMES],
    "torchrl": ["torchrl==0.14.1", "tensordict==0.14.3", *GAMES],
    "cpprb": ["cpprb==11.0.0"],
}
OURS = "perdqn"
NAMED = {TORCH.partition("==")[0], "numpy", "numba", "lightning", OURS, "lightning-holdfast", "lz4"} | {
    package.partition("==")[0] for packages in PACKAGES.values() for package in packages
}
ENVIRONMENTS = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "perdqn-peers"
RESULTS = Path(__file__).resolve().parents[1] / "results"


# -- environments ----------------------------------------------------------------------------------


def python_of(library: str, environments: Path = ENVIRONMENTS) -> str:
    """The interpreter of a library; its virtual environment is made where it is missing or outdated."""
    if library == OURS:
        return sys.executable
    folder = environments / library
    python, ready = folder / "bin" / "python", folder / "ready"
    wanted = "\n".join([TORCH, *PACKAGES[library]])
    if not ready.exists() or ready.read_text() != wanted:
        print(f"making {folder}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        for packages in ([TORCH], [TORCH, *PACKAGES[library]]):
            subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
        if library == "torchrl":
            build = Path(__file__).with_name("build_torchrl.py")
            subprocess.run([python, "-P", build], check=True)  # beside it lies another torchrl
        ready.write_text(wanted)
    return str(python)


# -- processes -------------------------------------------------------------------------------------


class Side(AbstractContextManager["Side"]):
    """A process of ``script`` in a library's environment that answers jobs, one JSON line each.

    Args:
        name: of the side; its library is what stands before the first hyphen.
        script: calls `serve` when started with ``--side NAME``.
        environments: where the libraries' environments lie.
        num_threads: of OpenMP and the like.
        variables: further environment variables.
    """

    def __init__(
        self, name: str, script: Path, environments: Path, num_threads: int = 1, **variables: str
    ) -> None:
        self.name = name
        python = python_of(name.partition("-")[0], environments)
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [python, str(script.resolve()), "--side", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, **dict.fromkeys(names, str(num_threads)), **variables},
        )
        self.versions: dict[str, str] = self._read()

    def ask(self, **job: Any) -> Any:
        """The answer to a job.

        Raises:
            RuntimeError: the process failed; the message ends with what it said last.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return json.loads(line)
        self._process.wait()
        self._log.seek(0)
        raise RuntimeError(f"{self.name} failed:\n{self._log.read()[-3000:]}")

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        self._log.close()


def serve(answer: Callable[..., Any]) -> None:
    """Answer jobs, which are keyword arguments, until there are no more; prints go to standard error."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps(get_versions()), file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), file=out, flush=True)


def get_versions() -> dict[str, str]:
    """Of the libraries that matter, those that are installed here."""
    found = {each.name.lower().replace("_", "-"): each.version for each in distributions()}
    return {"python": platform.python_version(), **{k: v for k, v in sorted(found.items()) if k in NAMED}}


# -- results ---------------------------------------------------------------------------------------


def summary(values: Iterable[float], digits: int = 4) -> dict[str, Any]:
    """Median and spread, with ``digits`` that count."""
    kept = [float(f"{value:.{digits}g}") for value in values]
    median = float(f"{statistics.median(kept):.{digits}g}")
    return {"median": median, "lowest": min(kept), "highest": max(kept), "all": kept}


def get_provenance(script: str, sides: Iterable[Side] = ()) -> dict[str, Any]:
    """Command, commit, time and machine; versions of each side."""
    return {
        "command": f"python benchmarks/{script} {' '.join(sys.argv[1:])}".strip(),
        "commit": _get_commit(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpu": get_cpu(), "cores": os.cpu_count(), "system": platform.platform()},
        "load_average": os.getloadavg(),
        "versions": {side.name: side.versions for side in sides},
    }


def _get_commit() -> str:
    """The state of the checkout; what is not committed yet is told by a plus sign."""
    git = ["git", "-C", str(RESULTS)]
    done = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    if done.returncode:
        return "unknown"
    changes = subprocess.run(
        [*git, "status", "--porcelain", "-uno", "--", ":/perdqn", ":/callbacks"], capture_output=True
    )
    return done.stdout.strip() + ("+" if changes.stdout else "")


def get_cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def record(path: Path, results: dict[str, Any]) -> None:
    """Put results, by name, among those already in the file."""
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | results, indent=1) + "\n")


def get_parser(description: str | None, results: str, libraries: Iterable[str]) -> argparse.ArgumentParser:
    """The options that every comparison has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sides", nargs="+", help=f"of {', '.join(libraries)}; all by default")
    parser.add_argument(
        "--environments", type=Path, default=ENVIRONMENTS, help="of the peers; made if missing"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / results)
    parser.add_argument("--quick", action="store_true", help="perdqn alone, for some seconds: does it work?")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    return parser


def add_variants(parser: argparse.ArgumentParser, how: str) -> None:
    """An option for further sides of ours."""
    text = f"one more side of ours, perdqn-NAME, with settings NAME=VALUE {how}"
    parser.add_argument(
        "--variant", nargs="+", action="append", default=[], metavar=("NAME", "SETTING"), help=text
    )


def get_variants(args: argparse.Namespace) -> dict[str, list[str]]:
    """Settings by side."""
    return {f"{OURS}-{name}": settings for name, *settings in args.variant}


def choose_sides(parser: argparse.ArgumentParser, args: argparse.Namespace, known: list[str]) -> list[str]:
    """What was asked for, else all; ours alone in a quick check."""
    if unknown := set(args.sides or []) - set(known):
        parser.error(f"--sides: there is no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return args.sides or ([OURS] if args.quick else known)
