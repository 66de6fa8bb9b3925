"""Tiny environments whose every number can be predicted, and some that misbehave on schedule.

Knows nothing about perdqn; configurations name them as ``toys.Counting`` and so on.
"""

import gymnasium
import numpy as np
from gymnasium import spaces


class Counting(gymnasium.Env):
    """Shows (seed of the episode, step, noise); pays 10 * action + step.

    Ends after ``length + seed % spread`` steps, ``terminated``, ``truncated`` or ``both``. The noise
    follows from the seed and the actions, as in a real environment.
    """

    def __init__(self, length=5, spread=1, ending="terminated", num_actions=3, action_start=0):
        self.length, self.spread, self.ending = length, spread, ending
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = spaces.Discrete(num_actions, start=action_start)
        self.seed, self.step_number, self.noise = -1, 0, 0.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.step_number, self.noise = seed, 0, self.np_random.random()
        return self.observe(), {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action} is no action of {self.action_space}"
        self.step_number += 1
        self.noise += self.np_random.random() * int(action)
        has_ended = self.step_number >= self.length + self.seed % self.spread
        terminated = has_ended and self.ending in ("terminated", "both")
        truncated = has_ended and self.ending in ("truncated", "both")
        return self.observe(), 10.0 * int(action) + self.step_number, terminated, truncated, {"unused": 1}

    def observe(self):
        return np.array([self.seed, self.step_number, self.noise], np.float32)


class Faulty(Counting):
    """Misbehaves at ``faults``: a list of [seed, step, what], step 0 being the reset.

    ``raise`` in `step` or `reset`; ``raise if used`` in the reset of an environment that was reset
    before; ``nan`` in the observation, ``torn`` by writing into an observation handed out earlier;
    ``nan reward``.
    """

    def __init__(self, faults=(), **kwargs):
        super().__init__(**kwargs)
        self.faults = {(seed, step): what for seed, step, what in faults}
        self.is_used = False
        self.buffer = np.zeros(3, np.float32)

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        what = self.faults.get((seed, 0))
        if what == "raise" or (what == "raise if used" and self.is_used):
            raise OSError("cannot reset")
        self.is_used = True
        return (obs * np.nan if what == "nan" else obs), info

    def step(self, action):
        obs, reward, *rest = super().step(action)
        what = self.faults.get((self.seed, self.step_number))
        if what == "raise":
            raise OSError("the simulator crashed")
        if what == "torn":
            obs[:] = np.nan
        if what == "nan":
            obs = obs * np.nan
        return obs, (np.nan if what == "nan reward" else reward), *rest

    def observe(self):
        self.buffer[:] = super().observe()
        return self.buffer


class Leaky(Counting):
    """The noise survives a seeded reset."""

    def reset(self, *, seed=None, options=None):
        noise = self.noise
        super().reset(seed=seed)
        self.noise += noise
        return self.observe(), {}


class LateLeak(Counting):
    """From the reset after ``num_ends`` episodes on, the noise is another one at ``leaks_at`` steps."""

    def __init__(self, num_ends=2, leaks_at=0, **settings):
        super().__init__(**settings)
        self.num_ends, self.leaks_at, self.ends = num_ends, leaks_at, 0

    def step(self, action):
        outcome = super().step(action)
        self.ends += outcome[2] or outcome[3]
        return outcome

    def observe(self):
        leaks = self.ends >= self.num_ends and self.step_number == self.leaks_at
        return super().observe() + np.float32(leaks)


class Noisy(Counting):
    """Begins as its seed says; each step draws from what no seed sets."""

    def step(self, action):
        self.noise += np.random.default_rng().normal()
        return super().step(action)


class Pixels(Counting):
    """Shows (step, noise) as a picture of bytes."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.observation_space = spaces.Box(0, 255, (10, 10), np.uint8)

    def observe(self):
        picture = np.full((10, 10), self.step_number, np.uint8)
        picture[3] = int(97 * self.noise) % 256
        return picture


class Mapping(Counting):
    """A flat Dict: a picture, a position among 4 counted from 2, and the vector."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.observation_space = spaces.Dict(
            picture=spaces.Box(0, 255, (2, 2, 1), np.uint8),
            position=spaces.Discrete(4, start=2),
            vector=self.observation_space,
        )

    def observe(self):
        picture = np.full((2, 2, 1), self.step_number, np.uint8)
        return {"picture": picture, "position": 2 + self.step_number % 4, "vector": super().observe()}


class Stepping(Counting):
    """Shows the step alone, as a Discrete observation counted from 3."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.observation_space = spaces.Discrete(self.length + 1, start=3)

    def observe(self):
        return 3 + self.step_number


class Continuous(Counting):
    """Actions nobody here can choose among."""

    def __init__(self):
        super().__init__()
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)


class Nested(Counting):
    """A Dict within a Dict."""

    def __init__(self):
        super().__init__()
        self.observation_space = spaces.Dict(inner=spaces.Dict(vector=self.observation_space))


class Corridor(gymnasium.Env):
    """Shows the place among ``length``; right of the last one lies a reward of 1, which ends the episode."""

    def __init__(self, length=5, time_limit=30):
        self.length, self.time_limit = length, time_limit
        self.observation_space, self.action_space = spaces.Discrete(length + 1), spaces.Discrete(2)
        self.place = self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.steps = 0
        return self.place, {}

    def step(self, action):
        self.place, self.steps = max(0, self.place + (1 if action == 1 else -1)), self.steps + 1
        has_arrived = self.place == self.length
        return self.place, float(has_arrived), has_arrived, self.steps >= self.time_limit, {}


class HalfSpeed(gymnasium.Wrapper):
    """Takes every action ``times`` times."""

    def __init__(self, env, times=2):
        super().__init__(env)
        self.times = times

    def step(self, action):
        for _ in range(self.times):
            outcome = self.env.step(action)
        return outcome


def make_counting(length=7):
    """A factory."""
    return Counting(length=length)


def not_an_environment():
    return "nothing"
