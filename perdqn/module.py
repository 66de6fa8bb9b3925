"""PERDQN: double DQN with prioritized replay as one LightningModule.

Knows nothing about files, terminals or the command line.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from holdfast.advising.rule import Adaptable, Rule
from holdfast.exact.rng import get_global_rng, set_global_rng
from holdfast.scaling.knob import Knob
from holdfast.storage.parts import PartStore, load_parts, saving_parts
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from perdqn.acting.environment import describe, to_columns
from perdqn.acting.vector import Columns
from perdqn.advice.remedies import REMEDIES
from perdqn.advice.rules import RULES
from perdqn.advice.settings import adaptable_settings, settings_of
from perdqn.config import (
    ClassSpec,
    ConfigError,
    ConfigWarning,
    EnvConfig,
    EvaluationConfig,
    ExplorationConfig,
    LearnerConfig,
    ReplayConfig,
    check,
    from_dict,
)
from perdqn.diagnostics import Evaluation, training_diagnostics
from perdqn.evaluation import EpisodeIndex, Evaluator, RecentEpisodes
from perdqn.experience import PrioritizedReplayDataset
from perdqn.handover import fill_optimizer, load_model, save_model
from perdqn.health import Health
from perdqn.learning.greedy import GreedyPolicy
from perdqn.learning.networks import build_network
from perdqn.learning.objective import Figures
from perdqn.learning.target_network import follow
from perdqn.replay.on_device import OnDeviceReplay
from perdqn.replay.prioritized import PrioritizedReplay
from perdqn.transition import TransitionBatch, empty_batch
from perdqn.updates import Updates

# Fetching several batches a step is deliberate; no hook of ours reads a batch index.
for _message in ("You are using the `dataloader_iter` step", "Found `dataloader_iter` argument"):
    warnings.filterwarnings("ignore", message=_message)

STATE_KEY = "perdqn"  # our entry in a Lightning checkpoint
STATE_VERSION = 1
_LARGEST_GROUP = 64  # updates between two boundaries, where a signal is answered


class PERDQN(LightningModule):
    """Trains a Q-network on prioritized experience: ``Trainer().fit(PERDQN(env="CartPole-v1"))``.

    One Lightning epoch is the whole run; its length is the budget below, in env steps or episodes.
    Lightning's ``global_step`` counts updates.

    Args:
        env: where the agent acts; from Python also a Gymnasium id.
        replay, learner, exploration, evaluation: see the dataclasses; from Python also dicts.
        network: torso: ``auto``, ``mlp``, ``nature_cnn``, ``minatar_cnn`` or a class path.
        head: ``expected`` or a class path.
        total_env_steps: budget in env steps; null where ``total_episodes`` is the budget.
        total_episodes: budget in finished training episodes.
        seed: every random number of the run derives from it.

    Raises:
        ConfigError: settings are wrong; the message lists all of them.
    """

    # what holdfast's callbacks ask a module: nothing of ours is left for them to restore
    owns_data_position = True
    saves_own_state = True
    holdfast_counters = ("env_steps", "update_steps", "episodes")
    lets_steps_be_measured = False  # compiled ones cannot be, and `Health` measures more
    # what holdfast's TuningAdvisor asks of any run and values do not fit: a TD loss may rise while all is
    # well, a replay fills, acting is where data come from; of the others there are rules of our own
    advice_ignores = (
        *("loss_diverging", "loss_above_start", "loss_spikes", "overfitting", "weights_grow", "dead_units"),
        *("updates_too_large", "updates_too_small", "batch_too_small", "mostly_clipped", "grad_norm_tails"),
        *("gradients_explode", "gradients_explode_towards_the_input", "memory_rises", "data_starves"),
    )

    def __init__(
        self,
        env: EnvConfig = EnvConfig(),  # noqa: B008 - the command line shows these defaults; never mutated
        replay: ReplayConfig = ReplayConfig(),  # noqa: B008
        learner: LearnerConfig = LearnerConfig(),  # noqa: B008
        exploration: ExplorationConfig = ExplorationConfig(),  # noqa: B008
        evaluation: EvaluationConfig = EvaluationConfig(),  # noqa: B008
        network: ClassSpec = ClassSpec("auto"),  # noqa: B008
        head: ClassSpec = ClassSpec("expected"),  # noqa: B008
        total_env_steps: int | None = 100_000,
        total_episodes: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        sections = {
            "env": env,
            "replay": replay,
            "learner": learner,
            "exploration": exploration,
            "evaluation": evaluation,
            "network": network,
            "head": head,
            "total_env_steps": total_env_steps,
            "total_episodes": total_episodes,
            "seed": seed,
        }
        self.config = from_dict(sections)
        for advice in check(self.config).warnings:
            warnings.warn(advice, ConfigWarning, stacklevel=2)
        self.save_hyperparameters(asdict(self.config))

        self.spec = describe(self.config.env)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.online = self._build_network()
            self.target = self._build_network().requires_grad_(False)
        self.target.load_state_dict(self.online.state_dict())
        self._health = Health(self)
        self._updates = Updates(self)
        self._noise = torch.Generator().manual_seed(seed)
        self._evaluation_noise = torch.Generator().manual_seed(seed)
        self._policy = GreedyPolicy(self.online)
        self._earlier_policy: GreedyPolicy | None = None  # of an update ago, while acting ahead
        self._is_acting_ahead = False
        self.memory = self._build_memory()
        self.experience = PrioritizedReplayDataset(
            self.config, self.spec, self.memory, self._act_in_training, self._note_episode
        )

        self.recent_episodes = RecentEpisodes()
        self._evaluator = Evaluator(self.config, self.spec, self._act_in_evaluation)
        self._evaluated_at = 0  # env step of the last evaluation
        self.evaluations: list[Evaluation] = []  # of this run, oldest first
        self.final_evaluation: dict[str, float] | None = None
        self.update_steps = 0
        self.stop_reason: str | None = None
        self.latest: dict[str, float] = {}
        self.initial_optimizer_state: dict[str, Any] | None = None  # of an agent handed over
        self.num_threads: int | None = None  # chosen once, when a run begins
        self.update_watch: Any = None  # set by holdfast's ErrorRecovery
        self.metrics_watch: Callable[[dict[str, float]], None] | None = None  # set by its TuningAdvisor
        self._threads_before = torch.get_num_threads()
        self._global_rng: dict[str, Any] | None = None
        self._changed_in_optimizer: dict[str, tuple[float, float]] = {}  # saved, and now
        self._logged_at = (0.0, 0)
        self._is_trainer_checked = False

    def _build_network(self) -> Any:
        config = self.config
        return build_network(self.spec, config.network, config.head, config.learner)

    def _build_memory(self) -> PrioritizedReplay:
        replay, learner = self.config.replay, self.config.learner
        kind = PrioritizedReplay if replay.device == "host" else OnDeviceReplay
        return kind(
            self.spec,
            self.config.env.num_envs,
            replay.capacity,
            prioritized=replay.prioritized,
            alpha=replay.alpha,
            priority_eps=replay.priority_eps,
            priority_clip=replay.priority_clip,
            weight_normalization=replay.weight_normalization,
            n_step=learner.n_step,
            gamma=learner.gamma,
            reward_clip=learner.reward_clip,
            memory_alert_fraction=replay.memory_alert_fraction,
            storage=replay.storage,
            cached_frames=replay.cached_frames,
            seed=self._sampler_seed,
        )

    @property
    def _sampler_seed(self) -> int:
        return int(np.random.SeedSequence([self.config.seed, 0]).generate_state(1)[0])

    # -- counters --------------------------------------------------------------------------------

    @property
    def env_steps(self) -> int:
        """Steps taken over all training environments."""
        return self.experience.env_steps

    @property
    def log_step(self) -> int:
        """The x-axis of whatever callbacks log."""
        return self.env_steps

    @property
    def progress_fraction(self) -> float:
        """How much of the budget is spent, 0 to 1; for whoever foretells the end."""
        if self.config.total_env_steps is not None:
            return min(1.0, self.env_steps / self.config.total_env_steps)
        assert self.config.total_episodes is not None
        return min(1.0, self.episodes / self.config.total_episodes)

    @property
    def memory_to_come_bytes(self) -> int:
        """What the replay will still take as it fills."""
        return self.memory.bytes_to_come

    def release_memory(self) -> int:
        """Give back what the replay holds to be faster; returns by how many bytes the process shrank.

        Batches, and with them every bit of training, stay the same.
        """
        return self.memory.release_memory(caches=True)

    @property
    def episodes(self) -> int:
        """Finished training episodes."""
        return self.experience.episodes

    @property
    def backend(self) -> str | None:
        """How updates are computed, ``eager`` or ``compiled``; chosen once, when a run begins."""
        return self._updates.backend

    @property
    def newest_evaluation_mean(self) -> float | None:
        """Mean return of the last evaluation during training."""
        return self.evaluations[-1].mean if self.evaluations else None

    @property
    def best_evaluation_mean(self) -> float | None:
        """Highest mean return of any evaluation during training, resumed runs included."""
        return max((evaluation.mean for evaluation in self.evaluations), default=None)

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to act, learn or evaluate; the next boundary ends the run."""
        is_over = self._has_reached_target or (self.experience.is_spent and self.experience.updates_owed <= 0)
        return is_over and not self._evaluation_is_due

    @property
    def _has_reached_target(self) -> bool:
        target, newest = self.config.evaluation.stop_at_return, self.newest_evaluation_mean
        return target is not None and newest is not None and newest >= target

    @property
    def _evaluation_is_due(self) -> bool:
        period = self._evaluation_period
        if period is None or self.experience.updates_owed > 0:
            return False
        return self.env_steps // period > self._evaluated_at // period

    @property
    def _evaluation_period(self) -> int | None:
        return self.config.evaluation.every_env_steps if self.trainer.enable_validation else None

    # -- acting ----------------------------------------------------------------------------------

    def _act_in_training(self, obs: Columns) -> np.ndarray:
        policy = self._earlier_policy if self._is_acting_ahead else None
        return (policy or self._policy)(obs, self._noise)

    def _act_in_evaluation(self, obs: Columns) -> np.ndarray:
        return self._policy(obs, self._evaluation_noise)

    def act(self, obs: Any) -> Any:
        """The greedy action of the environment's own action space.

        Args:
            obs: one observation, or a batch of them along a first axis; arrays, tensors, or a dict of
                these for Dict observations. Where ``frame_stack`` is above 1: stacked already.

        Returns:
            int for one observation, int64 array [n] for a batch.
        """
        columns = to_columns(obs, self.spec)
        first = self.spec.columns[0]
        is_single = columns[first.name].ndim == len(self.spec.obs_shape(first))
        if is_single:
            columns = {name: column[None] for name, column in columns.items()}
        self._policy.look_again()
        actions = self._policy(columns, self._evaluation_noise) + self.spec.action_start
        return int(actions[0]) if is_single else actions

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        """Expected returns [batch, actions] of observation columns [batch, ...]."""
        return cast(Tensor, self.online.q_values(obs))

    def _note_episode(self, total: float, length: int) -> None:
        self.recent_episodes.update(total, length)

    # -- learning --------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        learner = self.config.learner
        is_fused = self.device.type in ("cpu", "cuda")
        optimizer = torch.optim.Adam(
            self.online.parameters(), lr=learner.learning_rate, eps=learner.adam_eps, fused=is_fused
        )
        if self.initial_optimizer_state is not None:
            fill_optimizer(optimizer, self.initial_optimizer_state)
        return optimizer

    def train_dataloader(self) -> PrioritizedReplayDataset:
        return self.experience

    def training_step(self, dataloader_iter: Any) -> None:
        """A group of updates, cut short where an evaluation is due or nothing can be learnt yet."""
        self.experience.pause_at = self._next_evaluation
        batch, _, _ = next(dataloader_iter)
        self._updates.open_group()
        try:
            for left in reversed(range(self._group_size())):
                if batch is None:
                    break
                self._update(self.to_device(batch))
                batch = self.experience.fetch() if left else None  # Lightning's fetcher would cost more
        finally:
            self._updates.close_group()
        # Lightning asks right after this step whether to validate.
        starts_evaluation = self._evaluation_is_due and not self.is_evaluation_aborted
        self.trainer.val_check_batch = 1 if starts_evaluation else float("inf")

    def to_device(self, batch: TransitionBatch) -> TransitionBatch:
        """Where the networks are."""
        return batch.to(self.device)

    def _group_size(self) -> int:
        left = self.trainer.max_steps - self.trainer.global_step
        group = self.config.learner.updates_per_step
        return group if self.trainer.max_steps < 0 else min(group, left)

    @property
    def _next_evaluation(self) -> int | None:
        period = self._evaluation_period
        return None if period is None else (self._evaluated_at // period + 1) * period

    def _update(self, batch: TransitionBatch) -> None:
        """One gradient step: algorithm 1 of arXiv:1511.05952, lines 9 to 17."""
        self.online.resample(self._noise)
        self.target.resample(self._noise)
        if self._earlier_policy is not None:
            self._earlier_policy.take_over(self.online)
        started = self._updates.start(batch)
        if self._earlier_policy is not None:
            self._act_ahead()
        report = self._updates.finish(started, batch)
        self.memory.update_priorities(batch.id, report.priority)
        self.update_steps += 1
        self._update_target()
        log_every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if log_every and self.update_steps % log_every == 0:
            self._log_update(report.figures())

    def _act_ahead(self) -> None:
        """For the next update, with the network as it was before this one."""
        self._is_acting_ahead = True
        try:
            self.experience.act_until_owed()
        finally:
            self._is_acting_ahead = False

    def _update_target(self) -> None:
        learner = self.config.learner
        if self.update_steps % learner.target_update_period == 0:
            follow(self.target, self.online, learner.target_tau)

    # -- the run ---------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Any]:
        """Adds none, but is the first hook of a fit: stock callbacks look at the Trainer next."""
        if self.trainer.state.fn == TrainerFn.FITTING and not self._is_trainer_checked:
            self._refuse_trainer_settings()
            # None tells them that evaluations come after training steps, not with epochs.
            self.trainer.check_val_every_n_epoch = None
            self._is_trainer_checked = True
        return []

    def on_fit_start(self) -> None:
        self._policy.look_again()
        self._evaluator.is_aborted = False
        self._threads_before = torch.get_num_threads()
        self.num_threads = self.num_threads or self.config.learner.num_threads or self._choose_num_threads()
        torch.set_num_threads(self.num_threads)
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.experience.learning_from = self.config.learner.batch_size + self.config.learner.n_step + 1

    def _choose_num_threads(self) -> int:
        """A second thread only pays for large images; for small networks a stalled one costs dearly."""
        images = [column for column in self.spec.columns if len(column.shape) > 1]
        return torch.get_num_threads() if any(min(c.shape[:2]) >= 36 for c in images) else 1

    def scalable_settings(self) -> dict[str, Knob]:
        """What holdfast's AutoScaler may set: groups of updates cost otherwise, and train the same bits.

        Environments and threads are decided before a module is built, see `perdqn.fitting`.
        """
        learner = self.config.learner
        most = max(_LARGEST_GROUP, learner.updates_per_step)
        grouped = Knob(
            lambda: learner.updates_per_step,
            lambda value: setattr(learner, "updates_per_step", value),
            low=1,
            high=most,
            keeps_result=True,
            progress=lambda: self.update_steps,
        )
        return {
            "learner.updates_per_step": grouped,
            "env.num_envs": Knob.fixed(self.config.env.num_envs),
            "learner.num_threads": Knob.fixed(self.num_threads or learner.num_threads or 1),
        }

    def on_fit_end(self) -> None:
        torch.set_num_threads(self._threads_before)

    def _refuse_trainer_settings(self) -> None:
        trainer: Any = self.trainer
        given: dict[str, Any] = {
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "check_val_every_n_epoch": trainer.check_val_every_n_epoch,
            "val_check_interval": trainer.val_check_interval,
            "overfit_batches": trainer.overfit_batches,
            "gradient_clip_val": trainer.gradient_clip_val,
            "num_nodes": trainer.num_nodes,
            "devices": trainer.world_size,
        }
        if not trainer.fast_dev_run:
            given["limit_train_batches"] = trainer.limit_train_batches
        if faults := check(self.config, trainer=given).faults:
            raise ConfigError(faults)

    def on_train_start(self) -> None:
        if self._global_rng is not None:
            set_global_rng(self._global_rng)
            self._global_rng = None
        for group in self._updates.optimizer.param_groups:
            for name, (before, now) in self._changed_in_optimizer.items():
                # not quite what was saved where a recovery has lowered it: that holds on
                group[name] = now if group[name] == before else group[name] * now / before
        self._changed_in_optimizer = {}
        if isinstance(self.memory, OnDeviceReplay):
            self.memory.place(self.device)
        # Bytes are less to move to a GPU; of other floats than these, scaling has other last bits.
        is_plain = next(self.online.parameters()).dtype == torch.float32
        self.experience.scales_images = self.device.type == "cpu" and is_plain
        self._updates.choose_backend(self._empty_batch().to(self.device))
        ahead = self.config.learner.act_ahead
        self._earlier_policy = GreedyPolicy(copy.deepcopy(self.online)) if ahead else None
        self._logged_at = (time.monotonic(), self.env_steps)
        self.trainer.val_check_batch = float("inf")

    def _empty_batch(self) -> TransitionBatch:
        return empty_batch(self.spec, self.config.learner.batch_size, self.experience.scales_images)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """The clean boundary: callbacks have saved by now if they wanted to, so the run may end here."""
        if not self.is_finished:
            return None
        self.stop_reason = "target reached" if self._has_reached_target else "budget spent"
        self.trainer.should_stop = True
        return -1

    def teardown(self, stage: str) -> None:
        self.experience.close()
        self._evaluator.close()

    # -- evaluation ------------------------------------------------------------------------------

    def val_dataloader(self) -> EpisodeIndex:
        return EpisodeIndex(self.config.evaluation.episodes, self.config.evaluation.num_envs)

    def test_dataloader(self) -> EpisodeIndex:
        return EpisodeIndex(self.config.evaluation.test_episodes, self.config.evaluation.num_envs)

    def on_validation_epoch_start(self) -> None:
        self._start_evaluation("validate")

    def on_test_epoch_start(self) -> None:
        self._start_evaluation("test")

    def _start_evaluation(self, phase: str) -> None:
        self._policy.look_again()
        self._evaluation_noise.manual_seed(self.config.seed)
        self._evaluator.start(phase)

    @property
    def is_evaluation_aborted(self) -> bool:
        """Whether `abort_evaluation` was called in this fit."""
        return self._evaluator.is_aborted

    def abort_evaluation(self) -> None:
        """End a running evaluation at its next step, uncounted: it stays due, and is played whole on resume.

        Safe to call in a signal handler.
        """
        self._evaluator.is_aborted = True

    def validation_step(self, episodes: list[int], batch_idx: int) -> None:
        if not self.trainer.sanity_checking:
            self._evaluator.play(episodes)

    def test_step(self, episodes: list[int], batch_idx: int) -> None:
        self._evaluator.play(episodes)

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking or self.is_evaluation_aborted:
            return
        statistics = self._report_evaluation("eval")
        if self.trainer.state.fn != TrainerFn.FITTING:
            return
        self._evaluated_at = self.env_steps
        self.evaluations.append(Evaluation(statistics["mean"], statistics["low"], statistics["high"]))

    def on_test_epoch_end(self) -> None:
        self.final_evaluation = self._report_evaluation("test")

    def _report_evaluation(self, prefix: str) -> dict[str, float]:
        statistics = self._evaluator.statistics.compute()
        names = {"mean": "return_mean", "iqm": "return_iqm", "low": "return_low", "high": "return_high"}
        named = {f"{prefix}/{names.get(key, key)}": float(value) for key, value in statistics.items()}
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.log_dict(named, logger=False)  # for callbacks that monitor them
            self._log({**named, **self._health.look(self)})
        else:
            self.log_dict({**named, "step": float(self.env_steps)})  # for what validate and test return
            self.latest.update(named)
        return statistics

    # -- logging ---------------------------------------------------------------------------------

    def _log(self, metrics: dict[str, float]) -> None:
        """Hand metrics to every logger, against env steps."""
        self.latest.update(metrics)
        if self.metrics_watch is not None:
            self.metrics_watch(metrics)
        for logger in self.loggers:
            logger.log_metrics(metrics, step=self.env_steps)

    def _log_update(self, figures: Figures) -> None:
        episodes = self.recent_episodes.compute()
        now = (time.monotonic(), self.env_steps)
        seconds, steps = now[0] - self._logged_at[0], now[1] - self._logged_at[1]
        self._logged_at = now
        batch = self.memory.newest_batch_stats()
        metrics = {
            "rollout/epsilon": self.experience.epsilon(self.env_steps),
            "rollout/episodes": float(self.episodes),
            **{f"train/{name}": value for name, value in figures._asdict().items()},
            "train/learning_rate": self._updates.optimizer.param_groups[0]["lr"],
            "train/updates": float(self.update_steps),
            "replay/beta": self.experience.beta(self.env_steps),
            "replay/size": float(len(self.memory)),
            "replay/priority_max": self.memory.priority_max,
            "replay/is_weight_mean": batch["is_weight_mean"],
            "replay/effective_sample_size": batch["effective_sample_size"],
            "replay/age_mean": batch["age_mean"],
            "time/env_steps_per_second": steps / seconds if seconds > 0 else 0.0,
        }
        if episodes["num_episodes"]:
            metrics["rollout/return_mean"] = episodes["mean"]
            metrics["rollout/length_mean"] = episodes["length_mean"]
        if self._health.is_due(self.update_steps):
            metrics |= self._health.look(self)
        self._log(metrics)

    # -- state -----------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Counters always; what continues a run bit for bit only beside the optimiser's state."""
        state: dict[str, Any] = {
            "version": STATE_VERSION,
            "env_steps": self.env_steps,
            "episodes": self.episodes,
            "update_steps": self.update_steps,
            "evaluated_at": self._evaluated_at,
            "evaluations": [tuple(evaluation) for evaluation in self.evaluations],
            "recent_episodes": self.recent_episodes.window_state(),
        }
        if "optimizer_states" in checkpoint:
            state["experience"] = self.experience.capture()
            if not saving_parts():
                state["replay"] = self.memory.state_dict()
            state["num_threads"] = self.num_threads
            state["backend"] = self.backend
            state["noise"] = self._noise.get_state()
            state["global_rng"] = get_global_rng()
            state["health"] = self._health.state_dict()
        checkpoint[STATE_KEY] = state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the counters and, to go on training, replay, episodes in progress and RNG streams.

        With another seed than the checkpoint's, every stream begins anew: the same past, another future.

        Raises:
            ValueError: the checkpoint is not ours, or of a newer version.
        """
        state = checkpoint.get(STATE_KEY)
        if state is None:
            raise ValueError("this checkpoint was not written by PERDQN: it has no perdqn entry")
        if state["version"] > STATE_VERSION:
            raise ValueError(
                f"the checkpoint has format {state['version']}, "
                f"this perdqn reads up to {STATE_VERSION}; upgrade"
            )
        self.update_steps = state["update_steps"]
        self._evaluated_at = state["evaluated_at"]
        self.evaluations = [Evaluation(*evaluation) for evaluation in state["evaluations"]]
        self.recent_episodes.load_window_state(state["recent_episodes"])
        saved, now = checkpoint["hyper_parameters"]["learner"], self.config.learner
        settings = {"lr": "learning_rate", "eps": "adam_eps"}
        self._changed_in_optimizer = {
            key: (saved[name], getattr(now, name))
            for key, name in settings.items()
            if saved[name] != getattr(now, name)
        }
        is_fitting = self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if is_fitting and self._load_replay(checkpoint):
            seed = checkpoint["hyper_parameters"]["seed"]
            has_other_seed = seed != self.config.seed
            self.experience.restore(state["experience"], seed if has_other_seed else None)
            self.num_threads = self.config.learner.num_threads or state["num_threads"]
            self._updates.backend = state.get("backend", "eager")
            if has_other_seed:
                self.memory.reseed(self._sampler_seed)
                self._keep_global_rng(checkpoint)
            else:
                self._noise.set_state(state["noise"])
                self._global_rng = state["global_rng"]
            if "health" in state:
                self._health.load_state_dict(state["health"])
            return
        self.experience.restart(state["env_steps"], state["episodes"])
        if is_fitting:
            warnings.warn(
                "the checkpoint holds no replay: training warms up again before it goes on, "
                "and will differ from a run that was never interrupted",
                stacklevel=2,
            )

    def _keep_global_rng(self, checkpoint: dict[str, Any]) -> None:
        """Let nobody put the global streams back, holdfast included."""
        self._global_rng = get_global_rng()
        if exact := checkpoint.get("holdfast", {}).get("exact"):
            exact["rng"] = self._global_rng

    def _load_replay(self, checkpoint: dict[str, Any]) -> bool:
        """Whether the checkpoint has one, inside it or in parts beside it."""
        if "replay" in checkpoint[STATE_KEY]:
            self.memory.load_state_dict(checkpoint[STATE_KEY]["replay"])
            return True
        path = self.trainer.ckpt_path
        return path is not None and load_parts("module", self, checkpoint, Path(path).resolve().parent)

    def save_parts(self, store: PartStore) -> dict[str, Any]:
        """Write what the replay has new; part of holdfast's `Stateful`."""
        return self.memory.save_parts(store)

    def load_parts(self, store: PartStore, entry: dict[str, Any]) -> None:
        """Read the replay back."""
        self.memory.load_parts(store, entry)

    # -- advice ----------------------------------------------------------------------------------

    def advice_rules(self) -> Sequence[Rule]:
        """Those of value-based learning; docs/advice.md."""
        return RULES

    def advice_signals(self) -> dict[str, float]:
        """What was logged last, health included; nothing where `metrics_watch` has heard of it."""
        return {} if self.metrics_watch is not None else dict(self.latest)

    def advice_settings(self) -> dict[str, Any]:
        """Its settings, as ``model.learner.gamma``."""
        return settings_of(self)

    def adaptable_settings(self) -> dict[str, Adaptable]:
        """Those that may change while the run goes on."""
        return adaptable_settings(self)

    def remedies(self) -> dict[str, str]:
        """What to try where PerformanceMonitor names a bottleneck."""
        return REMEDIES

    # -- diagnosis and handover ------------------------------------------------------------------

    def timed_methods(self) -> list[tuple[Any, str, str]]:
        """Where a step's own time goes; part of holdfast's `TellsItsPhases`."""
        return [
            (self, "training_step", "loop/groups of updates"),
            *self.experience.timed_methods(),
            (self.memory, "update_priorities", "replay/priority update"),
            (self, "to_device", "transfer/transfer"),
            (self, "_update", "forward/one update's own"),
            (self, "_act_ahead", "acting/acting ahead"),
            *self._updates.timed_methods(),
            (self, "_update_target", "optimiser/target network"),
            (self, "_log", "logging/logging"),
        ]

    def get_training_diagnostics(self) -> dict[str, Any]:
        """Progress, replay, Q-values, TD errors, gradients, schedules, device; see `training_diagnostics`."""
        return training_diagnostics(self)

    def save_model(
        self,
        path: str | Path,
        save_optimizer: bool = True,
        include_memory: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the agent to one file; see `perdqn.handover.save_model`."""
        save_model(self, path, save_optimizer, include_memory, metadata)

    def load_model(
        self, path: str | Path, strict: bool = True, device_override: str | torch.device | None = None
    ) -> dict[str, Any]:
        """Take over an agent from such a file, and return its metadata; see `perdqn.handover.load_model`."""
        return load_model(self, path, strict, device_override)
