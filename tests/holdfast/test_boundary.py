"""BoundaryCheckpoint on a plain module: nothing here knows of reinforcement learning."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from holdfast import BoundaryCheckpoint
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader, TensorDataset


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Line(LightningModule):
    """Fits a line; counts its finished steps in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.long))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return (self.layer(batch[0]) - 2 * batch[0]).square().mean()

    def on_train_batch_end(self, *_: Any) -> None:
        self.num_steps += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(torch.linspace(-1, 1, 40)[:, None]), batch_size=2)


class Tick(Callback):
    """One second per step."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, *_: Any) -> None:
        self.clock.now += 1


def make_trainer(folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    fixed = {"max_epochs": 1, "accelerator": "cpu", "default_root_dir": folder}
    return Trainer(**{**quiet, **fixed, **settings}, callbacks=list(callbacks))


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def test_file_is_saved_whenever_the_time_has_passed(tmp_path: Path) -> None:
    clock = Clock()
    boundary = BoundaryCheckpoint(every_seconds=5, clock=clock)
    make_trainer(tmp_path, Tick(clock), boundary).fit(Line())
    assert boundary.path == tmp_path / "checkpoints" / "last.ckpt"
    assert boundary.num_saves == 3  # before steps 6, 11 and 16 of 20


def test_saved_state_holds_the_effect_of_every_hook_of_the_step_before(tmp_path: Path) -> None:
    clock = Clock()
    boundary = BoundaryCheckpoint(tmp_path, every_seconds=7, clock=clock)
    make_trainer(tmp_path, Tick(clock), boundary).fit(Line())
    saved = load(tmp_path / "last.ckpt")
    progress = saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
    assert saved["global_step"] == 14
    assert saved["state_dict"]["num_steps"] == progress["completed"] == 14


def test_slow_saves_become_rare_enough_to_keep_their_share(tmp_path: Path) -> None:
    clock = Clock()

    class Slow(BoundaryCheckpoint):
        def _replace(self, trainer: Trainer) -> None:
            super()._replace(trainer)
            clock.now += 2

    boundary = Slow(tmp_path, every_seconds=1, max_time_fraction=0.2, clock=clock)
    make_trainer(tmp_path, Tick(clock), boundary).fit(Line())
    assert boundary.num_saves == 2  # before step 2 and ten seconds later


def test_run_goes_on_from_the_file(tmp_path: Path) -> None:
    straight = Line()
    start = {name: value.clone() for name, value in straight.state_dict().items()}
    make_trainer(tmp_path, enable_checkpointing=False, max_epochs=-1, max_steps=20).fit(straight)

    first, second = Line(), Line()
    first.load_state_dict(start)
    make_trainer(tmp_path, BoundaryCheckpoint(tmp_path), max_epochs=-1, max_steps=8).fit(first)
    with pytest.warns(UserWarning, match="dataloader is not resumable"):
        make_trainer(tmp_path, BoundaryCheckpoint(tmp_path), max_epochs=-1, max_steps=20).fit(
            second, ckpt_path=tmp_path / "last.ckpt"
        )
    assert second.num_steps == 19  # the module's own hook of the last step came after its save
    assert load(tmp_path / "last.ckpt")["global_step"] == 20


@pytest.mark.parametrize("reason", ["max_steps", "should_stop", "is_finished"])
def test_end_is_saved_while_the_epoch_is_open(tmp_path: Path, reason: str) -> None:
    class Ending(Line):
        @property
        def is_finished(self) -> bool:
            return reason == "is_finished" and self.trainer.global_step >= 6

        def on_train_batch_start(self, *_: Any) -> int | None:
            return -1 if self.is_finished else None

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            trainer.should_stop = reason == "should_stop" and trainer.global_step >= 6

    settings = {"max_steps": 6} if reason == "max_steps" else {}
    make_trainer(tmp_path, Stop(), BoundaryCheckpoint(tmp_path), **settings).fit(Ending())
    saved = load(tmp_path / "last.ckpt")
    assert saved["global_step"] == 6
    assert saved["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"] == 0


def test_failing_save_warns_keeps_the_old_file_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "last.ckpt").write_bytes(b"old")

    def fail(self: Trainer, path: Path, **_: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Trainer, "save_checkpoint", fail)
    trainer = make_trainer(tmp_path, BoundaryCheckpoint(tmp_path), max_steps=4)
    with pytest.warns(UserWarning, match="No space left on device"):
        trainer.fit(Line())
    assert trainer.global_step == 4
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert (tmp_path / "last.ckpt").read_bytes() == b"old"


def test_requested_stop_saves_at_the_boundary_and_then_interrupts(tmp_path: Path) -> None:
    boundary = BoundaryCheckpoint(tmp_path)

    class Request(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 3:
                boundary.request_stop()

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit):
        make_trainer(tmp_path, Request(), boundary).fit(Line())
    signal.signal(signal.SIGINT, before)
    assert load(tmp_path / "last.ckpt")["state_dict"]["num_steps"] == 3


def test_killed_while_saving_leaves_the_old_file_whole(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[2])
        from test_boundary import BoundaryCheckpoint, Line, Trainer, make_trainer

        save = Trainer.save_checkpoint
        def save_then_die(self, path, **kwargs):
            save(self, path, **kwargs)
            if self.global_step >= 5:
                os.truncate(path, 100)
                os.kill(os.getpid(), signal.SIGKILL)
        Trainer.save_checkpoint = save_then_die
        folder = Path(sys.argv[1])
        make_trainer(folder, BoundaryCheckpoint(folder, every_seconds=0, max_time_fraction=1.0)).fit(Line())
        """
    )
    arguments = [sys.executable, "-c", script, str(tmp_path), os.path.dirname(__file__)]
    done = subprocess.run(arguments, capture_output=True, timeout=100)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert load(tmp_path / "last.ckpt")["global_step"] < 15


def test_nothing_is_written_in_a_fast_dev_run(tmp_path: Path) -> None:
    make_trainer(tmp_path, BoundaryCheckpoint(tmp_path), fast_dev_run=2).fit(Line())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("settings", [{"every_seconds": -1}, {"max_time_fraction": 0}])
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        BoundaryCheckpoint(**settings)
