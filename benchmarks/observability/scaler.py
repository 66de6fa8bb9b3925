"""What AutoScaler chooses, and what that gains, against the value a program was given and the best there is.

    python benchmarks/observability/scaler.py
    python benchmarks/observability/scaler.py --only workers pieces

Six programs begin with a value that many would have left alone. The scaler chooses (three times, nothing
remembered from one to the next); then, without it, the same work is timed with every value in turns, in
random order, `ROUNDS` times. The gain is the time with the value given over that with the value chosen; what
was missed is the time with the value chosen over the fastest. Wall time, so the machine should be idle.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from holdfast import AutoScaler
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

sys.path.append(str(Path(__file__).resolve().parents[1]))

import peers

from perdqn.calibration import time_training
from perdqn.config import Config, from_dict
from perdqn.fitting import fit_to_machine, with_value
from perdqn.module import PERDQN

RESULTS = peers.RESULTS / "scaler.json"
CHOICES, ROUNDS = 3, 7
SECONDS = 2.0  # that perdqn trains for in a round
MAX_EPOCHS = 60  # for the workers to be decided in
QUIET = dict.fromkeys(
    ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
)


@dataclass(frozen=True)
class Case:
    """A knob of a program, the value it was given, and those in question.

    ``choose`` gives the scaler's value; ``time_with`` the seconds for the same work with a value.
    """

    knob: str
    given: int
    values: tuple[int, ...]
    choose: Callable[[], int]
    time_with: Callable[[int], float]


# -- ordinary programs ---------------------------------------------------------------------------


class Photographs(Dataset[tuple[Tensor, Tensor]]):
    """Images that take a while to be made, the same each time."""

    is_deterministic = True  # so its workers may be turned while a run goes on

    def __init__(self, num: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.raw = torch.randint(0, 256, (num, 3, 96, 96), dtype=torch.uint8, generator=generator)

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.raw[index : index + 1].float() / 255
        for _ in range(6):
            image = F.interpolate(F.avg_pool2d(image, 3, 1, 1), size=96, mode="bicubic", align_corners=False)
        return F.interpolate(image, size=32)[0], torch.tensor(index % 10)


class Classifier(LightningModule):
    """A small convolutional network, or a wide one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Linear(width, 10)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.head(self.net(images).mean((2, 3))), labels)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


class Stopwatch(Callback):
    """From the first batch to the last."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds = -time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds += time.perf_counter()


class Settled(Callback):
    """Ends training once the scaler seeks no more."""

    def __init__(self, scaler: AutoScaler, knob: str) -> None:
        self.scaler, self.knob = scaler, knob

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        climb = self.scaler._climbs.get(self.knob)
        trainer.should_stop = climb is not None and climb.is_settled


def fit(module: LightningModule, loader: Any, *callbacks: Callback, **options: Any) -> float:
    watch = Stopwatch()
    settings = {"accelerator": "cpu", "max_epochs": 1, **QUIET, **options}
    Trainer(callbacks=[*callbacks, watch], **settings).fit(module, loader)
    return watch.seconds


def workers() -> Case:
    data = Photographs(480)

    def load(num_workers: int) -> DataLoader[Any]:
        return DataLoader(data, batch_size=32, shuffle=True, num_workers=num_workers)

    def choose() -> int:
        scaler = AutoScaler(cache_dir=empty_cache())
        fit(Classifier(8), load(0), scaler, Settled(scaler, "num_workers"), max_epochs=MAX_EPOCHS)
        return scaler.decisions["num_workers"]

    return Case("num_workers", 0, (0, 1, 2), choose, lambda value: fit(Classifier(8), load(value)))


def images(num: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.rand(num, 3, 32, 32, generator=generator), torch.arange(num) % 10)


def threads() -> Case:
    data = images(512)

    def run(*callbacks: Callback) -> float:
        return fit(Classifier(48), DataLoader(data, batch_size=64), *callbacks)

    def choose() -> int:
        torch.set_num_threads(1)
        scaler = AutoScaler({"num_threads": (1, 2)}, cache_dir=empty_cache())
        run(scaler)
        torch.set_num_threads(1)
        return scaler.decisions["num_threads"]

    def time_with(value: int) -> float:
        torch.set_num_threads(value)
        try:
            return run()
        finally:
            torch.set_num_threads(1)

    return Case("num_threads", 1, (1, 2), choose, time_with)


def pieces() -> Case:
    """A batch whose activations are larger than any cache."""
    data, whole = images(1024), 512

    def choose() -> int:
        scaler = AutoScaler({"micro_batch": (1, whole)}, cache_dir=empty_cache())
        fit(Classifier(32), DataLoader(data, batch_size=whole), scaler)
        return scaler.decisions["micro_batch"]

    def time_with(value: int) -> float:
        loader = DataLoader(data, batch_size=value)
        return fit(Classifier(32), loader, accumulate_grad_batches=whole // value)

    return Case("micro_batch", whole, tuple(2**i for i in range(10)), choose, time_with)


# -- perdqn --------------------------------------------------------------------------------------

C4: dict[str, Any] = {
    "env": {"id": "CartPole-v1"},
    "replay": {"capacity": 50_000},
    "learner": {"batch_size": 64, "train_every": 4, "warmup_env_steps": 1_000, "updates_per_step": 1},
    "network": {"class_path": "mlp", "init_args": {"hidden_sizes": [64, 64]}},
    "total_env_steps": 100_000_000,
}
MINATAR: dict[str, Any] = {
    "env": {"id": "MinAtar/Breakout-v0"},
    "replay": {"capacity": 20_000},
    "learner": {"batch_size": 32, "train_every": 1, "warmup_env_steps": 1_000},
    "network": {"class_path": "minatar_cnn"},
    "total_env_steps": 100_000_000,
}


def pace(config: Config, knob: str) -> Callable[[int], float]:
    """Seconds an env step takes with the updates it owes."""
    return lambda value: time_training(with_value(config, knob, value), SECONDS)


def groups() -> Case:
    knob, config = "learner.updates_per_step", from_dict(C4)

    def choose() -> int:
        scaler = AutoScaler(cache_dir=empty_cache())
        fit(PERDQN(**C4), None, scaler, Settled(scaler, knob))
        return scaler.decisions[knob]

    return Case(knob, 1, (1, 2, 4, 8, 16, 32, 64), choose, pace(config, knob))


def decided_once(knob: str, settings: dict[str, Any], values: tuple[int, ...]) -> Case:
    config = with_value(from_dict(settings), knob, values[0])

    def choose() -> int:
        empty_cache()
        return fit_to_machine(config, {knob: (values[0], values[-1])})[knob]

    return Case(knob, values[0], values, choose, pace(config, knob))


CASES: dict[str, Callable[[], Case]] = {
    "workers": workers,
    "threads": threads,
    "pieces": pieces,
    "groups": groups,
    "environments": lambda: decided_once("env.num_envs", C4, (1, 2, 4, 8, 16)),
    "threads of perdqn": lambda: decided_once("learner.num_threads", MINATAR, (1, 2)),
}


# -- measuring -----------------------------------------------------------------------------------


def empty_cache() -> Path:
    """Where decisions are remembered, of which there are none yet; compiled updates stay."""
    folder = Path(os.environ["PERDQN_CACHE_DIR"])
    shutil.rmtree(folder / "scaler", ignore_errors=True)
    return folder


def measure(case: Case, num_choices: int, rounds: int, values: tuple[int, ...]) -> dict[str, Any]:
    chosen = [case.choose() for _ in range(num_choices)]
    taken: dict[int, list[float]] = {value: [] for value in sorted({*values, *chosen, case.given})}
    draw = random.Random(0)
    for _ in range(rounds):
        for value in draw.sample(list(taken), len(taken)):
            taken[value].append(case.time_with(value))
    medians = {value: statistics.median(times) for value, times in taken.items()}
    usual, _ = Counter(chosen).most_common(1)[0]
    gains = [given / now for given, now in zip(taken[case.given], taken[usual], strict=True)]
    return {
        "knob": case.knob,
        "given": case.given,
        "chosen": chosen,
        "gain": peers.summary(gains),
        "missed": medians[usual] / min(medians.values()),
        "best": min(medians, key=lambda value: medians[value]),
        "seconds": {str(value): peers.summary(times) for value, times in taken.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="one choice and one round of two values")
    given = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    found |= peers.get_provenance("observability/scaler.py")
    with tempfile.TemporaryDirectory() as os.environ["PERDQN_CACHE_DIR"]:
        for name in given.only:
            case = CASES[name]()
            effort = (1, 1, case.values[:2]) if given.quick else (CHOICES, ROUNDS, case.values)
            found.setdefault("cases", {})[name] = measure(case, *effort)
            given.out.write_text(json.dumps(found, indent=2) + "\n")
            print(f"{name}: {describe(found['cases'][name])}", flush=True)


def describe(row: dict[str, Any]) -> str:
    gain = "{median:.2f} ({lowest:.2f} to {highest:.2f})".format(**row["gain"])
    chosen = ", ".join(map(str, row["chosen"]))
    best = f"the best is {row['best']}, {row['missed']:.2f} times as fast"
    return f"{row['knob']} {row['given']} -> {chosen}: {gain} times as fast; {best}"


if __name__ == "__main__":
    main()
