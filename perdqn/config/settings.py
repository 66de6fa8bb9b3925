"""The settings of a run, as plain dataclasses.

Knows nothing about torch, Lightning or Gymnasium: whatever reads a setting, imports this file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

TORSO_NAMES = ("auto", "mlp", "nature_cnn", "minatar_cnn")
HEAD_NAMES = ("expected",)


@dataclass
class ClassSpec:
    """A class or function named by import path, and its keyword arguments.

    Args:
        class_path: ``package.module.Name``, or a short name where the setting lists some.
        init_args: keyword arguments, passed on as they are.
    """

    class_path: str
    init_args: dict[str, Any] = field(default_factory=dict)


@dataclass
class EnvConfig:
    """Where the agent acts.

    Args:
        id: a Gymnasium id, or the import path of an environment class or factory.
        kwargs: keyword arguments of the environment.
        num_envs: environments stepped side by side.
        vectorization: ``sync`` in this process, ``async`` one process each, ``native`` the
            environment's own vector version (ALE), ``auto`` native where it can be resumed, else sync.
        wrappers: applied in order, the first one innermost.
        frame_stack: newest frames joined along a new leading axis; 1 leaves observations alone.
        stack_padding: what stands before an episode's first frame: ``zero`` frames, or it ``repeat``-ed.
        max_restarts: how often a failing environment is rebuilt before the run ends.
    """

    id: str = "CartPole-v1"
    kwargs: dict[str, Any] = field(default_factory=dict)
    num_envs: int = 1
    vectorization: Literal["auto", "sync", "async", "native"] = "auto"
    wrappers: list[ClassSpec] = field(default_factory=list)
    frame_stack: int = 1
    stack_padding: Literal["zero", "repeat"] = "zero"
    max_restarts: int = 10


@dataclass
class ReplayConfig:
    """What is remembered, and how often it is seen again (arXiv:1511.05952).

    Args:
        capacity: physical rows over all environments.
        prioritized: false draws uniformly, for comparison.
        alpha: priority exponent; 0 is uniform.
        beta_start: importance exponent at the first env step.
        beta_end: importance exponent from ``beta_env_steps`` on.
        beta_env_steps: env steps over which beta is annealed.
        priority_eps: added to every new priority, so that none is ever zero.
        priority_clip: upper bound of a priority before the exponent; null leaves it free.
        weight_normalization: divide importance weights by the ``batch``'s largest or the ``buffer``'s.
        storage: how frames lie in memory: ``raw``, or each image of bytes compressed by ``lz4`` (an extra),
            10 to 30 times smaller in most Atari games; changes the cost, never the result.
        cached_frames: compressed frames kept decompressed; pays where few rows are drawn again and again.
        device: where batches are drawn: ``host``, or ``learner``, which keeps a copy of the replay where the
            networks are, so that a GPU waits for no batch. On the CPU: the same bits, slower.
        memory_alert_fraction: share of the memory limit above which a clean-up warns.
        cleanup_env_steps: env steps between two clean-ups, which return unused memory to the system;
            null turns them off.
    """

    capacity: int = 100_000
    prioritized: bool = True
    alpha: float = 0.6
    beta_start: float = 0.4
    beta_end: float = 1.0
    beta_env_steps: int = 100_000
    priority_eps: float = 1e-6
    priority_clip: float | None = None
    weight_normalization: Literal["batch", "buffer"] = "batch"
    storage: Literal["raw", "lz4"] = "raw"
    cached_frames: int = 0
    device: Literal["host", "learner"] = "host"
    memory_alert_fraction: float = 0.9
    cleanup_env_steps: int | None = 100_000


@dataclass
class LearnerConfig:
    """How the Q-network is trained.

    Args:
        learning_rate: Adam's step size.
        adam_eps: Adam's denominator offset.
        batch_size: transitions per update.
        gamma: discount per env step.
        n_step: rewards summed before bootstrapping.
        train_every: env steps per update; 0.5 makes two updates a step.
        warmup_env_steps: env steps before the first update; changes nothing once that was made.
        updates_per_step: updates per Lightning training step; changes the cost, never the result.
        double: choose the next action with the online network (arXiv:1509.06461).
        dueling: value and advantage streams (arXiv:1511.06581).
        loss: ``huber`` or ``squared``, weighted by importance.
        huber_delta: where the Huber loss turns linear.
        reward_clip: rewards are clipped to [-c, c] when sampled; null leaves them alone.
        target_update_period: updates between two updates of the target network.
        target_tau: share of the online network taken over then; 1 copies it.
        max_grad_norm: gradients are scaled down to this norm; null leaves them alone.
        num_threads: torch threads while training; null is 1 for vectors and small images, and torch's
            own choice for large ones. A resumed run keeps the number it began with.
        act_ahead: act for the next update while one is computed, with the network as it was before that
            one; as exact and resumable as without. Pays where a second core or a GPU computes updates.
        backend: how an update is computed: ``eager`` step by step; ``compiled`` as one graph, several times
            faster for small networks, once it was compiled by the C++ compiler of the machine; ``auto``
            compiles where the budget makes it worth while. A resumed run keeps what it began with.
    """

    learning_rate: float = 1e-4
    adam_eps: float = 1e-8
    batch_size: int = 32
    gamma: float = 0.99
    n_step: int = 1
    train_every: float = 4.0
    warmup_env_steps: int = 1_000
    updates_per_step: int = 16
    double: bool = True
    dueling: bool = True
    loss: Literal["huber", "squared"] = "huber"
    huber_delta: float = 1.0
    reward_clip: float | None = None
    target_update_period: int = 1_000
    target_tau: float = 1.0
    max_grad_norm: float | None = 10.0
    num_threads: int | None = None
    act_ahead: bool = False
    backend: Literal["auto", "eager", "compiled"] = "auto"


@dataclass
class ExplorationConfig:
    """Epsilon-greedy exploration, annealed linearly in env steps."""

    epsilon_start: float = 1.0
    epsilon_end: float = 0.05
    epsilon_env_steps: int = 10_000


@dataclass
class EvaluationConfig:
    """Greedy evaluation on seeds, environments and random numbers of its own.

    Args:
        every_env_steps: env steps between two evaluations; null turns them off.
        episodes: episodes of one evaluation (`validate`), always the same ones.
        test_episodes: episodes of the final evaluation (`test`), never used to choose anything.
        num_envs: episodes played side by side.
        epsilon: share of random actions.
        stop_at_return: end training once an evaluation's mean return reaches this; null never does.
        max_episode_steps: an episode is cut after this many steps.
    """

    every_env_steps: int | None = 10_000
    episodes: int = 10
    test_episodes: int = 100
    num_envs: int = 10
    epsilon: float = 0.0
    stop_at_return: float | None = None
    max_episode_steps: int = 30_000


@dataclass
class Config:
    """All settings of one run: the arguments of `PERDQN`.

    Args:
        network: torso; ``auto`` picks by observation, else ``mlp``, ``nature_cnn``, ``minatar_cnn``
            or a class path.
        head: ``expected`` or a class path.
        total_env_steps: budget in env steps; null where ``total_episodes`` is the budget.
        total_episodes: budget in finished training episodes.
        seed: every random number of the run derives from it.
    """

    env: EnvConfig = field(default_factory=EnvConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    exploration: ExplorationConfig = field(default_factory=ExplorationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    network: ClassSpec = field(default_factory=lambda: ClassSpec("auto"))
    head: ClassSpec = field(default_factory=lambda: ClassSpec("expected"))
    total_env_steps: int | None = 100_000
    total_episodes: int | None = None
    seed: int = 0
