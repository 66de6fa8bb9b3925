"""How long commands take to answer, and `perdqn fit` to its first env step, beside a bare LightningCLI.

    python benchmarks/startup.py               # 15 rounds
    python benchmarks/startup.py --rounds 1    # quick: whether everything can be measured

Each case is a process of its own; a round is one of each, so whatever the machine does meanwhile meets all.
Differences are taken round by round. For training, the moments are given at which the first batch begins,
at which it ends (perdqn has acted its first env steps then) and at which the first update has been made.
The bare LightningCLI trains Lightning's BoringModel. A first start finds no compiled kernels on disk.

Linux and macOS. Results go to ``benchmarks/results/startup.json``.
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
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

RESULTS = Path(__file__).resolve().parent / "results" / "startup.json"
BARE = (
    "from lightning.pytorch.cli import LightningCLI; "
    "from lightning.pytorch.demos.boring_classes import BoringModel; "
    "LightningCLI(BoringModel, save_config_callback=None)"
)
PERDQN = ["-m", "perdqn"]
MARKED = "--trainer.callbacks=startup.Marks"  # this file, found through PYTHONPATH
TINY_RUN = [
    *PERDQN,
    "fit",
    "--config=cartpole",
    "--model.total_env_steps=1100",
    "--model.replay.beta_env_steps=1100",
    "--model.exploration.epsilon_env_steps=1100",
    "--model.learner.target_update_period=20",
    "--model.evaluation.every_env_steps=null",
    "--model.evaluation.stop_at_return=null",
    "--model.evaluation.test_episodes=2",
]
NAMES = ("begins", "batch", "update")

ANSWERS = {
    "python -c pass": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import lightning.pytorch.cli": ["-c", "import lightning.pytorch.cli"],
    "bare fit --help": ["-c", BARE, "fit", "--help"],
    "perdqn --help": [*PERDQN, "--help"],
    "perdqn verify --help": [*PERDQN, "verify", "--help"],
    "perdqn fingerprint --help": [*PERDQN, "fingerprint", "--help"],
    "perdqn export --help": [*PERDQN, "export", "--help"],
    "perdqn completion --help": [*PERDQN, "completion", "--help"],
    "perdqn verify RUN": [*PERDQN, "verify", "lightning_logs/version_0"],
    "perdqn fingerprint RUN": [*PERDQN, "fingerprint", "lightning_logs/version_0"],
    "perdqn fit --help": [*PERDQN, "fit", "--help"],
}
TRAININGS = {
    "bare fit": ["-c", BARE, "fit", MARKED, "--trainer.default_root_dir=marked"],
    "perdqn fit": [*PERDQN, "fit", "--config=cartpole", MARKED, "--trainer.default_root_dir=marked"],
}
FIRST = "perdqn fit, first start"
CASES = (*ANSWERS, *TRAININGS, FIRST)
PAIRS = {  # by name of the difference: one moment, and the one it is compared with
    "perdqn fit --help over bare": (("perdqn fit --help", "answer"), ("bare fit --help", "answer")),
    **{
        f"{case} over bare, {name}": ((case, name), ("bare fit", moment))
        for case in ("perdqn fit", FIRST)
        # the first env steps are compared with where the bare one's first step begins
        for name, moment in (("begins", "begins"), ("batch", "begins"), ("update", "update"))
    },
}


class Marks(Callback):
    """Says when the first batch begins, when it is over and when something was updated; ends there."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.total.completed == 0:
            _mark("begins")

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        _mark("batch")
        if trainer.global_step > 0:
            _mark("update")
            os._exit(0)


def _mark(name: str) -> None:
    print(f"mark {name} {time.monotonic()}", flush=True)  # one clock for all processes


def measure(case: str, kernels: Path) -> dict[str, float]:
    """Seconds from the start of a process to its moments; of one that answers, to its end.

    Args:
        kernels: where compiled kernels are kept.
    """
    if case == FIRST:
        with tempfile.TemporaryDirectory() as empty:
            return _run(TRAININGS["perdqn fit"], Path(empty))
    return _run({**ANSWERS, **TRAININGS}[case], kernels)


def _run(command: Sequence[str], kernels: Path) -> dict[str, float]:
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "NUMBA_CACHE_DIR": str(kernels),
    }
    began = time.monotonic()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)
    ended = time.monotonic()
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr[-2000:]}")
    marks = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("mark ")]
    if not marks:
        return {"answer": ended - began}
    return {name: float(at) - began for name, at in reversed(marks)}  # the first of each name counts


def measure_all(num_rounds: int) -> list[dict[str, dict[str, float]]]:
    """All cases, round by round, in a folder of their own that holds one finished run."""
    with tempfile.TemporaryDirectory(prefix="startup-") as folder:
        os.chdir(folder)
        kernels = Path(folder) / "kernels"
        _run(TINY_RUN, kernels)
        rounds = [{case: measure(case, kernels) for case in CASES} for _ in range(num_rounds)]
        os.chdir("/")
    return rounds


def judge(rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, Any]]:
    """By case and moment, and by difference: seconds as median, lowest and highest."""
    return {
        "seconds": {
            f"{case}, {moment}" if case not in ANSWERS else case: spread([r[case][moment] for r in rounds])
            for case in rounds[0]
            for moment in sorted(rounds[0][case], key=("answer", *NAMES).index)
        },
        "differences": {
            name: spread([r[one][moment] - r[other][at] for r in rounds])
            for name, ((one, moment), (other, at)) in PAIRS.items()
        },
    }


def spread(seconds: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(seconds), "lowest": min(seconds), "highest": max(seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    out = args.out.absolute()
    found = judge(measure_all(args.rounds))
    for title, rows in found.items():
        print(f"\n| {title} | median (range), s |\n|-|-|")
        for name, row in rows.items():
            print(f"| {name} | {row['median']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f}) |")
    names = ("perdqn", "lightning-holdfast", "lightning", "torch", "numba", "jsonargparse")
    about = {
        "rounds": args.rounds,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
    }
    out.write_text(json.dumps({**about, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
