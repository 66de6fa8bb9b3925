"""Experience as a dataset: act what is owed, then sample. Nothing is prefetched.

Knows nothing about losses, Lightning or what is done with a batch.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from perdqn.acting.actor import Actor, Policy
from perdqn.acting.environment import episode_seed
from perdqn.acting.vector import Environments
from perdqn.config import Config
from perdqn.replay.prioritized import PrioritizedReplay
from perdqn.schedules import LinearSchedule
from perdqn.transition import EnvSpec, TransitionBatch

_MAX_ENV_STEPS_PER_FETCH = 1_000  # so that a long warm-up has boundaries in it


class PrioritizedReplayDataset(IterableDataset[TransitionBatch | None]):
    """Yields a batch for every update owed, acting in between; None where a fetch owes none yet.

    Updates owed are a pure function of counters: floor((env_steps - warm-up) / train_every) less
    those handed out, so any number of environments fits any period, and nothing is lost on resume.
    No fetch acts beyond ``pause_at``, an env step at which somebody wants to look.

    Args:
        config: of the run.
        spec: of its environments.
        replay: rows go in, batches come out.
        policy: greedy actions for the actor.
        on_episode: called with the return and length of every finished training episode.
    """

    def __init__(
        self,
        config: Config,
        spec: EnvSpec,
        replay: PrioritizedReplay,
        policy: Policy,
        on_episode: Callable[[float, int], None] = lambda total, length: None,
    ) -> None:
        self._config, self._spec, self._replay, self._policy = config, spec, replay, policy
        self._on_episode = on_episode
        explore, replay_config = config.exploration, config.replay
        self.epsilon = LinearSchedule(explore.epsilon_start, explore.epsilon_end, explore.epsilon_env_steps)
        self.beta = LinearSchedule(
            replay_config.beta_start, replay_config.beta_end, replay_config.beta_env_steps
        )
        self.learning_from = config.learner.warmup_env_steps
        self.pause_at: int | None = None
        self.scales_images = False  # see `PrioritizedReplay.sample`
        self.env_steps = self.updates_issued = self.episodes = 0
        self._environments: Environments | None = None
        self._actor: Actor | None = None
        self._saved: dict[str, Any] | None = None

    @property
    def updates_owed(self) -> int:
        """Updates due at this env step and not yet handed out."""
        past_warmup = self.env_steps - self.learning_from
        if past_warmup < 0 or len(self._replay) < self._config.learner.batch_size:
            return 0
        return math.floor(past_warmup / self._config.learner.train_every) - self.updates_issued

    @property
    def is_spent(self) -> bool:
        """Whether the budget in env steps or episodes is used up."""
        total_env_steps, total_episodes = self._config.total_env_steps, self._config.total_episodes
        return (total_env_steps is not None and self.env_steps >= total_env_steps) or (
            total_episodes is not None and self.episodes >= total_episodes
        )

    def __iter__(self) -> Iterator[TransitionBatch | None]:
        while True:
            yield self.fetch()

    def fetch(self) -> TransitionBatch | None:
        """A batch for the next update owed, acting until there is one; None where none comes for now."""
        if not self.act_until_owed():
            return None
        self.updates_issued += 1
        return self._replay.sample(
            self._config.learner.batch_size, self.beta(self.env_steps), self.scales_images
        )

    def act_until_owed(self) -> bool:
        """Act until an update is owed; whether one is, where the acting ends for another reason."""
        last = self.env_steps + _MAX_ENV_STEPS_PER_FETCH
        if self.pause_at is not None:
            last = min(last, self.pause_at)
        while self.updates_owed <= 0:
            if self.is_spent or self.env_steps >= last:
                return False
            self._act()
        return True

    def _act(self) -> None:
        if self._actor is None:
            self._actor = self._open()
        self._actor.step(self.epsilon(self.env_steps))
        before, self.env_steps = self.env_steps, self.env_steps + self._config.env.num_envs
        period = self._config.replay.cleanup_env_steps
        if period is not None and before // period < self.env_steps // period:
            self._clean_up()

    def _clean_up(self) -> None:
        self._replay.release_memory()
        usage = self._replay.get_memory_usage()
        if usage["alert"]:
            warnings.warn(
                f"{usage['limit_fraction']:.0%} of the memory limit of "
                f"{usage['limit_bytes'] / 2**30:.1f} GiB is in use; "
                "lower model.replay.capacity before the run is killed",
                UserWarning,
                stacklevel=2,
            )

    def _open(self) -> Actor:
        """Make the environments, and bring them back to where they were saved."""
        seed = self._config.seed
        environments = Environments(
            self._config.env,
            self._spec,
            self._config.env.num_envs,
            lambda env, episode: episode_seed(seed, "train", env, episode),
        )
        actor = Actor(
            environments,
            self._replay,
            self._policy,
            self._note_episode,
            seed=int(np.random.SeedSequence([seed, 1]).generate_state(1)[0]),
        )
        self._environments = environments
        if self._saved is None:
            environments.reset()
            return actor
        actor.load_state_dict(self._saved["actor"])
        lost = environments.load_state_dict(self._saved["environments"])
        if lost.any():
            warnings.warn(
                f"{int(lost.sum())} of {lost.size} episodes in progress could not be played again as they "
                "were: they are cut as truncated, and the run goes on with new ones",
                RuntimeWarning,
                stacklevel=2,
            )
            actor.abandon(lost, self._saved["environments"]["frames"])
        return actor

    def _note_episode(self, total: float, length: int) -> None:
        self.episodes += 1
        self._on_episode(total, length)

    def timed_methods(self) -> list[tuple[Any, str, str]]:
        """Owner, method and phase of what a fetch consists of."""
        return [
            (self, "fetch", "replay/what is owed"),
            (self._replay, "add", "replay/add"),
            (self._replay, "sample", "replay/sample"),
            *([] if self._actor is None else self._actor.timed_methods()),
        ]

    def close(self) -> None:
        """Close the environments; acting again continues where it stopped."""
        if self._environments is not None:
            self._saved = self._acting_state()
            self._environments.close()
        self._environments = self._actor = None

    def _acting_state(self) -> dict[str, Any] | None:
        if self._environments is None or self._actor is None:
            return self._saved
        return {"environments": self._environments.state_dict(), "actor": self._actor.state_dict()}

    # Not named state_dict: Lightning would save a second copy and drop it on some paths.
    def capture(self) -> dict[str, Any]:
        """Counters and the episodes in progress, as plain values and tensors."""
        learner = self._config.learner
        return {
            "counters": (self.env_steps, self.updates_issued, self.episodes, self.learning_from),
            "pace": (learner.train_every, learner.warmup_env_steps),
            "acting": self._acting_state(),
        }

    def restore(self, state: dict[str, Any], seed: int | None = None) -> None:
        """Continue where `capture` was called; environments follow when they are needed.

        Args:
            seed: of the run that was captured, where it is another one now: exploration and new episodes are
                of the new one then, and episodes in progress go on as they are.
        """
        self.env_steps, self.updates_issued, self.episodes, self.learning_from = state["counters"]
        self._keep_pace(*state["pace"])
        self._environments = self._actor = None
        self._saved = state["acting"]
        if self._saved is not None and seed is not None:
            self._saved = _reseeded(self._saved, seed)

    def _keep_pace(self, train_every: float, warmup_env_steps: int) -> None:
        """Let another ``train_every`` or warm-up count from here on, not for what has been acted already."""
        learner = self._config.learner
        if self.env_steps < self.learning_from:
            self.learning_from += learner.warmup_env_steps - warmup_env_steps
        elif learner.train_every != train_every:
            owed = math.floor((self.env_steps - self.learning_from) / train_every) - self.updates_issued
            self.learning_from, self.updates_issued = self.env_steps, -owed

    def restart(self, env_steps: int, episodes: int) -> None:
        """Count on from a run whose replay is not at hand: warm up once more before learning goes on."""
        self.env_steps, self.episodes, self.updates_issued = env_steps, episodes, 0
        self.learning_from = env_steps + self._config.learner.warmup_env_steps


def _reseeded(acting: dict[str, Any], seed: int) -> dict[str, Any]:
    """Without the stream of exploration, and with the seeds of episodes begun under ``seed``."""
    environments, actor = acting["environments"], acting["actor"]
    begun = [episode_seed(seed, "train", env, int(n)) for env, n in enumerate(environments["episode"])]
    return {
        "environments": {"seeds": begun, **environments},
        "actor": {name: value for name, value in actor.items() if name != "rng"},
    }
