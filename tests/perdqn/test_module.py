"""PERDQN inside a real Trainer: what it does at boundaries, on resume, and at the end of its budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from holdfast import AutoScaler
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from perdqn.config import ConfigError
from perdqn.module import PERDQN

from .small_runs import SaveAt, assert_same, fingerprint, fitted, small, trainer


def test_a_run_ends_by_its_own_budget_in_env_steps() -> None:
    module = fitted()
    assert module.env_steps == 600
    assert module.update_steps == (600 - 60) // 3
    assert module.stop_reason == "budget spent"


@pytest.mark.filterwarnings("ignore:`max_epochs` was not set")
def test_a_plain_trainer_is_enough(tmp_path: Path) -> None:
    module = small()
    Trainer(
        accelerator="cpu", default_root_dir=tmp_path, enable_progress_bar=False, enable_model_summary=False
    ).fit(module)
    assert module.env_steps == 600


def test_a_budget_in_episodes_ends_the_run() -> None:
    module = fitted(total_env_steps=None, total_episodes=12)
    assert module.episodes in (12, 13)  # two environments may end theirs in the same step


def test_global_step_counts_updates() -> None:
    module = small()
    run = trainer()
    run.fit(module)
    assert run.global_step == module.update_steps == 180


@pytest.mark.parametrize("group", [4, 16])
def test_groups_of_updates_compute_the_same_bits_as_single_ones(group: int) -> None:
    grouped = fitted(learner={"updates_per_step": group})
    assert_same(fingerprint(fitted(learner={"updates_per_step": 1})), fingerprint(grouped))


@pytest.mark.parametrize("env_step", [30, 100, 200, 333])
def test_a_resumed_run_ends_bit_for_bit_where_the_uninterrupted_one_does(
    tmp_path: Path, env_step: int
) -> None:
    path = tmp_path / "boundary.ckpt"
    whole = fitted(SaveAt(path, env_step))
    resumed = small()
    trainer().fit(resumed, ckpt_path=path)
    assert_same(fingerprint(whole), fingerprint(resumed))


def test_an_extended_run_equals_one_that_was_long_from_the_start(tmp_path: Path) -> None:
    path = tmp_path / "end.ckpt"
    fitted(SaveAt(path, 600))
    extended = small(total_env_steps=900)
    trainer().fit(extended, ckpt_path=path)
    assert_same(fingerprint(fitted(total_env_steps=900)), fingerprint(extended))


def test_evaluation_disturbs_nothing() -> None:
    watched = fitted()
    alone = fitted(evaluation={"every_env_steps": None})
    assert_same(watched.state_dict(), alone.state_dict())
    assert_same(watched.memory.state_dict(), alone.memory.state_dict())


def test_evaluations_happen_at_their_env_steps() -> None:
    class Watch(Callback):
        seen: list[int] = []  # noqa: RUF012

        def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
            self.seen.append(pl_module.env_steps)

    watch = Watch()
    fitted(watch)
    assert watch.seen == [200, 400, 600]


def test_an_evaluation_interrupted_before_its_end_is_played_whole_on_resume(tmp_path: Path) -> None:
    class Interrupt(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            if pl_module.env_steps == 200 and not path.exists():
                trainer.save_checkpoint(path)  # the evaluation at 200 is due, and not yet begun

    path = tmp_path / "due.ckpt"
    whole = fitted(Interrupt())
    resumed = small()
    trainer().fit(resumed, ckpt_path=path)
    assert_same(fingerprint(whole), fingerprint(resumed))


def test_a_reached_target_ends_the_run() -> None:
    module = fitted(evaluation={"stop_at_return": 1.0})
    assert module.stop_reason == "target reached"
    assert module.env_steps == 200


def test_max_steps_ends_the_run_after_that_many_updates() -> None:
    module = small()
    trainer(max_steps=7).fit(module)
    assert module.update_steps == 7


def test_fast_dev_run_reaches_an_update_and_an_evaluation() -> None:
    module = small()
    trainer(fast_dev_run=True).fit(module)
    assert module.update_steps == 1


def test_early_stopping_and_model_checkpoint_read_the_evaluation(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, monitor="eval/return_mean", mode="max", filename="best")
    stop = EarlyStopping("eval/return_mean", patience=1, min_delta=1e9, mode="max")
    module = small()
    trainer(best, stop).fit(module)
    assert module.env_steps == 400
    assert float(best.best_model_score) == module.best_evaluation_mean  # type: ignore[arg-type]


def test_the_best_score_survives_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "boundary.ckpt"
    whole = fitted(SaveAt(path, 450))
    resumed = small()
    trainer().fit(resumed, ckpt_path=path)
    assert resumed.best_evaluation_mean == whole.best_evaluation_mean is not None


def test_a_changed_learning_rate_wins_over_the_saved_one(tmp_path: Path) -> None:
    path = tmp_path / "boundary.ckpt"
    fitted(SaveAt(path, 300))
    resumed = small(learner={"learning_rate": 0.005, "adam_eps": 0.01})
    run = trainer()
    run.fit(resumed, ckpt_path=path)
    assert run.optimizers[0].param_groups[0]["lr"] == 0.005
    assert run.optimizers[0].param_groups[0]["eps"] == 0.01


def test_a_learning_rate_that_a_recovery_has_lowered_stays_lowered_when_the_setting_changes(
    tmp_path: Path,
) -> None:
    path = tmp_path / "boundary.ckpt"
    fitted(SaveAt(path, 300))
    lowered = torch.load(path, weights_only=True)
    lowered["optimizer_states"][0]["param_groups"][0]["lr"] *= 0.25
    torch.save(lowered, path)
    run = trainer()
    run.fit(small(learner={"learning_rate": 0.005}), ckpt_path=path)
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.25 * 0.005)


@pytest.mark.parametrize("train_every", [1.5, 6])
def test_another_pace_counts_from_the_resume_on(tmp_path: Path, train_every: float) -> None:
    path = tmp_path / "boundary.ckpt"
    fitted(SaveAt(path, 300))
    before = torch.load(path, weights_only=True)["perdqn"]
    resumed = small(learner={"train_every": train_every})
    trainer().fit(resumed, ckpt_path=path)
    expected = (600 - before["env_steps"]) / train_every
    assert resumed.update_steps - before["update_steps"] == pytest.approx(expected, abs=1)


def test_another_evaluation_period_counts_from_the_resume_on(tmp_path: Path) -> None:
    path = tmp_path / "boundary.ckpt"
    fitted(SaveAt(path, 420))  # evaluated at 200 and 400
    resumed = small(evaluation={"every_env_steps": 250})
    trainer().fit(resumed, ckpt_path=path)
    assert len(resumed.evaluations) == 3  # and at 500


def test_logging_can_be_turned_off() -> None:
    module = small()
    trainer(log_every_n_steps=0).fit(module)
    assert module.update_steps == 180
    assert "train/loss" not in module.latest


def test_a_checkpoint_without_replay_says_so_and_warms_up_again(tmp_path: Path) -> None:
    path = tmp_path / "weights.ckpt"
    module = small()
    run = trainer()
    run.fit(module)
    run.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["perdqn"]["replay"]
    torch.save(checkpoint, path)
    resumed = small(total_env_steps=800)
    with pytest.warns(UserWarning, match="holds no replay"):
        trainer().fit(resumed, ckpt_path=path)
    assert resumed.experience.learning_from == 660


def test_a_foreign_checkpoint_is_refused() -> None:
    with pytest.raises(ValueError, match="not written by PERDQN"):
        small().on_load_checkpoint({"state_dict": {}})


def test_a_newer_checkpoint_is_refused() -> None:
    with pytest.raises(ValueError, match="upgrade"):
        small().on_load_checkpoint({"perdqn": {"version": 99}})


def test_act_takes_one_observation_or_a_batch(tmp_path: Path) -> None:
    path = tmp_path / "agent.ckpt"
    module = small()
    run = trainer()
    run.fit(module)
    run.save_checkpoint(path, weights_only=True)
    agent = PERDQN.load_from_checkpoint(path)
    obs = np.array([0.1, 0.0, 0.05, 0.0], np.float32)
    action = agent.act(obs)
    assert isinstance(action, int)
    assert agent.act(np.stack([obs, obs])).tolist() == [action, action]
    assert agent.act(torch.from_numpy(obs)) == action == module.act(obs)


def test_every_fault_of_the_settings_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        small(replay={"alpha": 3.0}, learner={"gamma": -1.0})
    assert "model.replay.alpha" in str(raised.value)
    assert "model.learner.gamma" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("limit_train_batches", 3),
        ("val_check_interval", 5),
        ("check_val_every_n_epoch", 2),
        ("overfit_batches", 2),
    ],
)
def test_trainer_settings_that_cannot_work_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        trainer(**{name: value}).fit(small())


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_other_precisions_train_alike_in_groups_of_any_size(precision: str) -> None:
    modules = [small(learner={"updates_per_step": group}) for group in (1, 16)]
    for module in modules:
        trainer(precision=precision).fit(module)
    assert modules[0].update_steps == 180
    assert_same(modules[0].state_dict(), modules[1].state_dict())


def test_the_target_network_is_a_copy_every_period() -> None:
    module = fitted(learner={"target_update_period": 180})
    assert_same(dict(module.online.state_dict()), dict(module.target.state_dict()))
    module = fitted(learner={"target_update_period": 179})
    assert not torch.equal(module.online.head.advantage.weight, module.target.head.advantage.weight)


def test_polyak_averaging_moves_the_target_by_tau() -> None:
    module = small(learner={"target_update_period": 1, "target_tau": 0.25})
    before = [p.clone() for p in module.target.parameters()]
    with torch.no_grad():
        for p in module.online.parameters():
            p.add_(1.0)
    module.update_steps = 1
    module._update_target()
    for old, new in zip(before, module.target.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.25)  # online was the same plus one


def test_gradients_are_scaled_down_to_their_bound() -> None:
    class Watch(Callback):
        norms: list[float] = []  # noqa: RUF012

        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            gradients = [p.grad for p in pl_module.online.parameters() if p.grad is not None]
            self.norms += [float(torch.nn.utils.get_total_norm(gradients))] if gradients else []

    watch = Watch()
    fitted(watch, learner={"max_grad_norm": 0.01})
    assert watch.norms
    assert max(watch.norms) <= 0.01 + 1e-6
    assert max(watch.norms) > 0.0099


def test_the_run_is_a_function_of_its_seed() -> None:
    assert_same(fingerprint(fitted(seed=5)), fingerprint(fitted(seed=5)))
    a, b = fitted(seed=5), fitted(seed=6)
    assert not np.array_equal(a.memory.rows.actions, b.memory.rows.actions)


def test_training_does_not_touch_the_global_generators() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    small()
    assert torch.equal(torch.rand(1), expected)


def test_an_aborted_evaluation_stays_due_and_is_played_whole_on_resume(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
            if pl_module.env_steps == 400:
                pl_module.abort_evaluation()

        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if pl_module.is_evaluation_aborted:
                trainer.save_checkpoint(tmp_path / "stopped.ckpt")
                trainer.should_stop = True

    stopped = fitted(Stop())
    assert len(stopped.evaluations) == 1
    resumed = small()
    trainer().fit(resumed, ckpt_path=tmp_path / "stopped.ckpt")
    assert_same(fingerprint(fitted()), fingerprint(resumed))


def test_threads_are_chosen_once_kept_on_resume_and_given_back(tmp_path: Path) -> None:
    path = tmp_path / "boundary.ckpt"
    before = torch.get_num_threads()
    assert fitted(SaveAt(path, 300), learner={"num_threads": 2}).num_threads == 2
    resumed = small()
    trainer().fit(resumed, ckpt_path=path)
    assert resumed.num_threads == 2
    assert fitted().num_threads == 1
    assert torch.get_num_threads() == before


def test_a_clean_up_warns_above_the_memory_alert() -> None:
    with pytest.warns(UserWarning, match="of the memory limit"):
        fitted(replay={"memory_alert_fraction": 1e-9, "cleanup_env_steps": 300})


@pytest.mark.filterwarnings("ignore:could not be played again:RuntimeWarning")
def test_an_episode_that_cannot_be_restored_is_cut_and_said(tmp_path: Path) -> None:
    path = tmp_path / "boundary.ckpt"
    fitted(SaveAt(path, 300))
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["perdqn"]["experience"]["acting"]["environments"]["frames"]["obs"] += 1.0
    torch.save(checkpoint, path)
    resumed = small()
    with pytest.warns(RuntimeWarning, match="2 of 2 episodes in progress could not be played again"):
        trainer().fit(resumed, ckpt_path=path)
    resumed.memory.check_valid()
    assert resumed.env_steps == 600


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_a_replay_where_the_networks_are_gives_the_same_run(backend):
    def run(device):
        module = fitted(replay={"device": device}, learner={"backend": backend})
        state = fingerprint(module)
        for looked_up in ("cache", "scaled_maximum", "maximum"):
            del state["replay"][looked_up]
        return state, module.memory.priority_max

    assert_same(run("host"), run("learner"))


def test_a_run_goes_on_as_it_was_with_the_replay_elsewhere(tmp_path):
    through = fingerprint(fitted())["weights"]
    for before, after in (("host", "learner"), ("learner", "host")):
        path = tmp_path / f"{before}.ckpt"
        fitted(SaveAt(path, 300), replay={"device": before})
        module = small(replay={"device": after})
        trainer().fit(module, ckpt_path=path)
        assert_same(through, fingerprint(module)["weights"])


def test_an_auto_scaler_turns_the_groups_of_updates_and_changes_no_bit(tmp_path: Path) -> None:
    ticks = iter(range(10**6))
    scaler = AutoScaler(window=4, cache_dir=tmp_path, clock=lambda: float(next(ticks)))
    scaled, plain = small(), small()
    trainer(scaler).fit(scaled)
    trainer().fit(plain)
    assert scaler._climbs["learner.updates_per_step"].state_dict()["slower"]  # it has tried others
    assert all(torch.equal(a, b) for a, b in zip(scaled.parameters(), plain.parameters(), strict=True))
    assert scaled.env_steps == plain.env_steps
