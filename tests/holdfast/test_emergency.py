"""EmergencyCheckpoint in plain Lightning: what is saved, what it ends with, what it never hides."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from holdfast import emergency
from holdfast.checkpoint import VerifiedCheckpoint
from holdfast.emergency import EmergencyCheckpoint, NonFiniteState
from holdfast.storage.generations import Generation, GenerationFolder
from holdfast.triggers import Context, Memory, Trigger
from holdfast.triggers.signals import SAVING, STOPPING
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader, TensorDataset


class Line(LightningModule):
    """Fits a line in 20 steps."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return (self.layer(batch[0]) - 2 * batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(torch.linspace(-1, 1, 40)[:, None]), batch_size=2)


class At(Callback):
    """Does something at the end of a step."""

    def __init__(self, step: int, do: Any) -> None:
        self.step, self.do = step, do

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.do()


class Alarm(Trigger):
    """Fires when told to."""

    kind = "alarm"


@pytest.fixture(autouse=True)
def _signals(monkeypatch: pytest.MonkeyPatch):
    """As in a terminal, and given back whatever lingers."""
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    for name in (*STOPPING, *SAVING):
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    yield
    for number, handler in before.items():
        if signal.getsignal(number) != handler and handler is not None:
            signal.signal(number, handler)


def send(name: str) -> None:
    os.kill(os.getpid(), getattr(signal, name))


def make_trainer(folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    fixed = {"max_epochs": 1, "accelerator": "cpu", "default_root_dir": folder}
    return Trainer(**{**quiet, "enable_checkpointing": False, **fixed, **settings}, callbacks=list(callbacks))


def make(folder: Path, **settings: Any) -> EmergencyCheckpoint:
    return EmergencyCheckpoint(folder / "saved", **{"reserve": False, **settings})


def saved(folder: Path, kind: str | None = None) -> list[Generation]:
    """Generations that are whole, the newest first."""
    found = GenerationFolder(folder / "saved")
    good = {generation.name for generation in found.audit().good}
    return [g for g in found.generations() if g.name in good and kind in (None, g.kind)]


@pytest.mark.parametrize("name", STOPPING)
def test_a_signal_saves_at_the_boundary_and_ends_with_its_exit_code(tmp_path: Path, name: str) -> None:
    trainer = make_trainer(tmp_path, At(7, lambda: send(name)), make(tmp_path))
    with pytest.raises(SystemExit) as ended:
        trainer.fit(Line())
    assert ended.value.code == 128 + getattr(signal, name)
    (generation,) = saved(tmp_path)
    assert (generation.kind, generation.counters["global_step"]) == ("emergency", 7)
    assert generation.is_resumable


def test_the_run_goes_on_from_there_as_if_nothing_had_happened(tmp_path: Path) -> None:
    torch.manual_seed(1)
    straight = Line()
    stopped, resumed = Line(), Line()
    stopped.load_state_dict(straight.state_dict())
    make_trainer(tmp_path / "a", make(tmp_path / "a")).fit(straight)
    with pytest.raises(SystemExit):
        make_trainer(tmp_path, At(7, lambda: send("SIGTERM")), make(tmp_path)).fit(stopped)
    make_trainer(tmp_path, make(tmp_path)).fit(resumed, ckpt_path=saved(tmp_path)[0].checkpoint)
    assert torch.equal(straight.layer.weight, resumed.layer.weight)
    assert torch.equal(straight.layer.bias, resumed.layer.bias)


def test_a_save_signal_saves_and_the_run_goes_on(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, At(7, lambda: send("SIGUSR2")), make(tmp_path))
    trainer.fit(Line())
    assert trainer.global_step == 20
    assert [g.counters["global_step"] for g in saved(tmp_path)] == [7]


def test_a_second_signal_does_not_change_what_the_first_began(tmp_path: Path) -> None:
    def twice() -> None:
        send("SIGHUP")
        send("SIGTERM")

    with pytest.raises(SystemExit) as ended:
        make_trainer(tmp_path, At(7, twice), make(tmp_path)).fit(Line())
    assert ended.value.code == 129
    assert len(saved(tmp_path)) == 1


def test_signals_are_given_back_after_a_run_that_ends_by_itself(tmp_path: Path) -> None:
    make_trainer(tmp_path, make(tmp_path)).fit(Line())
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


def test_saves_go_beside_those_of_a_verified_checkpoint(tmp_path: Path) -> None:
    beside = VerifiedCheckpoint(tmp_path / "saved", every={"steps": 5})
    callbacks = [EmergencyCheckpoint(reserve=False), At(7, lambda: send("SIGUSR2")), beside]
    trainer = make_trainer(tmp_path, *callbacks, enable_checkpointing=True)
    trainer.fit(Line())
    kinds = [(g.kind, g.counters["global_step"]) for g in reversed(saved(tmp_path))]
    assert ("emergency", 7) in kinds
    assert kinds[-1] == ("regular", 20)


def test_without_a_folder_it_is_where_modelcheckpoint_would_save(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, EmergencyCheckpoint(reserve=False), At(3, lambda: send("SIGUSR2")))
    trainer.fit(Line())
    assert GenerationFolder(tmp_path / "checkpoints").generations()


def test_last_is_another_name_of_the_newest_save(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        make_trainer(tmp_path, At(7, lambda: send("SIGTERM")), make(tmp_path)).fit(Line())
    assert os.path.samefile(tmp_path / "saved" / "last.ckpt", saved(tmp_path)[0].checkpoint)


class Watched(Line):
    """Validates in five batches and notes it; a signal comes in the second."""

    def __init__(self, name: str, played: list[int]) -> None:
        super().__init__()
        self.name = name
        self.note = lambda: played.append(self.trainer.global_step) or len(played)

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        if self.note() == 2:
            send(self.name)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(torch.zeros(5, 1)))


def test_a_signal_to_stop_gives_up_a_validation_and_it_is_still_due(tmp_path: Path) -> None:
    settings = {"val_check_interval": 10, "num_sanity_val_steps": 0}
    played: list[int] = []
    with pytest.raises(SystemExit):
        make_trainer(tmp_path, make(tmp_path), **settings).fit(Watched("SIGTERM", played))
    assert played == [10, 10]
    assert saved(tmp_path)[0].counters["global_step"] == 10
    resumed = Watched("SIGTERM", played)
    make_trainer(tmp_path, make(tmp_path), **settings).fit(resumed, ckpt_path=saved(tmp_path)[0].checkpoint)
    assert played == [10, 10] + 5 * [10] + 5 * [20]


def test_a_signal_to_save_waits_for_the_validation(tmp_path: Path) -> None:
    played: list[int] = []
    module = Watched("SIGUSR2", played)
    make_trainer(tmp_path, make(tmp_path), val_check_interval=10, num_sanity_val_steps=0).fit(module)
    assert played == 5 * [10] + 5 * [20]
    assert saved(tmp_path)[0].counters["global_step"] == 10


class Spoilsport(Callback):
    """Raises wherever it can without ending training."""

    def on_exception(self, *_: Any) -> None:
        raise RuntimeError("spoiled on_exception")

    def on_save_checkpoint(self, *_: Any) -> None:
        raise RuntimeError("spoiled on_save_checkpoint")


@pytest.mark.filterwarnings(
    "ignore:.*kept for a post-mortem", "ignore:.*was saved. without", "ignore:.*on_exception failed"
)
def test_a_misbehaving_callback_prevents_neither_the_save_nor_the_exit_code(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, Spoilsport(), At(7, lambda: send("SIGTERM")), make(tmp_path))
    with pytest.raises(SystemExit) as ended:
        trainer.fit(Line())
    assert ended.value.code == 143
    assert len(saved(tmp_path, "emergency")) == 1


class Broken(Line):
    """Raises in the middle of a step."""

    def __init__(self, at: int, error: BaseException) -> None:
        super().__init__()
        self.at, self.error = at, error

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        if self.trainer.global_step == self.at:
            raise self.error
        return super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings(
    "ignore:.*kept for a post-mortem", "ignore:.*was saved. without", "ignore:.*on_exception failed"
)
def test_an_exception_leaves_a_post_mortem_that_nothing_resumes_from(tmp_path: Path, capfd: Any) -> None:
    trainer = make_trainer(tmp_path, Spoilsport(), make(tmp_path, every={"steps": 5}, keep=2))
    with pytest.raises(ZeroDivisionError, match="in a step"):
        trainer.fit(Broken(12, ZeroDivisionError("in a step")))
    (post_mortem,) = saved(tmp_path, "post-mortem")
    assert not post_mortem.is_resumable
    assert "in training_step" in post_mortem.manifest["exception"]
    newest = GenerationFolder(tmp_path / "saved").newest_valid(where=lambda g: g.is_resumable)
    assert newest.counters["global_step"] == 10
    assert [g.counters["global_step"] for g in saved(tmp_path, "emergency")] == [10, 5]


def test_what_resumes_and_what_is_lost_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    callback = make(tmp_path, every={"steps": 5})
    with pytest.raises(ZeroDivisionError), caplog.at_level("INFO"):
        make_trainer(tmp_path, callback).fit(Broken(12, ZeroDivisionError()))
    name = saved(tmp_path, "emergency")[0].checkpoint
    assert f"step 12: ZeroDivisionError ended the run; {name} resumes, 2 steps are lost" in caplog.text


def test_an_interruption_that_no_handler_saw_leaves_no_post_mortem(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        make_trainer(tmp_path, make(tmp_path)).fit(Broken(3, KeyboardInterrupt()))
    assert saved(tmp_path) == []


def test_an_exception_that_came_of_a_signal_ends_with_the_signals_exit_code(tmp_path: Path) -> None:
    """A loader's worker that got the same signal, say."""

    class Torn(Broken):
        def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
            if self.trainer.global_step == self.at:
                send("SIGTERM")
            return super().training_step(batch, batch_idx)

    with pytest.raises(SystemExit) as ended:
        make_trainer(tmp_path, make(tmp_path)).fit(Torn(3, RuntimeError("DataLoader worker is killed")))
    assert ended.value.code == 143
    assert isinstance(ended.value.__cause__, RuntimeError)


def test_a_failing_save_ends_the_run_all_the_same_and_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(emergency, "save_generation", fail)
    callback = make(tmp_path)
    with pytest.warns(UserWarning, match="No space left"), pytest.raises(SystemExit) as ended:
        make_trainer(tmp_path, At(7, lambda: send("SIGTERM")), callback).fit(Line())
    assert ended.value.code == 143
    assert "No space left" in callback.history[-1]["error"]
    with pytest.warns(UserWarning, match="No space left"), pytest.raises(ZeroDivisionError):
        make_trainer(tmp_path, make(tmp_path)).fit(Broken(3, ZeroDivisionError()))


class Sick(Line):
    """Turns not finite at a step: its loss, its gradients, its weights, or what it declares."""

    def __init__(self, where: str, at: int = 7) -> None:
        super().__init__()
        self.where, self.at = where, at

    @property
    def is_sick(self) -> bool:
        return self.trainer.global_step >= self.at

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if self.where == "loss" and self.is_sick else loss

    def on_after_backward(self) -> None:
        if self.where == "gradients" and self.is_sick:
            self.layer.weight.grad.fill_(float("inf"))

    def on_train_batch_end(self, *_: Any) -> None:
        if self.where == "weights" and self.is_sick:
            with torch.no_grad():
                self.layer.weight.fill_(float("nan"))

    def non_finite(self) -> str | None:
        return "2 priorities" if self.where == "declared" and self.is_sick else None


NOT_FINITE = pytest.mark.filterwarnings("ignore:.*kept for a post-mortem", "ignore:.*was saved. without")


@NOT_FINITE
@pytest.mark.parametrize("where", ["loss", "gradients", "weights", "declared"])
def test_a_state_that_is_not_finite_is_kept_apart_and_the_last_good_one_stays_the_newest(
    tmp_path: Path, where: str
) -> None:
    callback = make(tmp_path, every={"steps": 2}, check_every_n_steps=1)
    with pytest.raises(NonFiniteState, match="kept for a post-mortem") as ended:
        make_trainer(tmp_path, callback).fit(Sick(where))
    assert "resumes, " in str(ended.value)
    (post_mortem,) = saved(tmp_path, "post-mortem")
    assert not post_mortem.is_resumable
    newest = GenerationFolder(tmp_path / "saved").newest_valid(where=lambda g: g.is_resumable)
    assert newest.counters["global_step"] == 6
    weights = torch.load(newest.checkpoint, weights_only=True)["state_dict"].values()
    assert all(value.isfinite().all() for value in weights)


@NOT_FINITE
def test_looking_for_nan_costs_a_look_only_every_so_many_steps(tmp_path: Path) -> None:
    callback = make(tmp_path, check_every_n_steps=5)
    with pytest.raises(NonFiniteState):
        make_trainer(tmp_path, callback).fit(Sick("gradients", at=6))
    assert callback.history[-1]["global_step"] == 10


def test_a_callback_that_recovers_from_nan_is_left_to_it(tmp_path: Path) -> None:
    class Recovery(Callback):
        recovers_from_non_finite = True

    trainer = make_trainer(tmp_path, Recovery(), make(tmp_path, check_every_n_steps=1))
    trainer.fit(Sick("loss"))
    assert trainer.global_step == 20


class Crowded(Memory):
    """Alarms by hand, as the real one does."""

    def poll(self) -> None:
        pass


def test_memory_is_given_back_before_the_save_and_the_run_goes_on(tmp_path: Path) -> None:
    released: list[str] = []

    class Holder(Callback):
        def release_memory(self) -> None:
            released.append("callback")
            assert saved(tmp_path) == []

    class Holding(Line):
        def release_memory(self) -> None:
            released.append("module")

    memory = Crowded()
    alarm = At(7, lambda: memory.fire("12 MiB are left", 3.0, is_stopping=False))
    trainer = make_trainer(tmp_path, Holder(), alarm, make(tmp_path, triggers=[memory]))
    trainer.fit(Holding())
    assert sorted(released) == ["callback", "module"]
    assert trainer.global_step == 20
    assert saved(tmp_path)[0].counters["global_step"] == 7


def test_memory_that_does_not_come_back_ends_the_run_as_the_kernel_would(tmp_path: Path) -> None:
    memory = Crowded()
    alarm = At(7, lambda: memory.fire("1 MiB is left"))
    with pytest.raises(SystemExit) as ended:
        make_trainer(tmp_path, alarm, make(tmp_path, triggers=[memory])).fit(Line())
    assert ended.value.code == 137


def test_the_end_of_the_time_ends_the_run_after_a_save(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        make_trainer(tmp_path, make(tmp_path, max_seconds=1e-3), max_epochs=100_000).fit(Line())
    assert ended.value.code == 124
    assert "max_seconds" in saved(tmp_path)[0].manifest["user"]["reason"]


def test_a_notice_of_preemption_ends_the_run_after_a_save(tmp_path: Path) -> None:
    (tmp_path / "notice").write_text("leave")
    callback = make(tmp_path, notices=[tmp_path / "notice"])
    with pytest.raises(SystemExit) as ended:
        make_trainer(tmp_path, callback, max_epochs=100_000).fit(Line())
    assert ended.value.code == 143
    assert callback.history[-1]["kind"] == "preemption"


def test_a_trigger_of_ones_own_is_asked_too(tmp_path: Path) -> None:
    alarm = Alarm()
    with pytest.raises(SystemExit) as ended:
        make_trainer(tmp_path, At(7, lambda: alarm.fire("enough")), make(tmp_path, triggers=[alarm])).fit(
            Line()
        )
    assert ended.value.code == 1


def test_the_space_set_aside_is_given_up_for_the_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback = make(tmp_path, reserve=True)
    disk, sizes = callback.triggers["disk"], []
    save = emergency.save_generation

    def look_and_save(*arguments: Any, **settings: Any) -> Generation:
        sizes.append(disk.reserved_bytes)
        return save(*arguments, **settings)

    monkeypatch.setattr(emergency, "save_generation", look_and_save)

    def fill_and_send() -> None:
        disk.poll()
        sizes.append(disk.reserved_bytes)
        send("SIGTERM")

    with pytest.raises(SystemExit):
        make_trainer(tmp_path, At(7, fill_and_send), callback).fit(Line())
    assert sizes == [disk.least_bytes, 0]


def test_periodic_points_are_kept_up_to_a_number(tmp_path: Path) -> None:
    make_trainer(tmp_path, make(tmp_path, every={"steps": 4}, keep=2)).fit(Line())
    assert [g.counters["global_step"] for g in saved(tmp_path)] == [20, 16]


def test_a_counter_of_the_module_may_be_the_period(tmp_path: Path) -> None:
    class Counting(Line):
        @property
        def episodes(self) -> int:
            return self.trainer.global_step // 6

    make_trainer(tmp_path, make(tmp_path, every={"episodes": 1}, keep=9)).fit(Counting())
    assert [g.counters["global_step"] for g in saved(tmp_path)] == [18, 12, 6]


def test_everything_it_did_is_in_its_history_and_saved_with_it(tmp_path: Path) -> None:
    callback = make(tmp_path)
    with pytest.raises(SystemExit):
        make_trainer(tmp_path, At(7, lambda: send("SIGTERM")), callback).fit(Line())
    (record,) = callback.history
    assert (record["kind"], record["message"], record["signal"]) == ("signal", "SIGTERM received", 15)
    assert (record["global_step"], record["generation"]) == (7, saved(tmp_path)[0].name)
    assert 0 < record["seconds"] <= record["seconds_since_alarm"] < record["grace_s"]
    resumed = make(tmp_path)
    make_trainer(tmp_path, resumed).fit(Line(), ckpt_path=saved(tmp_path)[0].checkpoint)
    assert resumed.history[0]["message"] == "SIGTERM received"
    assert resumed.status()["history"] == resumed.history
    assert "signal" in resumed.status()["watched"]


def test_a_run_that_is_rolled_back_still_ends(tmp_path: Path) -> None:
    """Another callback's wish at the same boundary may come first and start the loops anew."""
    callback = make(tmp_path)
    trainer = make_trainer(tmp_path, At(7, lambda: send("SIGTERM")), callback)
    with pytest.raises(SystemExit):
        trainer.fit(Line())
    callback._folder = GenerationFolder(tmp_path)
    callback.on_train_start(trainer, trainer.lightning_module)
    with pytest.raises(SystemExit):
        callback.on_boundary(trainer, trainer.lightning_module)


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A job that is to be queued again upon SIGUSR1."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    asked: list[list[str]] = []

    def ask(command: list[str]) -> str:
        asked.append(list(command))
        return ""

    return SimpleNamespace(asked=asked, ask=ask, plugin=SLURMEnvironment(auto_requeue=True))


def test_a_slurm_job_is_queued_again_after_the_save_and_resumes_from_it(
    tmp_path: Path, slurm: SimpleNamespace
) -> None:
    callback = make(tmp_path, ask=slurm.ask)
    trainer = make_trainer(tmp_path, At(7, lambda: send("SIGUSR1")), callback, plugins=[slurm.plugin])
    with pytest.raises(SystemExit) as ended:
        trainer.fit(Line())
    assert ended.value.code == 128 + signal.SIGUSR1
    assert slurm.asked[-1] == ["scontrol", "requeue", "77"]
    (link,) = tmp_path.glob("hpc_ckpt_*.ckpt")
    assert os.path.samefile(link, saved(tmp_path)[0].checkpoint)
    again = make_trainer(tmp_path, make(tmp_path, ask=slurm.ask), plugins=[slurm.plugin])
    again.fit(Line())
    assert str(again.ckpt_path) == str(link)
    assert again.fit_loop.epoch_loop.batch_progress.total.completed == 20


def test_another_signal_queues_no_job_again(tmp_path: Path, slurm: SimpleNamespace) -> None:
    callback = make(tmp_path, ask=slurm.ask)
    trainer = make_trainer(tmp_path, At(7, lambda: send("SIGTERM")), callback, plugins=[slurm.plugin])
    with pytest.raises(SystemExit):
        trainer.fit(Line())
    assert ["scontrol", "requeue", "77"] not in slurm.asked
    assert not list(tmp_path.glob("hpc_ckpt_*.ckpt"))


class Ranks:
    """Stands for a strategy: this rank, and one that thinks otherwise."""

    root_device = torch.device("cpu")

    def __init__(self, other: int) -> None:
        self.other, self.num_asked = other, 0

    def reduce_boolean_decision(self, decision: bool, all: bool) -> bool:
        self.num_asked += 1
        return decision or self.other > 0

    def reduce(self, tensor: torch.Tensor, reduce_op: str) -> torch.Tensor:
        assert reduce_op == "max"
        return torch.maximum(tensor, torch.tensor(self.other))


def test_what_one_rank_sees_counts_for_all(tmp_path: Path) -> None:
    callback = make(tmp_path)
    callback.signals.start(Context(tmp_path))
    other = 256 + signal.SIGTERM + 1
    reason = callback._agree(SimpleNamespace(strategy=Ranks(other)))
    assert (reason.signal, reason.is_stopping, reason.exit_code) == (signal.SIGTERM, True, 143)
    assert callback._agree(SimpleNamespace(strategy=Ranks(0))) is None
    send("SIGUSR2")
    assert callback._agree(SimpleNamespace(strategy=Ranks(0))).signal == signal.SIGUSR2
    assert callback._agree(SimpleNamespace(strategy=Ranks(other))).signal == signal.SIGTERM
    callback.signals.stop()


def test_ranks_ask_one_another_only_every_so_many_boundaries(tmp_path: Path) -> None:
    callback, ranks = make(tmp_path, agree_every_n_boundaries=10), Ranks(0)
    callback._folder, callback._is_alone = GenerationFolder(tmp_path), False
    for _ in range(100):
        callback.on_boundary(SimpleNamespace(strategy=ranks), Line())
    assert ranks.num_asked == 10


def test_nothing_is_watched_in_a_fast_dev_run(tmp_path: Path) -> None:
    make_trainer(tmp_path, make(tmp_path), fast_dev_run=2).fit(Line())
    assert not list(tmp_path.iterdir())


def test_no_thread_is_left_behind(tmp_path: Path) -> None:
    make_trainer(tmp_path, make(tmp_path)).fit(Line())
    assert not [t for t in threading.enumerate() if t.name.startswith("holdfast")]


@pytest.mark.parametrize(
    "settings",
    [
        {"keep": 0},
        {"grace_seconds": 0},
        {"agree_every_n_boundaries": 0},
        {"every": {"steps": 0}},
        {"max_seconds": -1},
        {"check_every_n_steps": 0},
        {"signals": ["TERM"]},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        EmergencyCheckpoint(**settings)


PROGRAM = textwrap.dedent(
    """
    import signal, sys, time
    for name in ("SIGINT", "SIGHUP"):  # a test runner in the background has them ignored
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path.insert(0, sys.argv[2])
    from pathlib import Path
    from test_emergency import Callback, Line, make, make_trainer

    class Slow(Callback):
        def on_train_start(self, *_):
            print("ready", flush=True)
        def on_train_batch_end(self, *_):
            time.sleep(0.002)

    folder = Path(sys.argv[1])
    make_trainer(folder, make(folder), Slow(), max_epochs=100_000).fit(Line())
    """
)


@pytest.mark.parametrize(("name", "second"), [("SIGTERM", None), ("SIGINT", 0.0), ("SIGTERM", 0.2)])
def test_a_real_process_ends_with_its_exit_code_however_often_it_is_told(
    tmp_path: Path, name: str, second: float | None
) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), os.path.dirname(__file__)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, name))
    if second is not None:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(max(0.001, second))
        process.send_signal(getattr(signal, name))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + getattr(signal, name), errors
    assert len(saved(tmp_path, "emergency")) == 1
