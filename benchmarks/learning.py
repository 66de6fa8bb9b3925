"""Learning curves of the shipped configs, one process per seed.

    python benchmarks/learning.py run cartpole --seeds 0 1 2 3 4 --jobs 2
    python benchmarks/learning.py plot

Each run is the shipped config with ``model.seed`` alone changed. It writes
``benchmarks/results/<config>-<seed>.json``: evaluations, every training episode, and the final
policy's test episodes, whose seeds were never used to choose anything. ``plot`` draws
``docs/images/learning.png`` from them and prints the table of docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
TASKS = ("cartpole", "acrobot", "lunarlander", "minatar")
RECENT_ENV_STEPS = 100_000  # MinAtar: training episodes that count as "at the end"


def train(name: str, seed: int, overrides: dict[str, Any]) -> None:
    """Train one seed in this process; its file is written anew at each evaluation."""
    import torch
    import yaml
    from lightning.pytorch import Trainer

    from perdqn.module import PERDQN

    torch.set_num_threads(1)
    settings = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())["model"]
    for key, value in overrides.items():
        section, _, leaf = key.rpartition(".")
        (settings.setdefault(section, {}) if section else settings)[leaf] = value
    module = PERDQN(**{**settings, "seed": seed})
    evaluations: list[tuple[int, float]] = []
    episodes: list[tuple[int, float]] = []
    report, note = module._report_evaluation, module.experience._on_episode

    def record_evaluation(prefix: str) -> dict[str, float]:
        statistics = report(prefix)
        evaluations.append((module.env_steps, statistics["mean"]))
        print(
            f"{name} seed {seed} env step {module.env_steps}: {prefix} {statistics['mean']:.1f}", flush=True
        )
        write()
        return statistics

    def record_episode(total: float, length: int) -> None:
        episodes.append((module.env_steps, total))
        note(total, length)

    def write() -> None:
        result = {
            "config": name,
            "overrides": overrides,
            "seed": seed,
            "env_steps": module.env_steps,
            "updates": module.update_steps,
            "seconds": time.monotonic() - started,
            "stop_reason": module.stop_reason,
            "final": module.final_evaluation,
            "evaluations": evaluations[:-1] if module.final_evaluation else evaluations,
            "episodes": episodes,
        }
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}-{seed}.json").write_text(json.dumps(result))

    module._report_evaluation = record_evaluation  # type: ignore[method-assign]
    module.experience._on_episode = record_episode
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    started = time.monotonic()
    trainer.fit(module)
    trainer.test(module, verbose=False)
    write()


def run(name: str, seeds: list[int], jobs: int, overrides: list[str]) -> None:
    """Train every seed in a process of its own, ``jobs`` at a time."""

    def one(seed: int) -> int:
        options = [arg for text in overrides for arg in ("--set", text)]
        command = [sys.executable, __file__, "one", name, "--seed", str(seed), *options]
        return subprocess.run(command, check=False).returncode

    with ThreadPoolExecutor(jobs) as pool:
        codes = list(pool.map(one, seeds))
    if any(codes):
        raise SystemExit(f"{sum(map(bool, codes))} of {len(codes)} runs failed")


def score(result: dict[str, Any]) -> float:
    """The figure a config is judged by: the final policy's test return, or MinAtar's training return."""
    if result["config"] != "minatar":
        return float(result["final"]["mean"])
    first = result["env_steps"] - RECENT_ENV_STEPS
    return float(np.mean([total for step, total in result["episodes"] if step > first]))


def plot() -> None:
    """Draw the curves of every result at hand and print the table."""
    import matplotlib.pyplot as plt

    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*-*.json"))]
    names = [name for name in TASKS if any(r["config"] == name for r in results)]
    figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 3.2), squeeze=False)
    print("| config | seeds | env steps | score by seed | mean | minutes a seed |\n|-|-|-|-|-|-|")
    for axis, name in zip(axes[0], names, strict=True):
        runs = [r for r in results if r["config"] == name]
        for r in runs:
            steps, values = zip(*_curve(r), strict=True)
            axis.plot(steps, values, linewidth=1, label=f"seed {r['seed']}")
        axis.set(title=name, xlabel="env steps", ylabel="return")
        axis.legend(fontsize=7)
        scores = [score(r) for r in runs]
        steps_text = " ".join(f"{r['env_steps']:,}" for r in runs)
        minutes = " ".join(f"{r['seconds'] / 60:.1f}" for r in runs)
        print(
            f"| {name} | {' '.join(str(r['seed']) for r in runs)} | {steps_text} | "
            f"{' '.join(f'{s:.1f}' for s in scores)} | {np.mean(scores):.1f} | {minutes} |"
        )
    figure.tight_layout()
    (ROOT / "docs" / "images").mkdir(parents=True, exist_ok=True)
    figure.savefig(ROOT / "docs" / "images" / "learning.png", dpi=110)


def _curve(result: dict[str, Any]) -> list[tuple[int, float]]:
    """Evaluations, or for MinAtar the mean training return of each stretch of env steps."""
    if result["config"] != "minatar":
        return result["evaluations"]
    stretch = 20_000
    steps, totals = np.array(result["episodes"]).T
    bins = (steps // stretch).astype(int)
    return [((b + 1) * stretch, float(totals[bins == b].mean())) for b in np.unique(bins)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    many = commands.add_parser("run", help="train several seeds")
    many.add_argument("name", choices=TASKS)
    many.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    many.add_argument("--jobs", type=int, default=2)
    one = commands.add_parser("one", help="train one seed in this process")
    one.add_argument("name", choices=TASKS)
    one.add_argument("--seed", type=int, required=True)
    for command in (many, one):
        command.add_argument("--set", action="append", default=[], metavar="learner.n_step=1")
    commands.add_parser("plot", help="draw the curves and print the table")
    args = parser.parse_args()
    if args.command == "plot":
        plot()
    elif args.command == "run":
        run(args.name, args.seeds, args.jobs, args.set)
    else:
        overrides = {key: json.loads(value) for key, value in (text.split("=", 1) for text in args.set)}
        train(args.name, args.seed, overrides)


if __name__ == "__main__":
    main()
