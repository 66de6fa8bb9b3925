"""What the default callbacks cost: CPU time of an update with them and without, block by block in turns.

    python benchmarks/overhead.py                    # all cases
    python benchmarks/overhead.py c4 --blocks 400    # CartPole, MLP 64-64, batch 64, an update every 4 steps
    python benchmarks/overhead.py atari --blocks 60  # the shipped settings of Atari
    python benchmarks/overhead.py tiny               # any Lightning loop: microseconds a step

One run trains on and on; every block of steps its callbacks are taken away or given back, with all that they
have put around Lightning's own methods. So two neighbouring blocks differ in nothing else, and whatever the
machine does meanwhile meets both. What is compared is the CPU time of the training thread; the figure is the
median over pairs, with the 95 % interval of a bootstrap. What a median over blocks does not see is added:
threads of the callbacks (their CPU time by wall time), saves (CPU time of one, at most one a minute), and,
from a second run without turns, what PerformanceMonitor's windows cost by its own account (it looks at no
step within the blocks) and what hooks of the watchers take beyond their usual time now and then.

Linux only. Results go to ``benchmarks/results/overhead.json``.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import json
import logging
import operator
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from holdfast import (
    BoundaryCallback,
    EmergencyCheckpoint,
    ErrorRecovery,
    PerformanceMonitor,
    ResourceMonitor,
    TuningAdvisor,
    VerifiedCheckpoint,
)
from lightning.pytorch import Callback, LightningModule, Trainer

RESULTS = Path(__file__).resolve().parent / "results" / "overhead.json"
SAVE_EVERY_S = 60.0  # at the shipped settings of perdqn
RARE = 5.0  # times its median a hook must take to count as rare work
SECOND_RUN_S = 59.0
WATCHERS = (ResourceMonitor, PerformanceMonitor, TuningAdvisor)
COMMON = [
    "--trainer.enable_progress_bar=false",
    "--model.evaluation.every_env_steps=null",
    "--model.evaluation.stop_at_return=null",
    "--model.total_env_steps=1000000000",
    "--model.learner.warmup_env_steps=1000",
    "--model.learner.num_threads=1",
]
C4 = [
    "--config=cartpole",
    "--model.learner.batch_size=64",
    "--model.learner.train_every=4",
    "--model.network={class_path: mlp, init_args: {hidden_sizes: [64, 64]}}",
]
ATARI = ["--config=atari", "--model.env.id=ALE/Breakout-v5", "--model.replay.capacity=20000"]


class Switch:
    """Takes a trainer's callbacks away, with their methods around Lightning's, and gives them back."""

    def __init__(self, trainer: Any, stays: Callback) -> None:
        loop = trainer.fit_loop.epoch_loop
        optimization = (loop.automatic_optimization, loop.manual_optimization)
        owners = (trainer.fit_loop, loop, loop.val_loop, *optimization, loop._results, trainer.strategy)
        owners += (*trainer.loggers, trainer._checkpoint_connector)
        self._trainer, self._with, self._without = trainer, list(trainer.callbacks), [stays]
        self._profiler, self._bare = trainer.profiler, getattr(trainer.profiler, "inner", trainer.profiler)
        self._around = [
            (owner, name, method)
            for owner in owners
            for name, method in vars(owner).items()
            if isinstance(method, functools.partial)
        ]

    def turn(self, is_on: bool) -> None:
        self._trainer.callbacks = self._with if is_on else self._without
        self._trainer.profiler = self._profiler if is_on else self._bare
        for owner, name, method in self._around:
            if is_on:
                setattr(owner, name, method)
            else:
                delattr(owner, name)


@dataclass(eq=False)
class Turns(BoundaryCallback):
    """Switches the others every block, and ends the run after so many pairs of blocks.

    A pair is with, without, or the other way round, in turns.
    """

    block: int
    num_pairs: int
    warm_up: int
    progress: Callable[[Any], int]
    saver: VerifiedCheckpoint | None = None
    seconds: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})
    saves: list[float] = field(default_factory=list)
    threads: float = 0.0  # CPU time of threads that the callbacks run, of wall time
    rare: dict[str, float] = field(default_factory=dict)  # CPU time of a watcher's rare work, of all

    state_key = "turns"

    def __post_init__(self) -> None:
        self._next, self._is_on, self._is_over, self._began = self.warm_up, True, False, 0.0
        self._switch: Switch | None = None
        self._since: tuple[float, float] = (0.0, 0.0)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        progress = self.progress(trainer)
        if progress < self._next:
            return
        if self._switch is None:
            self._switch, self._since = Switch(trainer, self), (time.monotonic(), cpu_of_threads())
        else:
            self.seconds[self._is_on].append((time.thread_time() - self._began) / (progress - self._at))
        done = len(self.seconds[True]) + len(self.seconds[False])
        if done == 2 * self.num_pairs:
            self._finish()
            return
        self._set((done + 1) // 2 % 2 == 0)  # on, off, off, on, on, ...
        self._next, self._at = progress + self.block, progress
        self._began = time.thread_time()

    def _set(self, is_on: bool) -> None:
        assert self._switch is not None
        if is_on != self._is_on:
            self._switch.turn(is_on)
        self._is_on = is_on

    def _finish(self) -> None:
        wall, cpu = time.monotonic() - self._since[0], cpu_of_threads() - self._since[1]
        self.threads = cpu / wall
        self._set(True)
        self._next, self._is_over = sys.maxsize, True

    def on_boundary(self, trainer: Any, pl_module: Any) -> None:
        if not self._is_over:
            return
        for _ in range(10 if self.saver is not None else 0):
            began = time.process_time()
            self.saver.save_now(trainer)  # type: ignore[union-attr]
            self.saves.append(time.process_time() - began)
        trainer.should_stop = True


def cpu_of_threads() -> float:
    """Seconds that the threads of the callbacks have computed."""
    clock = os.sysconf("SC_CLK_TCK")
    own = [thread.native_id for thread in threading.enumerate() if thread.name.startswith("holdfast")]
    fields = [Path(f"/proc/self/task/{number}/stat").read_text().rpartition(")")[2].split() for number in own]
    return sum(int(field[11]) + int(field[12]) for field in fields) / clock


class Rare:
    """Watches what watchers do now and then in a run that nothing else disturbs."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._taken: dict[str, list[list[float]]] = {}
        self._watchers = [callback for callback in callbacks if isinstance(callback, WATCHERS)]
        for watcher in self._watchers:
            for name in (name for name in dir(Callback) if name.startswith("on_")):
                if getattr(type(watcher), name) is not getattr(Callback, name):
                    self._time(watcher, name)
            self._time(watcher, "on_boundary")

    def _time(self, watcher: Callback, name: str) -> None:
        call, taken = getattr(watcher, name), [0.0]
        self._taken.setdefault(type(watcher).__name__, []).append(taken)

        def timed(*args: Any) -> Any:
            began = time.thread_time()
            result = call(*args)
            taken.append(time.thread_time() - began)
            return result

        setattr(watcher, name, timed)

    def shares(self, cpu_s: float) -> dict[str, float]:
        """Of the CPU time of the run, by the watcher's name."""
        found = {
            name: sum(rare_seconds(taken) for taken in each) / cpu_s for name, each in self._taken.items()
        }
        for monitor in self._watchers:
            if isinstance(monitor, PerformanceMonitor):  # its hooks time themselves
                found["PerformanceMonitor"] = monitor.get_performance_report()["windows"]["cost_share"]
        return found


def rare_seconds(taken: list[float]) -> float:
    usual = statistics.median(taken)
    return sum(seconds - usual for seconds in taken if seconds > RARE * usual)


# -- the cases --------------------------------------------------------------------------------------


def make_perdqn(settings: Sequence[str]) -> Any:
    from perdqn.assembly import RunCLI
    from perdqn.cli.command_line import expand

    return RunCLI("fit", expand([*settings, *COMMON]))


def run_perdqn(settings: Sequence[str], block: int, num_pairs: int) -> Turns:
    cli = make_perdqn([*settings, "--performance.every_s=1e9"])
    saver = next(c for c in cli.trainer.callbacks if type(c) is VerifiedCheckpoint)
    progress = operator.attrgetter("lightning_module.update_steps")
    turns = Turns(block, num_pairs, 4 * block, progress, saver)
    cli.trainer.callbacks.append(turns)
    cli.trainer.fit(cli.model)
    cli = make_perdqn([*settings, f"--trainer.max_time=00:00:00:{SECOND_RUN_S:.0f}"])
    turns.rare = find_rare(cli.trainer, cli.model)
    return turns


def find_rare(trainer: Trainer, module: LightningModule) -> dict[str, float]:
    rare, began = Rare(trainer.callbacks), time.thread_time()
    trainer.fit(module)
    return rare.shares(time.thread_time() - began)


class Tiny(LightningModule):
    """One linear layer: as little as a Lightning loop can do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.001)

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.ones(100_000, 4), batch_size=1)


def make_tiny(callbacks: list[Any], **settings: Any) -> Trainer:
    return Trainer(
        max_epochs=-1,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=any(isinstance(c, VerifiedCheckpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def run_tiny(callbacks: Callable[..., list[Any]], num_pairs: int) -> Turns:
    """``callbacks`` takes arguments of PerformanceMonitor, or none."""
    has_windows = bool(inspect.signature(callbacks).parameters)
    own = callbacks(every_s=1e9) if has_windows else callbacks()
    saver = next((c for c in own if isinstance(c, VerifiedCheckpoint)), None)
    turns = Turns(50, num_pairs, 1000, operator.attrgetter("global_step"), saver)
    make_tiny([*own, turns]).fit(Tiny())
    again = callbacks()
    if any(isinstance(callback, WATCHERS) for callback in again):
        trainer = make_tiny(again, max_time={"seconds": SECOND_RUN_S})
        turns.rare = find_rare(trainer, Tiny())
    return turns


def verified() -> VerifiedCheckpoint:
    return VerifiedCheckpoint("checkpoints", every={"minutes": 10})


def watchers(**windows: Any) -> list[Any]:
    return [ResourceMonitor(), PerformanceMonitor(**windows), TuningAdvisor()]


def keepers() -> list[Any]:
    return [verified(), EmergencyCheckpoint(), ErrorRecovery()]


CASES: dict[str, Callable[[int], Turns]] = {
    "c4": lambda n: run_perdqn(C4, 64, n),
    "atari": lambda n: run_perdqn(ATARI, 8, n),
    "tiny": lambda n: run_tiny(lambda **windows: [*keepers(), *watchers(**windows)], n),
    "tiny no-op": lambda n: run_tiny(lambda: [Callback()], n),  # what any callback costs
    "tiny keepers": lambda n: run_tiny(keepers, n),
    "tiny VerifiedCheckpoint": lambda n: run_tiny(lambda: [verified()], n),
    "tiny EmergencyCheckpoint": lambda n: run_tiny(lambda: [EmergencyCheckpoint("checkpoints")], n),
    "tiny ErrorRecovery": lambda n: run_tiny(lambda: [ErrorRecovery()], n),
    "tiny watchers": lambda n: run_tiny(watchers, n),
    "tiny ResourceMonitor": lambda n: run_tiny(lambda: [ResourceMonitor()], n),
    "tiny PerformanceMonitor": lambda n: run_tiny(lambda **windows: [PerformanceMonitor(**windows)], n),
    "tiny TuningAdvisor": lambda n: run_tiny(lambda: [TuningAdvisor()], n),
}


# -- judging ----------------------------------------------------------------------------------------


def judge(turns: Turns) -> dict[str, Any]:
    """Per step; percentages are of the CPU time of a bare step."""
    on, off = np.array(turns.seconds[True]), np.array(turns.seconds[False])
    extra, percent = 1e6 * (on - off), 100 * (on / off - 1)
    figures: dict[str, Any] = {
        "pairs": len(on),
        "bare_us": 1e6 * float(np.median(off)),
        "extra_us": float(np.median(extra)),
        "extra_us_interval": interval(extra),
        "percent": float(np.median(percent)),
        "percent_interval": interval(percent),
        "threads_percent": 100 * turns.threads,
    }
    if turns.rare:
        figures["rare_percent"] = {name: 100 * share for name, share in turns.rare.items()}
    if turns.saves:
        save = statistics.median(turns.saves)
        figures |= {"save_cpu_ms": 1e3 * save, "saves_percent": 100 * save / SAVE_EVERY_S}
    return figures


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 %, of the median."""
    drawn = np.random.default_rng(seed).choice(values, (2000, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(low), float(high)


def lines_of(case: str, found: dict[str, Any]) -> Iterator[str]:
    us, percent = found["extra_us_interval"], found["percent_interval"]
    yield f"{case}: {found['bare_us']:.0f} us CPU a bare step, {found['pairs']} pairs of blocks"
    yield f"  {found['extra_us']:+.2f} us a step ({us[0]:+.2f} to {us[1]:+.2f})"
    yield f"  {found['percent']:+.2f} % ({percent[0]:+.2f} to {percent[1]:+.2f})"
    yield f"  threads {found['threads_percent']:.2f} % of a core"
    for name, share in found.get("rare_percent", {}).items():
        yield f"  rare work of {name} {share:.2f} %"
    if "save_cpu_ms" in found:
        yield f"  a save {found['save_cpu_ms']:.1f} ms CPU: {found['saves_percent']:.3f} % at one a minute"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--blocks", type=int, default=300, help="pairs of blocks")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if unknown := set(args.cases) - CASES.keys():
        parser.error(f"unknown cases: {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    results, out = json.loads(args.out.read_text()) if args.out.is_file() else {}, args.out.absolute()
    for case in args.cases or CASES:
        with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
            os.chdir(folder)
            figures = judge(CASES[case](args.blocks))
            os.chdir("/")
        print("\n".join(lines_of(case, figures)), flush=True)
        names = ("perdqn", "lightning-holdfast", "lightning", "torch")
        results[case] = {
            **figures,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": platform.processor() or platform.machine(),
            "versions": {name: version(name) for name in names},
        }
        out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
