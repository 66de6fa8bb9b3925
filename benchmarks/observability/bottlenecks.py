"""Injected bottlenecks: is the right one named, and is its speed-up predicted? Are healthy runs left alone?

    python benchmarks/observability/bottlenecks.py                       # all kinds, some 40 minutes
    python benchmarks/observability/bottlenecks.py --kinds data disk --shares 0.1 0.4 --runs 4
    python benchmarks/observability/bottlenecks.py --programs convolutions recurrent manual

A program is slowed down on purpose so that the injected part is a given share of the step. Programs, by
milliseconds of a step on one core: ``perceptron`` (5), on which the thresholds were set; and held out,
``convolutions`` on images (8), ``recurrent`` on tokens (12), ``manual`` with two optimisers of its own (4).
Of each kind there are variants: something waits or computes, from the beginning or after eight windows.
Programs and variants are taken in turns by run, so that each kind meets each program. CPU and memory are kept
short by control groups of this machine (v1, as root; left out and said so where there are none). No kind
swaps: what is short of memory reads pages of a file again; ``left_out`` says whether there was any swap.

A run is a fit with the monitor and the injection, and one without the monitor in which the injection is
switched off and on block by block: the measured speed-up is the median over pairs of neighbouring blocks, so
whatever else the machine does meets both sides; time in the CPU's queue is left out, as the monitor does.
Healthy runs are fits with the monitor alone. Windows are denser here than by default (every 0.1 s, up to 3 %
of the time), as the runs are short.

Linux only. Results go to ``benchmarks/results/bottlenecks.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import mmap
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from holdfast import BoundaryCallback, PerformanceMonitor
from holdfast.timing.kernel import Kernel, Waits
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.utils.data import DataLoader

RESULTS = Path(__file__).resolve().parents[1] / "results" / "bottlenecks.json"
WINDOWS: dict[str, Any] = {"window_steps": 8, "every_s": 0.1, "max_cost": 0.03}
WINDOWS_OF_A_RUN = 14  # with the injection
MIN_PAIRS = 6
PAGE, NUM_PAGES = 4096, 16384  # of the file that memory is short for: 64 MiB


def wait(seconds: float) -> None:
    time.sleep(seconds)


def compute(seconds: float) -> None:
    """CPU time of this thread, so that neighbours do not make it less."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        sum(range(50))


@dataclass
class Injection:
    """What is slowed down, by how much, and whether just now."""

    place: str = ""
    seconds: float = 0.0  # in each step
    slow: Callable[[float], None] = wait
    onset: int = 0  # windows before it begins
    is_on: bool = False

    def at(self, place: str, times: float = 1.0) -> None:
        if self.is_on and place == self.place:
            self.slow(self.seconds * times)


class Slow:
    """Mixed into a layer: something of its own in it."""

    injection = Injection()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.injection.at("layer")
        output: torch.Tensor = super().forward(x)  # type: ignore[misc]
        return output


class SlowLinear(Slow, nn.Linear): ...


class SlowConv2d(Slow, nn.Conv2d): ...


class Recurrence(nn.LSTM):
    """The outputs alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        outputs: torch.Tensor = super().forward(x)[0]
        return outputs


@dataclass(frozen=True)
class Program:
    """What is trained, on copies of a row; a layer of it is `Slow`."""

    row: torch.Tensor
    batch: int
    layers: Callable[[], list[nn.Module]]
    num_optimisers: int = 1  # more than one: each with parts of the layers, stepped by hand


def perceptron(width: int) -> list[nn.Module]:
    first, last = nn.Linear(width, width), nn.Linear(width, 10)
    return [first, nn.ReLU(), SlowLinear(width, width), nn.ReLU(), last]


def convolutions() -> list[nn.Module]:
    first, slow = nn.Conv2d(3, 16, 3), SlowConv2d(16, 32, 3, stride=2)
    return [first, nn.BatchNorm2d(16), nn.ReLU(), slow, nn.ReLU(), nn.Flatten(), nn.Linear(32 * 14 * 14, 10)]


def recurrent() -> list[nn.Module]:
    return [nn.Embedding(64, 64), Recurrence(64, 128, batch_first=True), nn.Dropout(0.1), SlowLinear(128, 64)]


PROGRAMS = {
    "perceptron": Program(torch.ones(384), 128, lambda: perceptron(384)),
    "convolutions": Program(torch.ones(3, 32, 32), 12, convolutions),
    "recurrent": Program(torch.ones(32, dtype=torch.long), 24, recurrent),
    "manual": Program(torch.ones(320), 128, lambda: perceptron(320), num_optimisers=2),
}


class Model(LightningModule):
    """A program that also looks something up, and asks an environment for a number."""

    def __init__(self, program: Program, injection: Injection) -> None:
        super().__init__()
        self.program, self.injection = program, injection
        self.automatic_optimization = program.num_optimisers == 1
        self.layers = nn.Sequential(*program.layers())
        for layer in self.layers:
            if isinstance(layer, Slow):
                layer.injection = injection
        self.pages: mmap.mmap | None = None
        self.num_pages = 0
        self.draw = np.random.default_rng(0)

    def act(self) -> float:
        self.injection.at("environment")
        return 0.0

    def timed_methods(self) -> Any:
        return [(self, "act", "environment/act")]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.act()
        self.injection.at("step")
        if self.pages is not None:
            places = self.draw.integers(NUM_PAGES, size=self.num_pages)
            sum(self.pages[int(place) * PAGE] for place in places)
        outputs = self.layers(batch).flatten(0, -2)
        loss = nn.functional.cross_entropy(outputs, torch.zeros(len(outputs), dtype=torch.long))
        if batch_idx % 20 == 0:
            self.log("loss", loss)
        if self.automatic_optimization:
            return loss
        self.zero_grad()
        self.manual_backward(loss)
        for optimiser in self.optimizers():  # type: ignore[union-attr]
            optimiser.step()
        return None

    def configure_optimizers(self) -> Any:
        num = self.program.num_optimisers
        parameters = list(self.parameters())
        parts = [parameters[part::num] for part in range(num)]
        return [torch.optim.SGD(part, lr=1e-3) for part in parts]

    def train_dataloader(self) -> Any:
        def collate(items: Any) -> Any:
            self.injection.at("data")
            return torch.stack(items)

        return DataLoader(Endless(self.program.row), self.program.batch, collate_fn=collate)


@dataclass
class Endless(torch.utils.data.Dataset[torch.Tensor]):
    """The same row again and again."""

    row: torch.Tensor

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.row


class Log(Logger):
    name, version = "log", 0

    def __init__(self, injection: Injection, every: int) -> None:
        super().__init__()
        self.injection, self.every = injection, every

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.injection.at("logging", self.every)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass


class Disk(TorchCheckpointIO):
    """Of which a save takes as long as is said."""

    def __init__(self, injection: Injection, every: int) -> None:
        self.injection, self.every = injection, every

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        self.injection.at("disk", self.every)

    def remove_checkpoint(self, path: Any) -> None:
        pass


def own_time(waits: Waits) -> float:
    """Seconds without those in which the machine ran others; the kernel counts throttling as queueing."""
    return time.perf_counter() - max(0.0, waits.queued_s - waits.throttled_s)


@dataclass
class Clockwork(BoundaryCallback):
    """Switches the injection on after its onset, or block by block; ends a fit after windows or seconds."""

    injection: Injection
    seconds: float
    monitor: PerformanceMonitor | None = None
    block_steps: int = 0  # 0: no blocks
    turn: Callable[[bool], None] = lambda is_on: None
    is_slow: bool = True
    steps_s: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})

    def __post_init__(self) -> None:
        self._began = self._block_began = 0.0
        self._step, self._kernel = 0, Kernel()

    def on_train_start(self, *_: Any) -> None:
        self._began = time.perf_counter()

    def on_boundary(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now, self._step = time.perf_counter(), self._step + 1
        if self.block_steps and self._step % self.block_steps == 0:
            if self._step > self.block_steps:
                took = own_time(self._kernel.read()) - self._block_began
                self.steps_s[self.injection.is_on].append(took / self.block_steps)
            self._switch(self._step // self.block_steps % 4 in (1, 2))  # on, on, off, off: neighbours differ
            self._block_began = own_time(self._kernel.read())
        elif self.monitor is not None:
            num_windows = len(self.monitor.records)
            self._switch(self.is_slow and num_windows >= self.injection.onset)
            trainer.should_stop = num_windows >= self.injection.onset + WINDOWS_OF_A_RUN
        has_enough = not self.block_steps or len(self.steps_s[False]) >= MIN_PAIRS
        if now - self._began > self.seconds and has_enough:
            trainer.should_stop = True

    def _switch(self, is_on: bool) -> None:
        if is_on != self.injection.is_on:
            self.turn(is_on)
        self.injection.is_on = is_on

    def speed_up(self) -> float:
        pairs = zip(self.steps_s[True], self.steps_s[False], strict=False)
        return statistics.median(slow / fast for slow, fast in pairs)


def fit(model: Model, clockwork: Clockwork, monitor: PerformanceMonitor | None, log_every: int = 5) -> None:
    injection = model.injection
    injection.is_on = False
    every = 20 * model.program.num_optimisers  # Lightning counts the steps of each
    saves = ModelCheckpoint("nowhere", every_n_train_steps=every, save_top_k=-1, save_weights_only=True)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[clockwork, saves, *([monitor] if monitor else [])],
        logger=Log(injection, log_every),
        log_every_n_steps=log_every,
        plugins=[Disk(injection, 20)],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    try:
        trainer.fit(model)
    finally:
        clockwork._switch(False)


# -- what the kernel keeps short ---------------------------------------------------------------------


class Group:
    """A control group of the first version, in which this process is until it is removed."""

    def __init__(self, controller: str) -> None:
        home = Path("/sys/fs/cgroup") / controller
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = next(line.split(":", 2)[2] for line in lines if controller in line.split(":")[1].split(","))
        self.before = home / own.lstrip("/")
        self.folder = self.before / f"holdfast-{os.getpid()}"
        self.folder.mkdir(exist_ok=True)
        self._enter(self.folder)

    def write(self, name: str, value: int) -> None:
        (self.folder / name).write_text(str(value))

    def _enter(self, folder: Path) -> None:
        (folder / "cgroup.procs").write_text(str(os.getpid()))

    def remove(self) -> None:
        self._enter(self.before)
        with contextlib.suppress(OSError):
            self.folder.rmdir()


def has_group(controller: str) -> bool:
    try:
        Group(controller).remove()
    except (OSError, StopIteration):
        return False
    return True


# -- runs -------------------------------------------------------------------------------------------

# By label: variants as place, what it does, and the windows before it begins.
VARIANTS: dict[str, list[tuple[str, Callable[[float], None], int]]] = {
    "data": [("data", wait, 0), ("data", compute, 0)],
    "environment": [("environment", wait, 0), ("environment", compute, 8)],
    "compute": [("layer", compute, 0), ("step", compute, 8), ("step", wait, 0)],
    "logging": [("logging", wait, 0), ("logging", compute, 0)],
    "disk": [("disk", wait, 0), ("disk", compute, 0)],
    "cpu_throttled": [("", wait, 0)],
    "memory_pressure": [("", wait, 0)],
}


@dataclass
class Result:
    """Of one run."""

    kind: str
    program: str
    variant: str
    share: float
    named: list[str]
    predicted: float | None  # of what was injected, where it was named
    measured: float
    records: int


def step_seconds(program: str, seconds: float) -> tuple[float, float]:
    """Of the program as it is: the median of blocks, and how much of a CPU it gets beside others."""
    wall, cpu = time.perf_counter(), time.thread_time()
    clockwork = Clockwork(Injection(), seconds, block_steps=8)
    fit(Model(PROGRAMS[program], clockwork.injection), clockwork, None)
    obtained = (time.thread_time() - cpu) / (time.perf_counter() - wall)
    return statistics.median(clockwork.steps_s[True] + clockwork.steps_s[False]), obtained


def run(kind: str, share: float, program: str, variant: int, seconds: float) -> Result:
    place, slow, onset = VARIANTS[kind][variant % len(VARIANTS[kind])]
    base, obtained = step_seconds(program, 0.3 * seconds)
    injection = Injection(place, base * share / (1 - share), slow, onset)
    model = Model(PROGRAMS[program], injection)
    with prepared(kind, share, base, obtained, model) as turn:
        monitor = PerformanceMonitor(interventions=kind == "compute", **WINDOWS)
        fit(model, Clockwork(injection, 20 * seconds, monitor, turn=turn), monitor)
        found = monitor.find_bottlenecks()
        num_steps = 20 if kind in ("disk", "cpu_throttled", "memory_pressure") else 10
        paired = Clockwork(injection, seconds, block_steps=num_steps, turn=turn)
        fit(model, paired, None)
    predicted = next((each.speed_up for each in found if each.label == kind), None)
    what = f"{place} {slow.__name__} after {onset}" if place else kind
    named = [each.label for each in found]
    return Result(kind, program, what, share, named, predicted, paired.speed_up(), len(monitor.records))


@contextlib.contextmanager
def prepared(
    kind: str, share: float, base: float, obtained: float, model: Model
) -> Iterator[Callable[[bool], None]]:
    """What else there is to do as the injection is switched."""
    if kind == "cpu_throttled":
        group = Group("cpu")
        group.write("cpu.shares", 2**18)  # the quota shall bind, not neighbours
        group.write("cpu.cfs_period_us", 20_000)
        quota = max(1000, round(20_000 * obtained * (1 - share)))
        try:
            yield lambda is_on: group.write("cpu.cfs_quota_us", quota if is_on else -1)
        finally:
            group.remove()
    elif kind == "memory_pressure":
        with short_of_memory(model, share, base) as turn:
            yield turn
    else:
        yield lambda is_on: None


@contextlib.contextmanager
def short_of_memory(model: Model, share: float, base: float) -> Iterator[Callable[[bool], None]]:
    """Pages of a file are looked up in every step; on: there is memory for a quarter of them."""
    group = Group("memory")  # first: pages belong to the group that reads them first
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
        file.write(os.urandom(PAGE * NUM_PAGES))
        file.flush()
        os.fsync(file.fileno())
        model.pages = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        model.pages.madvise(mmap.MADV_RANDOM)
        limit = PAGE * NUM_PAGES // 4

        def turn(is_on: bool) -> None:
            group.write("memory.limit_in_bytes", int(used() + limit) if is_on else -1)
            for place in () if is_on else range(NUM_PAGES):
                model.pages[place * PAGE]  # type: ignore[index]

        def used() -> int:
            """What is needed beside the file's pages."""
            return anonymous(group.folder)

        try:
            turn(True)
            draw, began = np.random.default_rng(1), time.perf_counter()
            for place in draw.integers(NUM_PAGES, size=2000):
                model.pages[int(place) * PAGE]
            fault_s = (time.perf_counter() - began) / 2000
            turn(False)
            model.num_pages = max(1, round(base * share / (1 - share) / fault_s))
            yield turn
        finally:
            group.remove()
            model.pages = None


def anonymous(folder: Path) -> int:
    """Bytes of a group that cannot be read again from a file."""
    lines = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return sum(int(value) for name, value in lines if name in ("total_rss", "total_unevictable"))


def healthy(program: str, seconds: float, interventions: bool) -> list[str]:
    """What is named where nothing is injected."""
    injection = Injection()
    monitor = PerformanceMonitor(interventions=interventions, **WINDOWS)
    clockwork = Clockwork(injection, 20 * seconds, monitor, is_slow=False)
    fit(Model(PROGRAMS[program], injection), clockwork, monitor)
    return [each.label for each in monitor.find_bottlenecks()]


# -- the whole --------------------------------------------------------------------------------------


def scores(results: list[Result], false: list[list[str]]) -> dict[str, Any]:
    """Of labels, and of predictions against what was measured."""
    errors = [abs(result.predicted / result.measured - 1) for result in results if result.predicted]
    return {
        "runs": len(results),
        "right_label": sum(r.named[:1] == [r.kind] for r in results) / max(1, len(results)),
        "right_and_no_other": sum(r.named == [r.kind] for r in results) / max(1, len(results)),
        "speed_up_within_15_percent": sum(error <= 0.15 for error in errors) / max(1, len(errors)),
        "healthy_runs": len(false),
        "healthy_with_a_bottleneck": sum(bool(each) for each in false),
        "healthy_named": dict(Counter(label for each in false for label in each)),
    }


def summary(results: list[Result], false: list[tuple[str, list[str]]]) -> dict[str, Any]:
    """Confusion by what was injected, how far predictions are from what was measured, each program alone."""
    confusion: dict[str, dict[str, int]] = {}
    for result in results:
        first = result.named[0] if result.named else "none"
        confusion.setdefault(result.kind, Counter())[first] += 1  # type: ignore[arg-type]
    errors = {
        kind: [r.predicted / r.measured - 1 for r in results if r.kind == kind and r.predicted]
        for kind in confusion
    }
    programs = dict.fromkeys([r.program for r in results] + [program for program, _ in false])
    return {
        **scores(results, [named for _, named in false]),
        "confusion": {kind: dict(row) for kind, row in confusion.items()},
        "speed_up_error_median": {k: statistics.median(each) for k, each in errors.items() if each},
        "programs": {
            each: scores([r for r in results if r.program == each], [n for p, n in false if p == each])
            for each in programs
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--shares", nargs="+", type=float, default=[0.1, 0.3, 0.6])
    parser.add_argument("--runs", type=int, default=4, help="of each kind and share")
    parser.add_argument("--healthy", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each paired measurement")
    parser.add_argument("--quick", action="store_true", help="one short run, for the tests")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.quick:
        given.kinds, given.shares, given.runs, given.healthy, given.seconds = ["data"], [0.5], 1, 1, 2.0
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    needs = {"cpu_throttled": "cpu", "memory_pressure": "memory"}
    kinds = [kind for kind in given.kinds if kind not in needs or has_group(needs[kind])]
    left_out = [f"{kind}: no control group can be made" for kind in sorted(set(given.kinds) - set(kinds))]
    has_swap = len(Path("/proc/swaps").read_text().splitlines()) > 1  # the first is a heading
    left_out.append("swap: not injected" if has_swap else "swap: /proc/swaps is empty on this machine")
    print("left out:", *left_out, sep="\n  ", flush=True)
    results: list[Result] = []
    false: list[tuple[str, list[str]]] = []
    num = len(given.programs)
    about = {
        "left_out": left_out,
        "seconds": given.seconds,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in ("lightning-holdfast", "lightning", "torch")},
    }
    out = given.out.absolute()

    def keep() -> dict[str, Any]:
        found = {**summary(results, false), **about, "load": os.getloadavg()}
        out.write_text(json.dumps({**found, "each": [vars(result) for result in results]}, indent=1) + "\n")
        return found

    with tempfile.TemporaryDirectory(prefix="bottlenecks-") as folder, contextlib.chdir(folder):
        for index in range(given.runs):
            program, variant = given.programs[index % num], index % num + index // num
            for share in given.shares:
                for kind in kinds:
                    results.append(run(kind, share, program, variant, given.seconds))
                    print(results[-1], flush=True)
                    keep()
        for index in range(given.healthy):
            program, with_interventions = given.programs[index % num], index // num % 2 == 0
            false.append((program, healthy(program, given.seconds, with_interventions)))
            print("healthy", *false[-1], flush=True)
            keep()
    print(json.dumps(keep(), indent=1))


if __name__ == "__main__":
    main()
