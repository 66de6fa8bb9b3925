"""How often TuningAdvisor's general rules name a fault that was put into an ordinary Lightning program.

    python benchmarks/observability/general_rules.py dev      # what thresholds were chosen by
    python benchmarks/observability/general_rules.py score    # other tasks, seeds and magnitudes

A fault is named where one of the rules meant for it is among the first three pieces of advice that stand as
the run ends. A healthy run has a false alarm where anything of more than low priority was ever said in it.
The advisor is as it comes, but that rules of the clock are left out: nothing here is about speed. Results go
to ``benchmarks/results/general_rules.json``.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from holdfast import TuningAdvisor
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

RESULTS = Path(__file__).resolve().parents[1] / "results" / "general_rules.json"
NUM_STEPS = 1_000
LOWER = (
    *("not_finite", "loss_diverging", "loss_above_start", "updates_too_large", "first_updates_too_large"),
    *("loss_spikes", "weights_grow"),
)
TAILS = ("grad_norm_tails", "loss_spikes")


@dataclass(frozen=True)
class Task:
    """A healthy program; faults replace some of it."""

    name: str
    data: Callable[[int], tuple[Tensor, Tensor]]  # by number of examples
    network: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam
    lr: float = 1e-3
    num_examples: int = 8_000
    batch_size: int = 32
    shuffle: bool = True
    clip: float | None = None
    schedule: Callable[[Any], Any] | None = None
    spoil: Callable[[nn.Module], None] = lambda network: None
    break_batch: Callable[[Tensor, int], Tensor] = lambda x, step: x
    arrange: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda x, y: (x, y)
    options: dict[str, Any] = field(default_factory=dict)


class Program(LightningModule):
    """Any of them."""

    def __init__(self, task: Task, lr: float) -> None:
        super().__init__()
        self.save_hyperparameters("lr")
        self.task, self.network = task, task.network()
        task.spoil(self.network)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.task.loss(self.network(self.task.break_batch(x, self.global_step)), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", self.task.loss(self.network(x), y))

    def configure_optimizers(self) -> Any:
        optimizer = self.task.optimizer(self.parameters(), lr=self.hparams["lr"], **self.task.options)
        if self.task.schedule is None:
            return optimizer
        return [optimizer], [{"scheduler": self.task.schedule(optimizer), "interval": "step"}]


# -- tasks ------------------------------------------------------------------------------------------


def teacher(num: int) -> tuple[Tensor, Tensor]:
    """Classes that a random network gives to random points."""
    generator = torch.Generator().manual_seed(99)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        net = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 5))
    x = torch.randn(num, 20, generator=generator)
    with torch.no_grad():
        return x, net(x).argmax(1)


def waves(num: int) -> tuple[Tensor, Tensor]:
    """A smooth function of eight numbers, with noise."""
    generator = torch.Generator().manual_seed(98)
    x = torch.rand(num, 8, generator=generator) * 2 - 1
    y = torch.sin(3 * x[:, :1]) + x[:, 1:2] * x[:, 2:3] + 0.1 * torch.randn(num, 1, generator=generator)
    return x, y


def shapes(num: int) -> tuple[Tensor, Tensor]:
    """Images of 12 by 12 with a bar in one of six places or directions, under noise."""
    generator = torch.Generator().manual_seed(97)
    y = torch.randint(6, (num,), generator=generator)
    x = 1.2 * torch.randn(num, 1, 12, 12, generator=generator)
    for index, kind in enumerate(y.tolist()):
        place = 1 + 4 * (kind % 3)
        (x[index, 0, place : place + 2] if kind < 3 else x[index, 0, :, place : place + 2]).add_(1.0)
    return x, y


def words(num: int) -> tuple[Tensor, Tensor]:
    """Sequences of a random grammar: the next of 12 letters depends on the two before."""
    generator = torch.Generator().manual_seed(96)
    chances = torch.softmax(2 * torch.randn(12, 12, 12, generator=generator), -1)
    x = torch.randint(12, (num, 17), generator=generator)
    for at in range(2, 17):
        rows = chances[x[:, at - 2], x[:, at - 1]]
        x[:, at] = torch.multinomial(rows, 1, generator=generator)[:, 0]
    return x[:, :-1], x[:, 1:]


def codes(num: int) -> tuple[Tensor, Tensor]:
    """Points of 32 numbers on a curved surface of four, to be reproduced."""
    generator = torch.Generator().manual_seed(95)
    factors = torch.randn(num, 4, generator=generator)
    fixed = torch.Generator().manual_seed(94)
    x = torch.tanh(factors @ torch.randn(4, 32, generator=fixed)) + 0.5 * factors.repeat(1, 8)
    return x, x


def counts(num: int) -> tuple[Tensor, Tensor]:
    """Poisson counts whose rate depends on 16 numbers; the loss may be negative."""
    generator = torch.Generator().manual_seed(93)
    x = torch.randn(num, 16, generator=generator)
    rate = torch.exp(1 + torch.tanh(x[:, :1] + x[:, 1:2] * x[:, 2:3]))
    return x, torch.poisson(rate, generator=generator)


def mlp(inputs: int, outputs: int, depth: int = 3, kind: type[nn.Module] = nn.ReLU) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(inputs, 64), kind()]
        inputs = 64
    return nn.Sequential(*layers, nn.Linear(64, outputs))


def convolutions(kind: type[nn.Module] = nn.ReLU) -> nn.Module:
    def layer(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, padding=1), kind()]

    body = [*layer(1, 16), *layer(16, 16), nn.MaxPool2d(2), *layer(16, 16)]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(576, 64), kind(), nn.Linear(64, 6))


def bottleneck(kind: type[nn.Module] = nn.ReLU) -> nn.Module:
    inward = [nn.Linear(32, 64), kind(), nn.Dropout(0.05), nn.Linear(64, 8)]
    return nn.Sequential(*inward, nn.Linear(8, 64), kind(), nn.Linear(64, 32))


class Letters(nn.Module):
    """A causal convolution over embeddings."""

    def __init__(self, kind: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 24)
        self.mix = nn.Conv1d(24, 64, 3)
        self.head = nn.Sequential(kind(), nn.Conv1d(64, 64, 1), kind(), nn.Conv1d(64, 12, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(F.pad(self.embedding(x).transpose(1, 2), (2, 0))))


def entropy(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y)


SGD = {"optimizer": torch.optim.SGD, "options": {"momentum": 0.9}}
TEACHER = Task("teacher", teacher, lambda: mlp(20, 5), entropy)
WAVES = Task("waves", waves, lambda: mlp(8, 1), F.mse_loss)
SHAPES = Task("shapes", shapes, convolutions, entropy, lr=0.02, **SGD)  # type: ignore[arg-type]
WORDS = Task("words", words, Letters, entropy, torch.optim.AdamW, lr=3e-3)
CODES = Task("codes", codes, bottleneck, F.mse_loss, lr=2e-3)
COUNTS = Task("counts", counts, lambda: mlp(16, 1, 2), nn.PoissonNLLLoss())
DEV, SCORE = (TEACHER, WAVES, SHAPES, CODES), (COUNTS, TEACHER, WAVES, WORDS)


# -- faults -----------------------------------------------------------------------------------------


def dead(share: float) -> Callable[[nn.Module], None]:
    """Biases so low that a layer's units never fire."""

    def spoil(network: nn.Module) -> None:
        layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)]
        bias = layers[-2].bias
        with torch.no_grad():
            bias[: math.ceil(share * len(bias))] = -100.0

    return spoil


def outliers(every: int, factor: float) -> Callable[[Tensor, int], Tensor]:
    """Now and then a batch whose inputs are too large."""
    return lambda x, step: x * factor if step % every == every // 2 and x.is_floating_point() else x


def not_a_number(after: int) -> Callable[[Tensor, int], Tensor]:
    return lambda x, step: x * math.nan if step > after and x.is_floating_point() else x


def by_class(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    order = y.reshape(len(y), -1)[:, 0].argsort()
    return x[order], y[order]


def random_labels(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    chosen = torch.rand(len(y), generator=torch.Generator().manual_seed(5)) < 0.4
    shuffled = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(6))]
    return x, torch.where(chosen.reshape(-1, *[1] * (y.ndim - 1)), shuffled, y)


def deep(task: Task, kind: type[nn.Module]) -> Callable[[], nn.Module]:
    x, y = task.data(64)
    outputs = int(y.max()) + 1 if not y.is_floating_point() else y.shape[1]  # classes, or numbers
    return lambda: nn.Sequential(nn.Flatten(), mlp(x[0].numel(), outputs, 8, kind))


def faults_of(task: Task, is_dev: bool) -> Iterator[tuple[str, tuple[str, ...], Task]]:
    """Name, rules meant for it, and the program; magnitudes differ between development and score."""
    for factor in (100,) if is_dev else (50, 200):
        yield f"learning rate x{factor}", LOWER, replace(task, lr=task.lr * factor)
    for factor in (1_000,) if is_dev else (500, 3_000):
        yield f"learning rate /{factor}", ("updates_too_small",), replace(task, lr=task.lr / factor)
    share = 1.0 if is_dev else 0.8
    yield f"{share:.0%} dead ReLUs", ("dead_units",), replace(task, spoil=dead(share))
    num = 400 if is_dev else 250
    memorised = replace(task, num_examples=num, arrange=random_labels, lr=task.lr * 2)
    yield f"labels of {num} examples memorised", ("overfitting",), memorised
    yield "sorted by class, not shuffled", ("not_shuffled",), replace(task, shuffle=False, arrange=by_class)
    clip = 1e-3 if is_dev else 5e-3
    yield f"clipped at {clip:g}", ("mostly_clipped", "updates_too_small"), replace(task, clip=clip)
    if task is not WORDS:  # letters are not scaled, and a deep net of them is another task
        every, factor = (13, 100.0) if is_dev else (17, 50.0)
        yield f"inputs x{factor:g} each {every}", TAILS, replace(task, break_batch=outliers(every, factor))
        after = 700 if is_dev else 500
        yield f"NaN after {after}", ("not_finite",), replace(task, break_batch=not_a_number(after))
        kind: type[nn.Module] = nn.Sigmoid
        yield "eight sigmoid layers", ("gradients_vanish",), replace(task, network=deep(task, kind))


def healthy(task: Task, is_dev: bool) -> Iterator[tuple[str, tuple[str, ...], Task]]:
    """As it is, and with what people do to it."""
    yield "healthy", (), task
    yield "healthy, half the rate", (), replace(task, lr=task.lr / 2)
    cosine = lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, NUM_STEPS)  # noqa: E731
    yield "healthy, cosine", (), replace(task, schedule=cosine)
    yield "healthy, clipped", (), replace(task, clip=1.0)
    if not is_dev:
        yield "healthy, large batches", (), replace(task, batch_size=128)
        yield "healthy, smooth units", (), replace(task, network=_smooth(task))
        yield "healthy, small batches", (), replace(task, batch_size=16)


def _smooth(task: Task) -> Callable[[], nn.Module]:
    return {
        "teacher": lambda: mlp(20, 5, 3, nn.Tanh),
        "waves": lambda: mlp(8, 1, 3, nn.Tanh),
        "shapes": lambda: convolutions(nn.GELU),
        "words": lambda: Letters(nn.GELU),
        "codes": lambda: bottleneck(nn.SiLU),
        "counts": lambda: mlp(16, 1, 2, nn.Tanh),
    }[task.name]


# -- runs -------------------------------------------------------------------------------------------


def play(task: Task, seed: int, num_steps: int = NUM_STEPS) -> tuple[list[str], list[str]]:
    """Rules of the advice that stands at the end, most urgent first; and of all that was more than low."""
    seed_everything(seed, verbose=False)
    x, y = task.arrange(*task.data(task.num_examples))
    train = DataLoader(TensorDataset(x, y), task.batch_size, shuffle=task.shuffle)
    held_out = TensorDataset(*(part[-500:] for part in task.data(9_000)))
    advisor = TuningAdvisor(without=["data_starves", "memory_rises"])
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            max_steps=num_steps,
            callbacks=[advisor],
            val_check_interval=75,
            check_val_every_n_epoch=None,
            gradient_clip_val=task.clip,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=folder,
        )
        trainer.fit(Program(task, task.lr), train, DataLoader(held_out, 250))
        path = Path(folder) / "monitor" / "advice.jsonl"
        lines = map(json.loads, path.read_text().splitlines() if path.exists() else [])
        told = [line["advice"] for line in lines if line["event"] == "advised"]
    loud = list(dict.fromkeys(advice["rule"] for advice in told if advice["priority"] != "low"))
    return [advice.rule for advice in advisor.advice], loud


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=["dev", "score"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="cases whose name begins so")
    parser.add_argument("--quick", action="store_true", help="one seed, one task, short: for the tests")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore")
    is_dev = given.part == "dev"
    seeds = range(given.seeds) if is_dev else range(2_000, 2_000 + given.seeds)
    tasks = DEV if is_dev else SCORE
    if given.quick:
        tasks, seeds = tasks[:1], seeds[:1]
    rows = []
    for task in tasks:
        for name, meant, changed in (*healthy(task, is_dev), *faults_of(task, is_dev)):
            if not name.startswith(given.only):
                continue
            for seed in seeds:
                standing, loud = play(changed, seed, 200 if given.quick else NUM_STEPS)
                is_right = bool(set(standing[:3]) & set(meant)) if meant else not loud
                row = {"task": task.name, "case": name, "seed": seed, "right": is_right}
                rows.append({**row, "meant": list(meant), "standing": standing, "loud": loud})
                print(
                    f"{'ok  ' if is_right else 'MISS'} {task.name} {name} {seed}: {standing} {loud}",
                    flush=True,
                )
    result = summary(rows)
    print(json.dumps({name: result[name] for name in ("faults named", "false alarms")}))
    print(matrix(rows))
    stored = json.loads(given.out.read_text()) if given.out.exists() else {}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent)
    stored[given.part] = {
        "command": " ".join(sys.argv),
        "commit": commit.stdout.strip(),
        **result,
        "rows": rows,
    }
    given.out.write_text(json.dumps(stored, indent=1) + "\n")


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares with their Wilson intervals at 95 %."""
    faulty, sound = ([r for r in rows if bool(r["meant"]) is wanted] for wanted in (True, False))
    return {
        "faults named": share(sum(r["right"] for r in faulty), len(faulty)),
        "false alarms": share(sum(not r["right"] for r in sound), len(sound)),
    }


def share(count: int, total: int) -> dict[str, float]:
    if not total:
        return {"count": 0, "of": 0}
    p, z = count / total, 1.96
    middle, half = p + z * z / (2 * total), z * math.sqrt(p * (1 - p) / total + z * z / (4 * total**2))
    low, high = ((middle + sign * half) / (1 + z * z / total) for sign in (-1, 1))
    return {"count": count, "of": total, "share": round(p, 3), "low": round(low, 3), "high": round(high, 3)}


def matrix(rows: list[dict[str, Any]]) -> str:
    """Cases by the advice that stood first, as a Markdown table."""
    first = [row["standing"][0] if row["standing"] else "nothing" for row in rows]
    columns, cases = sorted(set(first)), list(dict.fromkeys(row["case"] for row in rows))
    lines = ["| case | right | " + " | ".join(columns) + " |", "|-" * (len(columns) + 2) + "|"]
    for case in cases:
        mine = [(row, rule) for row, rule in zip(rows, first, strict=True) if row["case"] == case]
        counts = [sum(rule == column for _, rule in mine) for column in columns]
        right = f"{sum(row['right'] for row, _ in mine)}/{len(mine)}"
        lines.append(f"| {case} | {right} | " + " | ".join(str(n or "") for n in counts) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
