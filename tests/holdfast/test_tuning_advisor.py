"""TuningAdvisor in small programs: what it sees, says and changes, and that a resumed run does the same."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import textwrap
import timeit
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from holdfast import TuningAdvisor
from holdfast.advising.advice import Advice, Change, Priority
from holdfast.advising.rule import Adaptable, Rule
from holdfast.advising.signals import Signals
from holdfast.advising.threshold import Threshold
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from programs import Memory, Outcome, Program, Resumed, SaveAt, Trace, build, differences, run
from programs.augmented import Noisy
from programs.regression import Regression
from torch.utils.data import DataLoader

IS_FULL = bool(os.environ.get("HOLDFAST_EVERY_BOUNDARY"))


@pytest.fixture(autouse=True)
def _lightning_says_little() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        yield


ALWAYS = "share_above(loss, -1e9) > 0"


def often(name: str, setting: str, propose: str, when: str = ALWAYS) -> Threshold:
    """Speaks as soon as ten losses were seen, right or wrong."""
    return Threshold(name, [when], "high", "{value} {proposed}", "us", setting, propose, least=10)


def advisor(*rules: Rule, **settings: Any) -> TuningAdvisor:
    fixed: dict[str, Any] = {"general": False, "every_n_steps": 1, "num_samples": 8, "clock": lambda: 1.0}
    return TuningAdvisor(rules=rules, **{**fixed, **settings})


def program(module: LightningModule | None = None, num_steps: int = 40, **settings: Any) -> Program:
    seed_everything(1, verbose=False)
    train = DataLoader(Noisy(num_steps, 1), batch_size=2, shuffle=True)
    val = DataLoader(Noisy(4, 2), batch_size=2)
    return Program(module or Regression(), train, val, {"max_epochs": 2, **settings})


def told(folder: Path) -> list[tuple[str, str]]:
    lines = (folder / "monitor" / "advice.jsonl").read_text().splitlines()
    return [(line["event"], line["advice"]["rule"]) for line in map(json.loads, lines)]


# -- what it sees -----------------------------------------------------------------------------------


def test_measured_figures_are_those_of_the_step(tmp_path: Path) -> None:
    found: dict[str, list[float]] = {"grad_norm": [], "loss": [], "update_ratio": [], "weight_norm": []}

    class Slow(Regression):
        """Looks at every step the long way."""

        @torch.no_grad()
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            grads = [p.grad.double().square().sum() for p in self.parameters()]
            found["grad_norm"].append(float(torch.stack(grads).sum().sqrt()))
            self.before = [layer.weight.detach().clone() for layer in self.linears()]

        @torch.no_grad()
        def on_train_batch_end(self, outputs: Any, *_: Any) -> None:
            found["loss"].append(float(outputs["loss"]))
            pairs = list(zip(self.linears(), self.before, strict=True))
            ratios = [float((new.weight - old).norm() / old.norm()) for new, old in pairs]
            found["update_ratio"].append(sum(sorted(ratios)) / 2)
            squares = [float(layer.weight.double().square().sum()) for layer in self.linears()]
            found["weight_norm"].append(sum(squares) ** 0.5)

        def linears(self) -> list[torch.nn.Linear]:
            return [self.layers[0], self.layers[3]]  # type: ignore[list-item]

    watching = advisor()
    given = program(Slow(), gradient_clip_val=0.5)
    run(given, tmp_path, None, lambda *_: [watching], log_every_n_steps=1_000)
    signals = watching._signals
    for name, values in found.items():
        seen = [sample.value for sample in signals.window(name)]
        assert seen == pytest.approx(values, rel=1e-5), name
    assert signals.newest("loss_start") == pytest.approx(statistics.median(found["loss"][:10]))
    clipped = [float(norm > 0.5) for norm in found["grad_norm"]]
    assert [sample.value for sample in signals.window("clipped")] == clipped


def test_units_that_never_get_a_gradient_are_dead(tmp_path: Path) -> None:
    class Dead(Regression):
        def __init__(self) -> None:
            super().__init__()
            first = torch.nn.Linear(4, 16)
            self.layers = torch.nn.Sequential(first, torch.nn.ReLU(), torch.nn.Linear(16, 1))
            with torch.no_grad():
                first.bias[:12] = -100.0

    watching = advisor()
    run(program(Dead()), tmp_path, None, lambda *_: [watching])
    assert watching._signals.newest("dead_units") >= 0.75  # type: ignore[operator]
    assert watching._signals.window("dead_units")[0].value == 0  # not yet known


def test_logged_metrics_are_sampled_when_they_are_logged(tmp_path: Path) -> None:
    watching = advisor()
    run(program(log_every_n_steps=7), tmp_path, None, lambda *_: [watching], log_every_n_steps=7)
    signals = watching._signals
    assert [sample.step for sample in signals.window("train_loss_step")] == [6, 13, 20, 27, 34]
    assert len(signals.window("val_loss")) == 2
    assert len(signals.window("train_loss_epoch")) == 2


def test_a_module_that_logs_by_itself_hands_its_metrics_over(tmp_path: Path) -> None:
    class Own(Regression):
        metrics_watch: Any = None

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            if self.metrics_watch is not None:
                self.metrics_watch({"mine/q": float(batch_idx), "val/loss": 3.0, "name": "text"})
            return self.loss(batch)

        def advice_signals(self) -> Mapping[str, float]:
            return {"asked": 5.0}

    watching, own = advisor(), Own()
    run(program(own, max_epochs=1), tmp_path, None, lambda *_: [watching], logger=False)
    assert [sample.value for sample in watching._signals.window("mine/q")] == list(range(20))
    assert watching._signals.newest("val_loss") is not None
    assert watching._signals.newest("asked") == 5.0
    assert own.metrics_watch is None


def test_steps_taken_several_to_a_batch_are_measured_one_by_one(tmp_path: Path) -> None:
    class Twice(Regression):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            optimizer: Any = self.optimizers()
            for _ in range(8):
                optimizer.zero_grad()
                self.manual_backward(loss := self.loss(batch))
                optimizer.step()
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 1e-3)

    watching = advisor()
    run(program(Twice()), tmp_path, None, lambda *_: [watching])
    ratio, norm = (watching._signals.window(name) for name in ("update_ratio", "grad_norm"))
    weight = watching._signals.newest("weight_norm")
    assert len(ratio) == len(norm) > 20
    # one step moves all weights by lr times the gradient: the median layer by no more than that
    assert all(r.value * weight < 3 * 1e-3 * n.value for r, n in zip(ratio, norm, strict=True))


def test_a_measurement_that_fails_warns_once_and_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run(program(), tmp_path)
    monkeypatch.setattr(torch, "_foreach_norm", lambda *_, **__: 1 / 0)
    with pytest.warns(UserWarning, match="measures no gradients in this run: ZeroDivisionError"):
        broken = run(program(), tmp_path, None, lambda *_: [advisor()])
    assert not differences(plain.state["weights"], broken.state["weights"])


# -- what it says -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("priority", "num_told"), [("medium", 1), ("low", 0)])
def test_advice_is_told_once_and_withdrawn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, priority: Priority, num_told: int
) -> None:
    class Early(Rule):
        name = "early"

        def check(self, signals: Signals) -> Advice | None:
            num = len(signals.window("loss"))
            return (
                Advice("early", priority, "wait", {}, "us", (Change("lr", 1.0, 0.5),))
                if 5 < num < 20
                else None
            )

    log = Memory()
    with caplog.at_level("INFO"):
        run(program(), tmp_path, None, lambda *_: [advisor(Early())], logger=log)
    assert told(tmp_path) == [("advised", "early"), ("withdrawn", "early")]
    assert [metrics for _, metrics in log.lines if "advice/early" in metrics] == [
        {"advice/early": 1.0},
        {"advice/early": 0.0},
    ]
    assert [line.partition(": ")[2] for line in caplog.messages if "early" in line] == [
        "advised (early, medium): wait [lr 1 -> 0.5]",
        "withdrawn (early): wait",
    ][: 2 * num_told]


def test_what_the_last_validation_showed_is_heard(tmp_path: Path) -> None:
    late = Threshold("late", ["newest(val_loss) > -1"], "high", "{0}", "us", least=1)
    given = program(max_epochs=1)
    run(given, tmp_path, None, lambda *_: [advisor(late)])
    assert told(tmp_path) == [("advised", "late")]


def test_advice_stands_in_the_run_folder_with_all_its_fields(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="")
    watching = advisor(often("up", "learning_rate", "value * 2.0"))
    run(program(), tmp_path, None, lambda *_: [watching], logger=logger)
    (line,) = map(json.loads, Path(logger.log_dir, "monitor", "advice.jsonl").read_text().splitlines())
    assert line.keys() == {"time", "step", "event", "advice"}
    assert line["advice"] == json.loads(json.dumps(watching.advice[0].as_dict()))
    assert line["advice"]["changes"] == [{"setting": "optimizer.lr", "value": 0.05, "proposed": 0.1}]
    (events,) = Path(logger.log_dir).glob("events*")
    assert b"advised (up, high)" in events.read_bytes()


def test_advising_changes_no_bit_of_the_run(tmp_path: Path) -> None:
    for name in ("gan", "augmented", "image_classifier"):
        plain = run(build(name), tmp_path, logger=False)
        advised = run(build(name), tmp_path, None, lambda *_: [advisor(general=True)], logger=False)
        faults = differences(vars(plain), vars(advised))
        assert not [fault for fault in faults if "/events" not in fault], name


@pytest.mark.parametrize("hand", ["module", "callback", "argument"])
def test_rules_come_from_everywhere(hand: str, tmp_path: Path) -> None:
    class With(Regression):
        def advice_rules(self) -> Sequence[Rule]:
            return [often("mine", "learning_rate", "value * 2.0")]

    class Beside(Callback):
        advice_rules = With.advice_rules

    module = With() if hand == "module" else Regression()
    watching = advisor(*([often("mine", "learning_rate", "value * 2.0")] if hand == "argument" else []))
    beside = [Beside()] if hand == "callback" else []
    run(program(module), tmp_path, None, lambda *_: [*beside, watching])
    assert told(tmp_path) == [("advised", "mine")]


def test_rules_are_left_out_by_name(tmp_path: Path) -> None:
    class Picky(Regression):
        advice_ignores = ("overfitting",)

    watching = advisor(
        often("mine", "learning_rate", "value * 2.0"), general=True, without=["mine", "dead_units"]
    )
    run(program(Picky(), max_epochs=1), tmp_path, None, lambda *_: [watching])
    names = {rule.name for rule in watching._rules}
    assert "loss_diverging" in names
    assert not names & {"overfitting", "mine", "dead_units"}


def test_a_rule_to_leave_out_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without names dead_unit, which no rule is called; there are "):
        run(program(), tmp_path, None, lambda *_: [advisor(general=True, without=["dead_unit"])])


def test_what_fails_is_told_and_nothing_else_is_lost(tmp_path: Path) -> None:
    class Broken(Rule):
        name = "broken"

        def check(self, signals: Signals) -> Advice | None:
            raise KeyError("x")

    class Beside(Callback):
        def advice_signals(self) -> Mapping[str, float]:
            raise OSError("y")

    watching = advisor(Broken(), often("mine", "learning_rate", "value / 2"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(program(max_epochs=1), tmp_path, None, lambda *_: [Beside(), watching])
    said = {str(warning.message) for warning in caught}
    assert "rule broken failed, and is asked again later: KeyError('x')" in said
    assert "Beside.advice_signals failed: OSError('y')" in said
    assert told(tmp_path) == [("advised", "mine")]


def test_settings_are_named_as_they_are_typed(tmp_path: Path) -> None:
    class Typed(Regression):
        def __init__(self, lr: float = 0.05, nested: Any = None) -> None:
            super().__init__(lr)
            self.save_hyperparameters()

    watching = advisor()
    run(program(Typed(0.02, {"depth": 3}), max_epochs=1), tmp_path, None, lambda *_: [watching])
    settings = watching._signals.settings
    assert (settings["model.lr"], settings["model.nested.depth"]) == (0.02, 3)
    assert settings["data.batch_size"] == 2
    assert "optimizer.lr" not in settings
    assert settings["trainer.gradient_clip_val"] is None


def test_a_loader_that_does_not_shuffle_is_named(tmp_path: Path) -> None:
    given = program()
    given.train = DataLoader(Noisy(80, 1), batch_size=2)
    watching = advisor(general=True)
    run(given, tmp_path, None, lambda *_: [watching])
    assert "not_shuffled" in [advice.rule for advice in watching.advice]


# -- what it changes --------------------------------------------------------------------------------


def test_the_learning_rate_is_changed_with_its_schedule(tmp_path: Path) -> None:
    class Scheduled(Regression):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), 0.01)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    log = Memory()
    watching = advisor(often("down", "learning_rate", "value * 0.5"), mode="adapt", num_samples=30)
    outcome = run(program(Scheduled()), tmp_path, None, lambda *_: [watching], logger=log)
    (group,) = outcome.state["optimizers"][0]["param_groups"]
    assert group["lr"] == pytest.approx(0.005 / 41)
    assert ("applied", "down") in told(tmp_path)
    assert sum("advice/setting/optimizer.lr" in metrics for _, metrics in log.lines) == 1


def test_clipping_is_turned_on_and_off_again_where_it_harms(tmp_path: Path) -> None:
    class Needs(Regression):
        """Its loss is said to depend on clipping."""

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            is_clipped = self.trainer.gradient_clip_val is not None
            self.log("good", 1.0 * batch_idx - 1_000 * is_clipped)
            return self.loss(batch)

    clip = often("clip", "gradient_clip_val", "0.001")
    watching = advisor(clip, mode="adapt", monitor="good", monitor_mode="max")
    given = program(Needs(), num_steps=80)
    run(given, tmp_path, None, lambda *_: [watching])
    assert [event for event, _ in told(tmp_path) if event != "advised"] == ["applied", "rolled back"]
    assert given.module.trainer.gradient_clip_val is None


def test_bounds_of_the_user_hold_and_must_exist(tmp_path: Path) -> None:
    rule = often("down", "learning_rate", "value * 0.01")
    watching = advisor(rule, mode="adapt", num_samples=30, bounds={"optimizer.lr": (0.02, 1.0)})
    outcome = run(program(), tmp_path, None, lambda *_: [watching])
    assert outcome.state["optimizers"][0]["param_groups"][0]["lr"] == pytest.approx(0.02)
    with pytest.raises(ValueError, match=r"model\.lr, which cannot be adapted .* optimizer\.lr"):
        run(program(), tmp_path, None, lambda *_: [advisor(mode="adapt", bounds={"model.lr": (0, 1)})])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "guess"}, "mode must be advise or adapt, got 'guess'"),
        ({"monitor_mode": "up"}, "monitor_mode must be min or max, got 'up'"),
        ({"every_n_steps": 0}, "every_n_steps must be at least 1, got 0; use 500"),
        ({"num_samples": 3}, "num_samples must be at least 8, got 3; use 20"),
        ({"bounds": {"lr": (1.0, 0.1)}}, r"bounds of lr must be lowest and highest, got \(1.0, 0.1\)"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TuningAdvisor(**settings)


# -- exact resume -----------------------------------------------------------------------------------


class Heated(Regression):
    """Declares a setting of its own; draws a random number in each step by its dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.heat = 1.0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("good", -loss.detach() - self.heat)
        return loss * self.heat

    def advice_signals(self) -> Mapping[str, float]:
        return {"heat": self.heat}

    def adaptable_settings(self) -> Mapping[str, Adaptable]:
        def lr() -> dict[str, Any]:
            return self.trainer.optimizers[0].param_groups[0]

        return {
            "model.heat": Adaptable(lambda: self.heat, lambda v: setattr(self, "heat", v), 0.01, 10.0),
            "model.lr": Adaptable(lambda: lr()["lr"], lambda v: lr().update(lr=v), 1e-5, 10.0),
        }

    def advice_settings(self) -> Mapping[str, Any]:
        return {"model.heat": 1.0, "model.lr": self.lr}


class Clock(Callback):
    """Offers what never repeats."""

    def advice_signals(self) -> Mapping[str, float]:
        Clock.reading += 1.0  # type: ignore[attr-defined]
        return {"ticks": Clock.reading % 7}  # type: ignore[attr-defined]


Clock.reading = 0.0  # type: ignore[attr-defined]


def adapting() -> TuningAdvisor:
    rules = [
        often("hotter", "model.heat", "value * 3.0"),
        often("faster", "model.lr", "value * 2.0"),
        often("by_the_clock", "model.lr", "value * 0.123", "max(ticks) > 0"),
    ]
    return advisor(*rules, mode="adapt", monitor="good", monitor_mode="max")


def plain_state(advisor: TuningAdvisor) -> dict[str, Any]:
    state = advisor.state_dict()
    state["signals"].pop("ticks", None)
    return {name: state[name] for name in ("signals", "adapter", "vitals", "next_look", "num_looks")}


@pytest.mark.parametrize("is_saved_before", [True, False], ids=["saved before it acts", "saved after"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_an_adapted_run_resumed_at_a_boundary_ends_as_if_uninterrupted(
    is_saved_before: bool, accumulate: int, tmp_path: Path
) -> None:
    settings = {"val_check_interval": 13, "accumulate_grad_batches": accumulate}

    def go(path: Path | None) -> tuple[Outcome, TuningAdvisor, SaveAt | None]:
        mine, savers = adapting(), []

        def callbacks(trace: Trace, log: Memory) -> list[Callback]:
            savers.append(SaveAt(tmp_path, trace, log) if path is None else Resumed())
            order = [savers[0], mine] if is_saved_before else [mine, savers[0]]
            return [Clock(), *order]

        outcome = run(program(Heated(), num_steps=120, **settings), tmp_path, path, callbacks)
        return outcome, mine, savers[0]

    whole, mine, saver = go(None)
    events = [event for event in told(tmp_path) if event[0] != "advised"]
    assert ("applied", "hotter") in events
    assert ("rolled back", "hotter") in events
    assert ("applied", "faster") in events
    assert "by_the_clock" not in [rule for _, rule in events]
    lines = (tmp_path / "monitor" / "advice.jsonl").read_text()
    assert saver is not None
    chosen = range(len(saver.notes) - 2)[:: 1 if IS_FULL else 11]
    for index in chosen:
        path, num_events, num_lines = saver.saved[index]
        resumed, again, _ = go(path)
        rest = Outcome(whole.state, whole.events[num_events:], whole.lines[num_lines:])
        if is_saved_before:
            rest.lines = [line for line in rest.lines if not any("advice/" in key for key in line[1])]
            resumed.lines = [line for line in resumed.lines if not any("advice/" in key for key in line[1])]
        assert not differences(vars(rest), vars(resumed))[:5], saver.notes[index]
        assert not differences(plain_state(mine), plain_state(again))[:5], saver.notes[index]
        assert (tmp_path / "monitor" / "advice.jsonl").read_text() == lines


def test_clipping_that_was_turned_on_is_on_in_the_resumed_run(tmp_path: Path) -> None:
    clip = often("clip", "gradient_clip_val", "0.125")
    straight = program(num_steps=60)
    saver: list[SaveAt] = []

    def callbacks(trace: Trace, log: Memory) -> list[Callback]:
        saver.append(SaveAt(tmp_path, trace, log))
        return [advisor(clip, mode="adapt", num_samples=100), saver[0]]

    whole = run(straight, tmp_path, None, callbacks)
    resumed = program(num_steps=60)
    again = run(
        resumed,
        tmp_path,
        saver[0].saved[40][0],
        lambda *_: [advisor(clip, mode="adapt", num_samples=100), Resumed()],
    )
    assert resumed.module.trainer.gradient_clip_val == 0.125
    assert not differences(whole.state, again.state)


# -- as part of a command line ----------------------------------------------------------------------


class Sometimes(Rule):
    """A rule of somebody else's."""

    name = "sometimes"

    def __init__(self, at: int = 3) -> None:
        self.at = at

    def check(self, signals: Signals) -> Advice | None:
        is_time = len(signals.window("loss")) >= self.at
        change = Change("model.x", None, 1)
        return Advice("sometimes", "low", "see", {}, "them", (change,)) if is_time else None


def test_rules_come_from_yaml(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        """
        advisor:
          every_n_steps: 1
          general: false
          rules:
            - class_path: test_tuning_advisor.Sometimes
              init_args: {at: 2}
            - class_path: holdfast.advising.threshold.Threshold
              init_args:
                name: long
                when: ["median(loss) > -1e9"]
                priority: low
                message: "{0:g}"
                source: us
                least: 2
        """
    )

    class CLI(LightningCLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.add_lightning_class_args(TuningAdvisor, "advisor")

    args = ["fit", "--config", str(tmp_path / "config.yaml"), "--trainer.limit_train_batches=20"]
    args += ["--trainer.max_epochs=1", "--trainer.logger=false", "--trainer.enable_checkpointing=false"]
    args += [f"--trainer.default_root_dir={tmp_path}", "--trainer.accelerator=cpu", "--advisor.mode=adapt"]
    CLI(BoringModel, args=args, save_config_callback=None)
    assert sorted(told(tmp_path)) == [("advised", "long"), ("advised", "sometimes")]


# -- what it costs ----------------------------------------------------------------------------------


def test_a_boundary_without_a_look_does_next_to_nothing(tmp_path: Path) -> None:
    class Timing(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
            if trainer.global_step == 5:
                call = lambda: watching.on_boundary(trainer, module)  # noqa: E731
                nothing = lambda: None  # noqa: E731
                costs = [
                    timeit.timeit(call, number=1_000) / timeit.timeit(nothing, number=1_000) for _ in range(9)
                ]
                self.cost = sorted(costs)[4]

    watching, timing = advisor(every_n_steps=100), Timing()
    run(program(max_epochs=1), tmp_path, None, lambda *_: [watching, timing], logger=CSVLogger(tmp_path))
    assert timing.cost < 20  # calls of an empty function, of some 50 ns each


@pytest.mark.timeout(300)
def test_ranks_make_the_same_changes(tmp_path: Path) -> None:
    """The loss is each rank's own; the first one decides."""
    program = f"""
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import torch
        from test_tuning_advisor import DataLoader, Regression, Trainer, advisor, often, seed_everything

        seed_everything(1)
        rule = often("down", "learning_rate", "value / 2")
        folder = Path({str(tmp_path)!r})
        trainer = Trainer(
            accelerator="cpu",
            devices=2,
            strategy="ddp",
            max_epochs=1,
            callbacks=[advisor(rule, mode="adapt")],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            default_root_dir=folder,
        )
        trainer.fit(Regression(), DataLoader(torch.rand(240, 4), 4, shuffle=True))
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        (folder / f"rank{{trainer.global_rank}}").write_text(repr(rate))
    """
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(program))
    done = subprocess.run([sys.executable, "-W", "ignore", path], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    rates = [float((tmp_path / f"rank{rank}").read_text()) for rank in (0, 1)]
    assert rates[0] == rates[1] < 0.03
    assert told(tmp_path)[:2] == [("advised", "down"), ("applied", "down")]


def test_ranks_that_wait_for_a_decision_get_one_where_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    watching = advisor(mode="adapt")
    watching._trainer = SimpleNamespace(
        is_global_zero=True,
        world_size=2,
        strategy=SimpleNamespace(broadcast=sent.append),
    )
    monkeypatch.setattr(watching, "_step", lambda: 5)
    with pytest.raises(AttributeError, match="settled_at"):
        watching._adapt(None)
    assert sent == [[]]
