"""Kills runs at random moments, resumes each to its end, and compares it with the run nobody killed.

    python benchmarks/reliability/kill_sweep.py cartpole --runs 200
    python benchmarks/reliability/kill_sweep.py breakout --runs 40

Every part of the fingerprint and every logged scalar that does not read the wall clock must be equal.
Runs are forks of one process that has imported everything, so a moment early in a run is as likely as a
late one, and a kill costs no import.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import random
import re
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crash import spawn, wait, was_killed

from perdqn.__main__ import main as main_of_perdqn

ROOT = Path(__file__).resolve().parents[2]
PHASES = ("starting", "warm-up", "training", "evaluation", "saving")
COMMON = [
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=20",
    "--checkpoint.every={minutes: 0.002}",
    "--checkpoint.max_time_fraction=1",
]
TASKS = {
    "cartpole": [
        "--config=cartpole",
        "--model.env.num_envs=4",
        "--model.total_env_steps=4000",
        "--model.learner.warmup_env_steps=500",
        "--model.replay.capacity=2000",
        "--model.replay.beta_env_steps=4000",
        "--model.exploration.epsilon_env_steps=2000",
        "--model.evaluation.every_env_steps=1000",
        "--model.evaluation.stop_at_return=null",
        "--model.evaluation.episodes=10",
        "--model.evaluation.num_envs=10",
        "--model.evaluation.test_episodes=5",
    ],
    "breakout": [
        "--config=atari",
        "--model.env.id=ALE/Breakout-v5",
        "--model.env.kwargs={repeat_action_probability: 0.25}",
        "--model.total_env_steps=1200",
        "--model.learner.warmup_env_steps=400",
        "--model.learner.train_every=8",
        "--model.learner.target_update_period=20",
        "--model.replay.capacity=1000",
        "--model.replay.beta_env_steps=1200",
        "--model.exploration.epsilon_env_steps=800",
        "--model.evaluation.every_env_steps=400",
        "--model.evaluation.episodes=2",
        "--model.evaluation.num_envs=2",
        "--model.evaluation.max_episode_steps=60",
        "--model.evaluation.test_episodes=2",
    ],
}


class Watched:
    """What a run does at this instant, shared with the process that is going to kill it."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 16)

    def tell(self, phase: str, env_steps: int = 0) -> None:
        self._shared[:12] = struct.pack("<iq", PHASES.index(phase), env_steps)

    def read(self) -> tuple[str, int]:
        phase, env_steps = struct.unpack("<iq", self._shared[:12])
        return PHASES[phase], env_steps


def report_phases(watched: Watched) -> None:
    """Let the training code of this process say where it is."""
    from holdfast.storage.generations import GenerationFolder

    from perdqn.module import PERDQN

    def before(owner: type, name: str, phase: str) -> None:
        original = getattr(owner, name)

        def told(self: Any, *args: Any, **kwargs: Any) -> Any:
            watched.tell(phase, getattr(self, "env_steps", watched.read()[1]))
            return original(self, *args, **kwargs)

        setattr(owner, name, told)

    before(PERDQN, "on_train_start", "warm-up")
    before(PERDQN, "_update", "training")
    before(PERDQN, "on_validation_epoch_start", "evaluation")
    before(GenerationFolder, "write", "saving")


@dataclass
class Outcome:
    """One run of the sweep."""

    killed_in: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


def start(argv: list[str], root: Path, watched: Watched, log: Path) -> int:
    """Fork a command of perdqn; returns its process id."""

    def act() -> None:
        os.chdir(root)
        with log.open("ab") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        report_phases(watched)
        sys.exit(main_of_perdqn(argv))

    watched.tell("starting")
    return spawn(act)


def kill_in(child: int, watched: Watched, phase: str, after_env_steps: int, delay_s: float) -> str | None:
    """Kill once the run is that far and does that; None where it ended first."""
    while True:
        done, _ = os.waitpid(child, os.WNOHANG)
        if done:
            return None
        now, env_steps = watched.read()
        if env_steps >= after_env_steps and now == phase:
            time.sleep(delay_s)
            killed_in = watched.read()[0]
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            return killed_in if was_killed(wait(child)) else None
        time.sleep(0.0005)


def run_killed(task: str, root: Path, rng: random.Random, kills: int) -> Outcome:
    """Kill a run that many times, resuming it each time, and let it end.

    A run that ends before the first kill, because it was never again in the phase, is begun again.
    """
    outcome, watched, log = Outcome(), Watched(), root / "log.txt"
    total = int(re.search(r"total_env_steps=(\d+)", " ".join(TASKS[task]))[1])  # type: ignore[index]
    argv = ["fit", *TASKS[task], *COMMON]
    reached = 0
    for _ in range(kills):
        child = start(argv, root, watched, log)
        phase = rng.choice(PHASES[1:] if argv[0] == "fit" else PHASES)
        killed_in = kill_in(child, watched, phase, rng.randrange(reached, total), rng.uniform(0, 0.02))
        if killed_in is None and not outcome.killed_in:
            shutil.rmtree(root)
            root.mkdir()
            return run_killed(task, root, rng, kills)
        if killed_in is None:
            break
        outcome.killed_in.append(killed_in)
        argv = ["resume"]
    else:
        if status := wait(start(argv, root, watched, log)):
            outcome.differences.append(f"{argv[0]} ended with {status}: {log.read_text()[-600:]}")
    return outcome


def result_of(root: Path) -> dict[str, Any]:
    """Everything that two equal runs share: fingerprints and curves."""
    run, out = root / "lightning_logs" / "version_0", root / "fingerprint.json"
    assert main_of_perdqn(["fingerprint", str(run), "--out", str(out)]) == 0
    return {"parts": json.loads(out.read_text())["parts"], "curves": curves_of(run)}


def curves_of(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Logged scalars in the order of the files, but for those that read the wall clock or the machine."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    clocked = wall_clock_keys()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in sorted(events.Tags()["scalars"])
        if tag not in clocked and not tag.startswith(("time/", "resource/"))
    }


def wall_clock_keys() -> set[str]:
    """Keys that docs/metrics.md marks."""
    lines = (ROOT / "docs" / "metrics.md").read_text().splitlines()
    return {line.split("`")[1] for line in lines if line.startswith("| `") and "⏱" in line}


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    parts = [f"part {name}" for name, value in expected["parts"].items() if found["parts"].get(name) != value]
    curves = {*expected["curves"], *found["curves"]}
    return parts + [
        f"curve {tag}" for tag in sorted(curves) if expected["curves"].get(tag) != found["curves"].get(tag)
    ]


def sweep(
    task: str, runs: int, seed: int = 0, most_kills: int = 3, keep: Path | None = None
) -> list[Outcome]:
    """The outcome of every run; prints a line each."""
    scratch = Path(tempfile.mkdtemp(prefix="kill-sweep-"))
    reference = scratch / "reference"
    reference.mkdir()
    if unkilled := run_killed(task, reference, random.Random(0), 0).differences:
        sys.exit(f"the run nobody kills does not end well: {unkilled[0]}")
    expected = result_of(reference)
    outcomes = []
    for number in range(runs):
        rng = random.Random(f"{seed} {number}")
        root = scratch / f"run-{number}"
        root.mkdir()
        outcome = run_killed(task, root, rng, kills=1 + rng.randrange(most_kills))
        if not outcome.differences:
            outcome.differences = differences(expected, result_of(root))
        outcomes.append(outcome)
        verdict = "equal" if not outcome.differences else "; ".join(outcome.differences)
        print(f"{number:4} killed in {', '.join(outcome.killed_in) or 'nothing'}: {verdict}", flush=True)
        if outcome.differences and keep is not None:
            shutil.copytree(root, keep / root.name, dirs_exist_ok=True)
        shutil.rmtree(root)
    shutil.rmtree(scratch)
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most-kills", type=int, default=3, help="of one run")
    parser.add_argument("--keep", type=Path, help="where folders of runs that differ are copied to")
    args = parser.parse_args()
    import_everything()
    outcomes = sweep(args.task, args.runs, args.seed, args.most_kills, args.keep)
    kills = Counter(phase for outcome in outcomes for phase in outcome.killed_in)
    equal = sum(not outcome.differences for outcome in outcomes)
    figures = {
        "task": args.task,
        "seed": args.seed,
        "runs": len(outcomes),
        "equal": equal,
        "kills": dict(kills),
    }
    print(json.dumps(figures))
    sys.exit(equal < len(outcomes))


def import_everything() -> None:
    import tensorboard.backend.event_processing.event_accumulator  # noqa: F401

    import perdqn.cli
    import perdqn.cli.fingerprint
    import perdqn.cli.fit
    import perdqn.cli.resume  # noqa: F401


if __name__ == "__main__":
    main()
