"""ResourceMonitor in plain Lightning and without: what is logged, written, said, given back."""

from __future__ import annotations

import logging
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from holdfast import ResourceMonitor
from holdfast.resources.alerts import Threshold
from holdfast.resources.journal import read_lines
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import Logger
from torch.utils.data import DataLoader, Dataset, TensorDataset


class Line(LightningModule):
    """Fits a line in 20 steps."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x = batch[0] if isinstance(batch, list) else batch
        return (self.layer(x) - 2 * x).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.layer(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(torch.linspace(-1, 1, 40)[:, None]), batch_size=2)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class Recording(Logger):
    name, version = "recording", 0

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[int | None, dict[str, float]]] = []
        self.threads: set[str] = set()

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if any(key.startswith("resource/") for key in metrics):
            self.entries.append((step, metrics))
            self.threads.add(threading.current_thread().name)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class Figures:
    """A reader of what the test says."""

    every_s = 1e-3

    def __init__(self, **figures: float) -> None:
        self.figures = figures

    def read(self, now: float) -> dict[str, float]:
        return self.figures


class AwaitSample(Callback):
    """Lets the thread have its first turn before training goes on."""

    def __init__(self, monitor: ResourceMonitor) -> None:
        self.monitor = monitor

    def on_train_start(self, *_: Any) -> None:
        wait_for(lambda: self.monitor.stats)


def wait_for(happened: Any) -> None:
    end = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


def make_trainer(folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    quiet = {
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    defaults = {"logger": False, "enable_checkpointing": False, "max_epochs": 1, "log_every_n_steps": 1}
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**quiet, **defaults, **settings})


def watchers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "holdfast-resources"]


def test_any_logger_gets_the_figures_from_the_main_thread(tmp_path: Path) -> None:
    monitor, logger = ResourceMonitor(interval_s=0.01, log_every_seconds=1e-3), Recording()
    monitor._look_at = float("-inf")
    trainer = make_trainer(tmp_path, AwaitSample(monitor), monitor, logger=logger)
    trainer.fit(Line())
    assert logger.threads == {"MainThread"}
    figures = logger.entries[-1][1]
    assert figures["resource/rss_bytes"] > 0
    assert 0 < figures["resource/memory_share"] < 1
    assert figures["resource/cpu_cores"] >= 0.01
    assert all(isinstance(value, float | int) for value in figures.values())


@pytest.mark.parametrize(("attribute", "expected"), [(None, 0), ("log_step", 1234)])
def test_the_axis_is_the_modules_own_where_it_has_one(tmp_path: Path, attribute, expected) -> None:
    module, monitor, logger = Line(), ResourceMonitor(interval_s=0.01), Recording()
    if attribute:
        setattr(module, attribute, expected)
    make_trainer(tmp_path, AwaitSample(monitor), monitor, logger=logger).fit(module)
    assert logger.entries[0][0] == expected


def test_loggers_that_write_files_take_them(tmp_path: Path) -> None:
    monitor, logger = ResourceMonitor(interval_s=0.01), CSVLogger(tmp_path)
    make_trainer(tmp_path, AwaitSample(monitor), monitor, logger=logger).fit(Line())
    assert "resource/rss_bytes" in Path(logger.log_dir, "metrics.csv").read_text()
    assert read_lines(Path(logger.log_dir, "monitor", "resources.jsonl"))[0]["resource/rss_bytes"] > 0


def test_lines_are_in_the_runs_folder(tmp_path: Path) -> None:
    monitor = ResourceMonitor(interval_s=0.01)
    make_trainer(tmp_path, AwaitSample(monitor), monitor).fit(Line())
    line = read_lines(tmp_path / "monitor" / "resources.jsonl")[0]
    assert line["time"] == pytest.approx(time.time(), abs=60)
    assert line["step"] == 0
    assert line["resource/disk_free_bytes"] > 0


def test_a_trial_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monitor = ResourceMonitor(interval_s=0.01)
    make_trainer(tmp_path, AwaitSample(monitor), monitor, fast_dev_run=True).fit(Line())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("entry", ["fit", "validate", "test", "predict"])
def test_the_thread_lives_as_long_as_the_run(tmp_path: Path, entry: str) -> None:
    seen: list[list[str]] = []

    class Look(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            seen.append(watchers())

        on_validation_batch_end = on_test_batch_end = on_predict_batch_end = on_train_batch_end

    trainer = make_trainer(tmp_path, ResourceMonitor(), Look())
    getattr(trainer, entry)(Line())
    assert all(names == ["holdfast-resources"] for names in seen)
    assert seen
    assert watchers() == []


def test_an_exception_ends_the_thread_too(tmp_path: Path) -> None:
    class Fails(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        make_trainer(tmp_path, ResourceMonitor(), Fails()).fit(Line())
    assert watchers() == []


def test_training_computes_the_same_bits_with_it(tmp_path: Path) -> None:
    weights = []
    for callbacks in ([], [ResourceMonitor(interval_s=0.001, log_every_seconds=1e-3)]):
        torch.manual_seed(5)
        module = Line()
        make_trainer(tmp_path, *callbacks).fit(module)
        weights.append((module.layer.weight.item(), torch.rand(1).item()))
    assert weights[0] == weights[1]


def test_a_step_where_nothing_is_due_costs_no_hook() -> None:
    assert "on_train_batch_end" in ResourceMonitor().idle_hooks()


# -- memory given back -------------------------------------------------------------------------------


class Holder:
    def __init__(self) -> None:
        self.released_in: list[str] = []

    def release_memory(self) -> int:
        self.released_in.append(threading.current_thread().name)
        return 1000


class Held(Line, Holder):
    def __init__(self) -> None:
        Line.__init__(self)
        self.released_in = []


class Rows(Dataset, Holder):
    def __init__(self) -> None:
        Holder.__init__(self)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.ones(1)

    def __len__(self) -> int:
        return 40


class Data(LightningDataModule, Holder):
    def __init__(self) -> None:
        LightningDataModule.__init__(self)
        self.released_in = []
        self.rows = Rows()

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.rows, batch_size=2)

    val_dataloader = train_dataloader


class Keeper(Callback, Holder):
    def __init__(self) -> None:
        self.released_in = []


class AwaitAlarm(Callback):
    """Lets the thread notice before training goes on."""

    def __init__(self, monitor: ResourceMonitor) -> None:
        self.monitor = monitor

    def on_train_start(self, *_: Any) -> None:
        wait_for(lambda: self.monitor.alerts)


CRITICAL = Threshold("memory", "memory_free_share", 0.1, 0.2, 0.0, "{memory_free_share} left", "take less")


def crowded(**settings: Any) -> ResourceMonitor:
    figures = Figures(memory_free_share=0.05)
    return ResourceMonitor(interval_s=0.002, readers=[figures], thresholds=[CRITICAL], **settings)


def test_everybody_who_can_is_asked_at_a_boundary_before_memory_is_gone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monitor, keeper, data, module, other = crowded(), Keeper(), Data(), Held(), Holder()
    monitor.register(other)
    make_trainer(tmp_path, AwaitAlarm(monitor), keeper, monitor).fit(module, datamodule=data)
    for holder in (keeper, data, data.rows, module, other):
        assert holder.released_in == ["MainThread"], holder
    raised, released = read_lines(tmp_path / "monitor" / "alerts.jsonl")
    assert (raised["kind"], raised["state"]) == ("memory", "raised")
    assert (released["kind"], released["state"]) == ("memory", "released")
    assert released["figures"]["Rows"] == 1000
    assert {event["state"] for event in monitor.events} == {"raised", "released"}
    assert "5% left; take less" in caplog.text
    assert "Holder, process" not in caplog.text


def test_who_does_not_want_that_is_not_asked(tmp_path: Path) -> None:
    monitor, module = crowded(releases=False), Held()
    make_trainer(tmp_path, AwaitAlarm(monitor), monitor).fit(module)
    assert module.released_in == []
    assert monitor.release_memory() >= 0
    assert module.released_in == ["MainThread"]


def test_a_clean_up_by_hand_gives_back_what_is_held() -> None:
    class Big:
        def __init__(self) -> None:
            self.held: Any = torch.ones(64 * 2**20, dtype=torch.uint8)

        def release_memory(self) -> int:
            num_bytes, self.held = self.held.nbytes, None
            return num_bytes

    monitor, big = ResourceMonitor(), Big()
    monitor.register(big)
    assert monitor.registered == [big]
    assert monitor.release_memory() > 32 * 2**20


# -- without a trainer -------------------------------------------------------------------------------


def test_it_works_without_a_trainer(tmp_path: Path) -> None:
    with ResourceMonitor(interval_s=0.005, dirpath=tmp_path / "monitor") as monitor:
        wait_for(lambda: len(monitor.history.series("rss_bytes").times) > 5)
        assert monitor.stats["resource/rss_bytes"] > 0
        assert monitor.alerts == []
        assert {"memory", "disk"} <= monitor.forecast().keys()
    assert watchers() == []
    assert len(read_lines(tmp_path / "monitor" / "resources.jsonl")) == 1
    assert monitor.stats["resource/rss_bytes"] > 0


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monitor = ResourceMonitor(interval_s=0.005)
    monitor.start()
    wait_for(lambda: monitor.stats)
    monitor.stop()
    assert list(tmp_path.iterdir()) == []


def test_a_platform_without_proc_has_what_psutil_knows(tmp_path: Path) -> None:
    with ResourceMonitor(interval_s=0.005, root=tmp_path) as monitor:
        wait_for(lambda: "resource/threads" in monitor.stats)
        stats = monitor.stats
    assert stats["resource/memory_limit_bytes"] > 0
    assert not [name for name in stats if "pressure" in name or "quota" in name]


def test_what_is_asked_before_the_start_is_refused_with_what_to_do() -> None:
    monitor = ResourceMonitor()
    assert monitor.stats == {}
    with pytest.raises(RuntimeError, match=r"call start\(\)"):
        monitor.forecast()


def test_an_interval_must_be_positive() -> None:
    with pytest.raises(ValueError, match="log_every_seconds must be positive, got 0"):
        ResourceMonitor(log_every_seconds=0)


def test_a_network_file_system_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text("22 1 254:0 / / rw - nfs4 server:/runs rw\n")
    trainer = make_trainer(tmp_path, ResourceMonitor(root=tmp_path, interval_s=0.01), max_epochs=3)
    trainer.fit(Line())
    assert caplog.text.count("network file system (nfs4)") == 1


# -- the end of the run ------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [True, False])
def test_progress_is_the_modules_own_or_that_of_the_steps(tmp_path: Path, own: bool) -> None:
    told: list[float | None] = []

    class Look(ResourceMonitor):
        def _progress_of(self, trainer: Trainer, module: LightningModule) -> Any:
            found = super()._progress_of(trainer, module)
            told.append(found.share)
            return found

    module = Line()
    if own:
        module.progress_fraction = 0.25
    clock = iter(range(10**6))
    monitor = Look(readers=[Figures(a=1.0)], interval_s=1000, clock=lambda: float(next(clock)))
    make_trainer(tmp_path, monitor).fit(module)
    shares = [0.25] if own else [step / 20 for step in range(21)]
    assert sorted(set(told)) == shares


def test_without_an_end_none_is_foretold(tmp_path: Path) -> None:
    monitor = ResourceMonitor(readers=[Figures(a=1.0)], interval_s=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_trainer(tmp_path, AwaitSample(monitor), monitor, max_epochs=-1, max_time={"seconds": 1}).fit(
            Line()
        )
    assert "end" not in monitor.forecast()
