"""Compiled updates inside a real Trainer: chosen once, bit-exact on resume, and seen by who must see them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from holdfast import EmergencyCheckpoint, ErrorRecovery
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from perdqn.backend import COMPILES, WORTHWHILE_UPDATES, choose_backend, obstacle
from perdqn.config import Config, ConfigError, LearnerConfig
from perdqn.learning import inductor
from perdqn.module import PERDQN

from .small_runs import SaveAt, assert_same, fingerprint, fitted, small, trainer

pytestmark = pytest.mark.timeout(400)  # compiling takes a while
COMPILED = {"learner": {"backend": "compiled"}}


def compiled(*callbacks: Callback, **learner: Any) -> PERDQN:
    return fitted(*callbacks, learner={"backend": "compiled", **learner})


def test_compiled_updates_learn_what_eager_ones_do() -> None:
    eager, other = small(learner={"backend": "eager"}), small(**COMPILED)
    for module in (eager, other):
        trainer(max_steps=50).fit(module)
    assert (eager.backend, other.backend) == ("eager", "compiled")
    assert eager.update_steps == other.update_steps
    torch.testing.assert_close(eager.state_dict(), other.state_dict(), rtol=1e-3, atol=1e-4)
    assert_same(eager.memory.rows.state_dict(), other.memory.rows.state_dict())


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization")
def test_lightning_counts_compiled_updates(tmp_path: Path) -> None:
    module = small(learner={"backend": "compiled", "updates_per_step": 1})
    keeper = ModelCheckpoint(tmp_path, every_n_train_steps=40, save_top_k=-1)
    run = trainer(keeper, max_steps=85)
    run.fit(module)
    assert run.global_step == module.update_steps == 85
    assert len(list(tmp_path.glob("*.ckpt"))) == 2
    steps = {float(state["step"]) for state in module.optimizers().state.values()}
    assert steps == {85.0}


def test_groups_of_compiled_updates_compute_the_same_bits_as_single_ones() -> None:
    assert_same(fingerprint(compiled(updates_per_step=1)), fingerprint(compiled(updates_per_step=16)))


@pytest.mark.parametrize("env_step", [30, 200, 333])
def test_a_resumed_run_ends_bit_for_bit_where_the_uninterrupted_one_does(
    tmp_path: Path, env_step: int
) -> None:
    path = tmp_path / "boundary.ckpt"
    whole = compiled(SaveAt(path, env_step))
    resumed = small()  # auto, which by itself would be eager: it goes on as it began
    trainer().fit(resumed, ckpt_path=path)
    assert resumed.backend == "compiled"
    assert_same(fingerprint(whole), fingerprint(resumed))


def test_compiling_is_told_and_loading_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine_code: Path
) -> None:
    compiled()

    def copy(program: Any, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((machine_code / path.name).read_bytes())

    monkeypatch.setenv("PERDQN_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setattr(inductor, "_compile", copy)
    told: list[str] = []
    monkeypatch.setattr(PERDQN, "print", lambda self, text: told.append(text))
    compiled()
    compiled()
    assert told == [COMPILES]


def test_a_resumed_run_goes_on_eagerly_where_nothing_can_be_compiled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "boundary.ckpt"
    compiled(SaveAt(path, 200))
    monkeypatch.setenv("PERDQN_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setitem(inductor.OPTIONS, "cpp.cxx", ("no-such-compiler",))
    resumed = small(**COMPILED)
    with pytest.warns(UserWarning, match="began with compiled updates, which cannot be had here"):
        trainer().fit(resumed, ckpt_path=path)
    assert resumed.backend == "eager"
    assert resumed.update_steps == 180


def test_a_new_run_that_asks_for_what_cannot_be_had_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    class Watch(Callback):
        def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None: ...

    with pytest.raises(ConfigError, match=r"model\.learner\.backend compiled .*Watch\.on_after_backward"):
        compiled(Watch())


def test_auto_says_why_it_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    class Watch(Callback):
        def on_before_optimizer_step(self, *args: Any) -> None: ...

    monkeypatch.setattr("perdqn.backend.WORTHWHILE_UPDATES", 10)
    module = small()
    with pytest.warns(UserWarning, match=r"not compiled, since Watch\.on_before_optimizer_step"):
        trainer(Watch()).fit(module)
    assert module.backend == "eager"


@pytest.mark.parametrize(
    ("settings", "before", "expected"),
    [
        ({"total_env_steps": 1_000 + WORTHWHILE_UPDATES * 4}, None, "compiled"),
        ({"total_env_steps": 999 + WORTHWHILE_UPDATES * 4}, None, "eager"),
        ({"total_env_steps": None, "total_episodes": 10**6}, None, "eager"),
        ({"total_env_steps": 10}, "compiled", "compiled"),
        ({"total_env_steps": 10**9}, "eager", "eager"),
        ({"total_env_steps": 10**9, "learner": LearnerConfig(backend="eager")}, "compiled", "eager"),
    ],
)
def test_the_budget_decides_unless_somebody_has(settings: Any, before: str | None, expected: str) -> None:
    assert choose_backend(Config(**settings), before) == expected


def test_holdfasts_callbacks_stand_in_no_compiled_updates_way() -> None:
    module = small()
    plain = {"world_size": 1, "precision_plugin": None, "lightning_module": module}
    assert obstacle(SimpleNamespace(**plain, callbacks=[ErrorRecovery(), EmergencyCheckpoint()])) is None
    scaled = {**plain, "precision_plugin": SimpleNamespace(scaler=object())}
    assert "16-mixed" in str(obstacle(SimpleNamespace(**scaled, callbacks=[])))
    assert "several devices" in str(obstacle(SimpleNamespace(**{**plain, "world_size": 2}, callbacks=[])))


class Poison(Callback):
    """Makes the losses of some updates NaN, by their number."""

    def __init__(self, *updates: int) -> None:
        self.updates = set(updates)

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        sample = pl_module.memory.sample

        def poisoned(*args: Any) -> Any:
            batch = sample(*args)
            if pl_module.experience.updates_issued in self.updates:
                batch.reward.fill_(torch.nan)
            return batch

        pl_module.memory.sample = poisoned


def test_a_loss_that_is_not_finite_is_left_out_of_compiled_updates() -> None:
    recovery = ErrorRecovery()
    module = compiled(Poison(31, 77), recovery)
    assert recovery.counts["skipped_batches"] == 2
    assert module.update_steps == 178
    assert all(bool(p.isfinite().all()) for p in module.parameters())


def test_every_compiled_loss_counts_for_spikes() -> None:
    seen: list[float] = []

    class Watching(ErrorRecovery):
        def _note_loss(self, loss: float) -> None:
            seen.append(loss)

    module = compiled(Watching(spike_factor=1e9))
    assert len(seen) == module.update_steps
    assert all(isinstance(loss, float) and loss > 0 for loss in seen)


def test_losses_to_leave_out_are_left_out_of_compiled_updates() -> None:
    class LeaveOut(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            pl_module.update_watch.leave_out = [(5, 7), (20, 20)]

    recovery = ErrorRecovery()
    module = compiled(recovery, LeaveOut())
    assert recovery.counts["skipped_batches"] == 4
    assert module.update_steps == 176


@pytest.mark.parametrize(
    ("precision", "max_steps", "tolerance"), [("bf16-mixed", 20, 2e-3), ("64-true", -1, 1e-12)]
)
def test_runs_of_other_precisions_end_alike_compiled_or_not(
    precision: str, max_steps: int, tolerance: float
) -> None:
    modules = []
    for backend in ("eager", "compiled"):
        modules.append(small(learner={"backend": backend}))
        trainer(precision=precision, max_steps=max_steps).fit(modules[-1])
    eager, other = (module.state_dict() for module in modules)
    torch.testing.assert_close(eager, other, rtol=tolerance, atol=tolerance)


AHEAD: dict[str, Any] = {"act_ahead": True, "train_every": 2}


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_acting_ahead_computes_the_same_bits_in_groups_of_any_size(backend: str) -> None:
    runs = [fitted(learner={**AHEAD, "backend": backend, "updates_per_step": n}) for n in (1, 4, 16)]
    for run in runs[1:]:
        assert_same(fingerprint(runs[0]), fingerprint(run))
    assert runs[0].env_steps == 600
    assert runs[0].update_steps == (600 - 60) // 2


@pytest.mark.parametrize("env_step", [30, 100, 200, 333])
def test_a_run_that_acts_ahead_resumes_bit_for_bit(tmp_path: Path, env_step: int) -> None:
    path = tmp_path / "boundary.ckpt"
    whole = fitted(SaveAt(path, env_step), learner=AHEAD)
    resumed = small(learner=AHEAD)
    trainer().fit(resumed, ckpt_path=path)
    assert_same(fingerprint(whole), fingerprint(resumed))


def test_acting_ahead_acts_with_the_network_of_one_update_ago() -> None:
    module = small(learner={**AHEAD, "backend": "compiled"}, exploration={"epsilon_end": 0.0})
    update, act, seen = module._update, module._act_in_training, []

    def noted_update(batch: Any) -> None:
        module.before = [p.detach().clone() for p in module.online.parameters()]
        update(batch)

    def compared_act(obs: Any) -> Any:
        if module._is_acting_ahead:
            network = module._earlier_policy.network
            seen.append(all(map(torch.equal, network.parameters(), module.before)))
            expected = network.greedy({name: torch.from_numpy(column) for name, column in obs.items()})
            assert act(obs).tolist() == expected.tolist()
        return act(obs)

    module._update, module.experience._policy = noted_update, compared_act
    trainer().fit(module)
    assert len(seen) > 50
    assert all(seen)


def test_a_failure_while_acting_ahead_waits_for_the_update() -> None:
    module = small(learner={**AHEAD, "backend": "compiled"})

    def fail() -> None:
        if module.update_steps == 20:
            raise OSError("the simulator crashed")
        return act_ahead()

    act_ahead, module._act_ahead = module._act_ahead, fail
    with pytest.raises(OSError, match="simulator"):
        trainer().fit(module)
    assert module._updates._compiled._pending is None
    steps = {float(state["step"]) for state in module.optimizers().state.values()}
    assert steps == {21.0}


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_images_scaled_by_the_replay_train_the_same_bits(precision: str) -> None:
    states = []
    for scales in (True, False):
        module = PERDQN(
            env={"id": "toys.Pixels"},
            replay={"capacity": 300, "beta_env_steps": 100},
            learner={"batch_size": 8, "warmup_env_steps": 20, "target_update_period": 5},
            exploration={"epsilon_env_steps": 50},
            evaluation={"every_env_steps": None},
            total_env_steps=100,
        )
        run = trainer(precision=precision)
        if not scales:
            module.memory.sample = _unscaled(module.memory.sample)  # type: ignore[method-assign]
        run.fit(module)
        assert module.experience.scales_images == (precision == "32-true")
        states.append(module.state_dict())
    assert_same(*states)


def _unscaled(sample: Any) -> Any:
    return lambda batch_size, beta, scaled: sample(batch_size, beta)
