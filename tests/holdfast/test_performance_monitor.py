"""PerformanceMonitor in ordinary programs and without a Trainer: exact by hand, unnoticed by training."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from holdfast import BoundaryCallback, PerformanceMonitor
from holdfast.boundary import exact_state, exactness
from holdfast.timing.clock import Usage
from holdfast.timing.kernel import Waits
from holdfast.timing.profiler import PhaseProfiler
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.profilers import PassThroughProfiler, SimpleProfiler
from programs import Memory, build, differences, run
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

OFTEN: dict[str, Any] = {"window_steps": 1, "every_s": 1e-6, "max_cost": 0.99}
PROGRAMS = ("image_classifier", "gan", "transformer")

each_program = pytest.mark.parametrize("name", PROGRAMS)


class Still:
    """A kernel that counts nothing."""

    def read(self) -> Waits:
        return Waits()


class Hands:
    """Of a clock."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def __deepcopy__(self, memo: Any) -> Hands:
        return self  # time passes for copies, too

    def usage(self) -> Usage:
        """All of it is computed."""
        return Usage(self.now, 0, 0)


class Acting(LightningModule):
    """Its data, environment, transfer, step and log take time on the hands of a clock, as is said."""

    def __init__(self, hands: Hands, **seconds: float) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.hands, self.seconds, self.episodes = hands, seconds, 0

    def spend(self, what: str) -> None:
        self.hands.now += self.seconds.get(what, 0.0)

    def train_dataloader(self) -> Any:
        def collate(items: Any) -> Any:
            self.spend("data")
            return torch.stack(items)

        return DataLoader(torch.ones(64, 1), batch_size=1, collate_fn=collate)

    def transfer_batch_to_device(self, batch: Any, *args: Any) -> Any:
        self.spend("transfer")
        return super().transfer_batch_to_device(batch, *args)

    def act(self) -> None:
        self.spend("environment")
        self.episodes += 1

    def timed_methods(self) -> Any:
        return [(self, "act", "environment/act")]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.act()
        self.spend("forward")
        return self.layer(batch).sum()

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.spend("callbacks")

    def backward(self, loss: Any, *args: Any, **kwargs: Any) -> None:
        self.spend("backward")
        super().backward(loss, *args, **kwargs)

    def optimizer_zero_grad(self, *args: Any) -> None:
        self.spend("optimiser")
        super().optimizer_zero_grad(*args)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(module: LightningModule, *callbacks: Any, folder: Path, **settings: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    given = {"accelerator": "cpu", "max_epochs": 1, "logger": False, "default_root_dir": folder, **settings}
    trainer = Trainer(**quiet, **given, callbacks=list(callbacks))
    trainer.fit(module)
    return trainer


def test_every_second_of_a_step_goes_to_its_phase(tmp_path: Path) -> None:
    hands = Hands()
    seconds = {"data": 1, "transfer": 2, "environment": 4, "forward": 8, "backward": 16, "optimiser": 32}
    seconds["callbacks"] = 1
    monitor = PerformanceMonitor(**OFTEN, clock=hands, usage=hands.usage, kernel=Still())
    fit(Acting(hands, **seconds), monitor, folder=tmp_path)
    report = monitor.get_performance_report()
    found = {name: share for name, share in report["shares"].items() if share}
    assert found == pytest.approx({name: share / 64 for name, share in seconds.items()}, rel=1e-3)
    assert report["timings"]["phases"]["environment/act"]["p50_s"] == 4.0
    # a closure: forward and backward run within the optimiser's step
    assert (
        report["timings"]["phases"]["forward"]["self_s"]
        == 8 * report["timings"]["phases"]["forward"]["count"]
    )


@pytest.mark.parametrize("label", ["data", "transfer", "callbacks"])
def test_what_is_slow_is_named(label: str, tmp_path: Path) -> None:
    hands = Hands()
    monitor = PerformanceMonitor(**OFTEN, clock=hands, usage=hands.usage, kernel=Still())
    fit(Acting(hands, **{"forward": 1, "backward": 2, label: 1}), monitor, folder=tmp_path)
    report = monitor.get_performance_report()
    (found,) = report["bottlenecks"]
    assert found["label"] == label
    assert found["share"] == pytest.approx(0.25, abs=0.01)
    assert found["speed_up"] == pytest.approx(4 / 3, rel=0.02)
    (advice,) = report["recommendations"]
    assert (advice["rule"], advice["priority"]) == (f"bottleneck/{label}", "high")


class Knowing(Acting):
    """Knows what helps against slow transfers."""

    def remedies(self) -> dict[str, str]:
        return {"transfer": "model.boats 2"}


def test_a_module_says_what_helps(tmp_path: Path) -> None:
    hands = Hands()
    monitor = PerformanceMonitor(**OFTEN, clock=hands, usage=hands.usage, kernel=Still())
    fit(Knowing(hands, forward=1, transfer=1, data=1), monitor, folder=tmp_path)
    found = {each["rule"]: each["message"] for each in monitor.get_performance_report()["recommendations"]}
    assert found["bottleneck/transfer"].endswith(": try model.boats 2")
    assert "DataLoader" in found["bottleneck/data"]


def bottlenecks_of(module: LightningModule, folder: Path, hands: Hands) -> list[dict[str, Any]]:
    clocks: dict[str, Any] = {"clock": hands, "usage": hands.usage, "kernel": Still()}
    monitor = PerformanceMonitor(**OFTEN, **clocks, interventions=True)
    trainer = fit(module, monitor, folder=folder)
    assert "batch_to_device" not in vars(trainer.strategy)
    found: list[dict[str, Any]] = monitor.get_performance_report()["bottlenecks"]
    return found


def test_slow_data_are_confirmed_by_a_cached_batch(tmp_path: Path) -> None:
    hands = Hands()
    (found,) = bottlenecks_of(Acting(hands, data=1, forward=1, backward=2, optimiser=1), tmp_path, hands)
    evidence = found["evidence"]
    assert (evidence["ms_a_step"], evidence["ms_a_step_cached"]) == pytest.approx((5000, 4000), rel=1e-3)
    assert found["speed_up"] == pytest.approx(5 / 4, rel=1e-3)
    assert evidence["speed_up_cached"] == pytest.approx(5 / 4, rel=1e-3)
    assert found["confirmation"] == "confirmed: 1.25 times as fast with a cached batch"


class OnADevice(Acting):
    """A step waits for the device, which is busy with the step before for three seconds."""

    busy_until = 0.0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.hands.now = max(self.hands.now, self.busy_until)
        self.busy_until = self.hands.now + 3
        return self.layer(batch).sum()


def test_data_that_come_while_the_device_is_busy_are_not_named(tmp_path: Path) -> None:
    hands = Hands()
    assert bottlenecks_of(OnADevice(hands, data=2), tmp_path, hands) == []


class ByHand(Acting):
    """Optimises by itself."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.optimizers().zero_grad()  # type: ignore[union-attr]
        self.manual_backward(super().training_step(batch, batch_idx))
        self.optimizers().step()  # type: ignore[union-attr]


class AskingTheTrainer(Acting):
    """Makes no step without one."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) / self.trainer.world_size


@pytest.mark.parametrize(
    ("kind", "why"),
    [(ByHand, "ByHand optimises by itself"), (AskingTheTrainer, "AskingTheTrainer is not attached")],
)
def test_data_are_named_unconfirmed_where_no_step_can_be_made_aside(
    kind: type[Acting], why: str, tmp_path: Path
) -> None:
    hands = Hands()
    (found,) = bottlenecks_of(kind(hands, data=1, forward=3), tmp_path, hands)
    assert found["confirmation"].startswith("not confirmed: ")
    assert why in found["confirmation"]
    assert "speed_up_cached" not in found["evidence"]


class Everything(Acting):
    """Draws, counts, logs, keeps a metric, and changes its batch in place; its rows are always the same."""

    def __init__(self, hands: Hands) -> None:
        super().__init__(hands, data=1, forward=1)
        self.layer = torch.nn.Sequential(  # type: ignore[assignment]
            torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1)
        )
        self.mean, self.rows, self.num_steps = MeanMetric(), torch.rand(8, 4), 0

    def train_dataloader(self) -> Any:
        def collate(items: Any) -> Any:
            self.spend("data")
            return self.rows

        return DataLoader(torch.ones(64, 1), batch_size=1, shuffle=True, collate_fn=collate)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.spend("forward")
        self.num_steps += 1
        batch.add_(torch.rand_like(batch), alpha=0.01)
        loss = self.layer(batch).square().mean()
        self.mean.update(loss.detach())
        self.log_dict({"loss": loss, "mean": self.mean})
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def test_steps_on_a_cached_batch_change_no_bit_of_the_training(tmp_path: Path) -> None:
    ends = []
    for is_watched in (True, False):
        torch.manual_seed(1)
        hands = Hands()
        module = Everything(hands)
        clocks: dict[str, Any] = {"clock": hands, "usage": hands.usage, "kernel": Still()}
        monitor = PerformanceMonitor(**OFTEN, **clocks, interventions=True)
        trainer = fit(module, *[monitor] * is_watched, folder=tmp_path)
        ends.append(
            (
                {name: value.tolist() for name, value in module.state_dict().items()},
                [
                    moment.tolist()
                    for each in trainer.optimizers[0].state.values()
                    for moment in each.values()
                ],
                {name: float(value) for name, value in trainer.callback_metrics.items()},
                module.rows.tolist(),
                module.num_steps,
                torch.get_rng_state().tolist(),
            )
        )
        if is_watched:
            (found,) = monitor.find_bottlenecks()
            assert found.confirmation.startswith("confirmed")
    assert ends[0] == ends[1]


@each_program
def test_ordinary_programs_end_with_the_same_bits(name: str, tmp_path: Path) -> None:
    monitor = PerformanceMonitor(**OFTEN, interventions=True, report_every_steps=3)
    watched = run(build(name), tmp_path / "a", make_callbacks=lambda *_: [monitor])
    plain = run(build(name), tmp_path / "b")
    assert differences(plain.state, watched.state) == []
    assert plain.events == watched.events
    own = [line for line in watched.lines if any(key.startswith("time/phase_") for key in line[1])]
    assert [line for line in watched.lines if line not in own] == plain.lines
    assert own


@each_program
def test_ordinary_programs_are_reported(name: str, tmp_path: Path) -> None:
    monitor = PerformanceMonitor(**OFTEN, report_every_steps=2)
    run(build(name), tmp_path, make_callbacks=lambda *_: [monitor])
    report = json.loads((tmp_path / "monitor" / "performance_report.json").read_text())
    assert sum(report["shares"].values()) == pytest.approx(1)
    for phase in ("data", "forward", "backward", "optimiser"):
        timing = report["timings"]["phases"][phase]
        assert 0 < timing["p50_s"] <= timing["p90_s"] <= timing["p99_s"]
        assert report["shares"][phase] > 0
    assert report["windows"]["count"] >= 2
    assert report["resources"]["cpu_s"] > 0


def test_trainer_and_module_are_left_as_they_were(tmp_path: Path) -> None:
    hands, inner = Hands(), SimpleProfiler()
    module, monitor = (
        Acting(hands, forward=1),
        PerformanceMonitor(**OFTEN, clock=hands, usage=hands.usage, kernel=Still()),
    )
    trainer = fit(module, monitor, folder=tmp_path, profiler=inner)
    assert trainer.profiler is inner
    assert any("training_step" in name for name in inner.recorded_durations)
    assert not {"act", "log", "log_dict"} & vars(module).keys()
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module)  # and again
    assert monitor.records
    assert trainer.profiler is inner


def test_a_run_that_fails_is_left_as_it_was(tmp_path: Path) -> None:
    class Failing(Acting):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 9:
                assert isinstance(self.trainer.profiler, PhaseProfiler)
                raise OSError("no disk")
            return super().training_step(batch, batch_idx)

    module = Failing(Hands(), forward=1)
    monitor = PerformanceMonitor(**OFTEN, clock=module.hands, usage=module.hands.usage, kernel=Still())
    with pytest.raises(OSError, match="no disk"):
        fit(module, monitor, folder=tmp_path)
    assert type(module.trainer.profiler) is PassThroughProfiler
    assert not {"act", "log", "log_dict"} & vars(module).keys()


def test_a_save_in_a_window_is_as_exact_as_one_without(tmp_path: Path) -> None:
    class Looks(BoundaryCallback):
        def __init__(self) -> None:
            self.seen: list[tuple[bool, str, bool]] = []

        def on_boundary(self, trainer: Trainer, pl_module: LightningModule) -> None:
            hidden = repr(exact_state(trainer).get("hidden", {}))
            self.seen.append(("log" in vars(pl_module), exactness(trainer), "partial" in hidden))

    looks = Looks()
    monitor = PerformanceMonitor(window_steps=3, every_s=1e-6, max_cost=0.99)
    run(build("image_classifier"), tmp_path, make_callbacks=lambda *_: [monitor, looks])
    assert {is_clocked for is_clocked, _, _ in looks.seen} == {True, False}
    assert {how for _, how, _ in looks.seen} == {"bit-exact"}
    assert not any(is_partial for *_, is_partial in looks.seen)


def test_reports_come_every_so_many_steps_and_episodes(tmp_path: Path) -> None:
    class Counts(PerformanceMonitor):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**OFTEN, kernel=Still(), **settings)
            self.at: list[int] = []

        def save_report(self, path: Any = "performance_report.json") -> Path:
            self.at.append(self._progress.ready)
            return super().save_report(path)

    by_steps, by_episodes = Counts(report_every_steps=20), Counts(report_every_episodes=30)
    for monitor in (by_steps, by_episodes):
        fit(Acting(Hands(), forward=1), monitor, folder=tmp_path)
    assert by_steps.at == [20, 40, 60, 64]  # and at the end
    assert by_episodes.at == [30, 60, 64]


def test_shares_are_logged_against_the_step_and_add_up(tmp_path: Path) -> None:
    hands, log = Hands(), Memory()
    monitor = PerformanceMonitor(
        **OFTEN, report_every_steps=16, clock=hands, usage=hands.usage, kernel=Still()
    )
    fit(Acting(hands, forward=3, data=1), monitor, folder=tmp_path, logger=log)
    lines = [(step, metrics) for step, metrics in log.lines if "time/phase_data" in metrics]
    assert [step for step, _ in lines] == [16, 32, 48, 64]
    for _, metrics in lines:
        assert metrics["time/phase_data"] == pytest.approx(0.25, abs=0.01)
        assert sum(metrics.values()) == pytest.approx(1)


def test_a_report_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "monitor").write_text("in the way")
    monitor = PerformanceMonitor(**OFTEN)
    with pytest.warns(UserWarning, match="could not be written"):
        fit(Acting(Hands()), monitor, folder=tmp_path)


@pytest.mark.timeout(400)  # two processes, each with its own imports
@each_program
def test_two_ranks_are_watched_and_one_reports(name: str, tmp_path: Path) -> None:
    program = f"""
        import os, sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from programs import build, run
        from holdfast import PerformanceMonitor

        monitor = PerformanceMonitor(**{OFTEN!r}, interventions=True, report_every_steps=1)
        folder = Path({str(tmp_path)!r})
        two = dict(strategy="ddp_find_unused_parameters_true", devices=2)
        run(build({name!r}), folder, make_callbacks=lambda *_: [monitor], **two)
        assert monitor.records
        (folder / f"rank{{os.environ.get('LOCAL_RANK', 0)}}").touch()
    """
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(program))
    done = subprocess.run([sys.executable, "-W", "ignore", path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "monitor" / "performance_report.json").read_text())
    assert report["shares"]["backward"] > 0
    assert sorted(tmp_path.glob("rank*")) == [tmp_path / "rank0", tmp_path / "rank1"]


# -- without a Trainer --------------------------------------------------------------------------------


def test_the_examples_of_a_guide_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hands = Hands()
    monitor = PerformanceMonitor(clock=hands, usage=hands.usage, kernel=Still())
    monitor.start_monitoring()
    for _ in range(40):
        with monitor.time_operation("batch_processing"):
            hands.now += 0.5
            with monitor.time_operation("data"):
                hands.now += 0.3
        with monitor.time_operation("forward"):
            hands.now += 0.7
    monitor.stop_monitoring()
    hands.now += 100
    report = monitor.get_performance_report()
    for rec in report["recommendations"]:
        print(rec["priority"], rec["message"])
    assert "medium the training waits for data, 20%" in capsys.readouterr().out
    assert report["wall_s"] == pytest.approx(60)
    timing = report["timings"]["operations"]["batch_processing"]
    assert (timing["count"], timing["total_s"], timing["self_s"]) == pytest.approx((40, 32, 20))
    assert timing["share"] == pytest.approx(1 / 3)
    path = monitor.save_report(tmp_path / "performance_report.json")
    assert json.loads(path.read_text())["wall_s"] == report["wall_s"]
    assert list(tmp_path.iterdir()) == [path]


def test_operations_in_any_thread_are_counted() -> None:
    monitor = PerformanceMonitor()
    monitor.start_monitoring()

    def work() -> None:
        for _ in range(50):
            with monitor.time_operation("work"):
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert monitor.get_performance_report()["timings"]["operations"]["work"]["count"] == 200


def test_a_report_of_nothing_is_one() -> None:
    report = PerformanceMonitor().get_performance_report()
    assert report["bottlenecks"] == report["recommendations"] == []
    assert set(report["shares"].values()) == {0.0}
    json.dumps(report)


def test_layers_are_profiled_on_demand(tmp_path: Path) -> None:
    profile = PerformanceMonitor().profile_layers(torch.nn.Linear(2, 3), torch.ones(4, 2), folder=tmp_path)
    assert profile.layers[0].flops == 2 * 4 * 2 * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layers.json", "layers.txt"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"report_every_steps": 0}, "report_every_steps must be at least 1, got 0"),
        ({"window_steps": 0}, "window_steps must be at least 1, got 0"),
        ({"max_cost": 1.0}, r"max_cost must lie in \(0, 1\), got 1.0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PerformanceMonitor(**settings)
