"""An obviously right replay: whole episodes in Python lists, everything derived anew when asked.

Knows nothing about rings, slots or trees; it only counts rows to tell which have been forgotten.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Episode:
    """Steps so far; ``frames`` holds one more than ``actions`` once the episode has ended."""

    first_row: int
    frames: list = field(default_factory=list)  # dicts of columns
    actions: list = field(default_factory=list)
    rewards: list = field(default_factory=list)
    terminated: bool = False
    ended: bool = False


@dataclass
class Transition:
    obs: dict
    action: int
    reward: float
    discount: float
    next_obs: dict


class SlowReplay:
    """Same rules as `perdqn.replay.prioritized.PrioritizedReplay`, at any cost."""

    def __init__(
        self,
        num_envs,
        ring_length,
        n_step=1,
        gamma=0.9,
        frame_stack=1,
        stack_padding="zero",
        reward_clip=np.inf,
        priority_eps=1e-6,
        priority_clip=np.inf,
    ):
        self.num_envs, self.ring_length, self.n_step, self.gamma = num_envs, ring_length, n_step, gamma
        self.frame_stack, self.stack_padding, self.reward_clip = frame_stack, stack_padding, reward_clip
        self.priority_eps, self.priority_clip = priority_eps, priority_clip
        self.episodes = [[Episode(0)] for _ in range(num_envs)]
        self.rows_written = [0] * num_envs
        self._transitions = {}
        self.entered = {}  # id -> priority it came in with
        self.measured = {}  # id -> priority somebody reported
        self.draws = Counter()  # by id

    def add(self, frames, action, reward, terminated, truncated, final_frames):
        for env in range(self.num_envs):
            episode = self.episodes[env][-1]
            episode.frames.append(_single(frames, env))
            episode.actions.append(int(action[env]))
            episode.rewards.append(float(np.float32(reward[env])))
            self.rows_written[env] += 1
        self._settle()
        ended = terminated | truncated
        for env in np.flatnonzero(ended):
            self.episodes[env][-1].terminated = bool(terminated[env])
            self._end(env, _single(final_frames, env))
        if ended.any():
            self._settle()

    def cut(self, env, frames):
        if self.episodes[env][-1].actions:
            self._end(env, frames)
            self._settle()

    def _end(self, env, frames):
        self.episodes[env][-1].frames.append(frames)
        self.episodes[env][-1].ended = True
        self.rows_written[env] += 1
        self.episodes[env].append(Episode(self.rows_written[env]))

    def update(self, ids, priorities):
        eligible = self.transitions()
        is_first = not self.measured
        for item, priority in zip(ids, priorities, strict=True):
            if item in eligible:
                self.measured[item] = min(priority + self.priority_eps, self.priority_clip)
        if is_first and self.measured:
            for item in set(self.entered) - set(self.measured):
                self.entered[item] = self.maximum

    @property
    def maximum(self):
        return max(self.measured.values(), default=1.0)

    @property
    def priorities(self):
        return {**self.entered, **self.measured}

    def _settle(self):
        """Forget the dead, then let the newly eligible enter at the running maximum."""
        eligible = self._transitions = self._find_transitions()
        self.measured = {item: p for item, p in self.measured.items() if item in eligible}
        maximum = self.maximum
        self.entered = {item: self.entered.get(item, maximum) for item in eligible}

    def transitions(self):
        """Every id that may start a transition, and that transition."""
        return self._transitions

    def _find_transitions(self):
        found = {}
        for env in range(self.num_envs):
            oldest = self.rows_written[env] - self.ring_length
            is_alive = [episode.first_row + len(episode.frames) > oldest for episode in self.episodes[env]]
            self.episodes[env] = self.episodes[env][is_alive.index(True) :]
            for episode in self.episodes[env]:
                for t in range(len(episode.actions)):
                    oldest_needed = episode.first_row + max(0, t - self.frame_stack + 1)
                    transition = self._transition(episode, t)
                    if oldest_needed >= oldest and transition is not None:
                        found[(episode.first_row + t) * self.num_envs + env] = transition
        return found

    def _transition(self, episode, t):
        num_steps = min(self.n_step, len(episode.actions) - t) if episode.ended else self.n_step
        if t + num_steps >= len(episode.frames):
            return None
        rewards = np.clip(episode.rewards[t : t + num_steps], -self.reward_clip, self.reward_clip)
        reaches_terminal = episode.terminated and t + num_steps == len(episode.actions)
        return Transition(
            obs=self._stack(episode, t),
            action=episode.actions[t],
            reward=sum(self.gamma**i * r for i, r in enumerate(rewards)),
            discount=0.0 if reaches_terminal else self.gamma**num_steps,
            next_obs=self._stack(episode, t + num_steps),
        )

    def _stack(self, episode, t):
        if self.frame_stack == 1:
            return episode.frames[t]
        times = range(t - self.frame_stack + 1, t + 1)
        return {name: np.stack([self._frame(episode, i, name) for i in times]) for name in episode.frames[0]}

    def _frame(self, episode, t, name):
        if t >= 0 or self.stack_padding == "repeat":
            return episode.frames[max(t, 0)][name]
        return np.zeros_like(episode.frames[0][name])


def _single(frames, env):
    return {name: np.array(column[env]) for name, column in frames.items()}
