"""What the settings must be beside each other: rules over several of them, each with its finding.

Knows nothing about single settings: a rule is asked only where each of its settings is fine alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from perdqn.config.values import DEFAULTS
from perdqn.config.wording import sentence


class Fault(str):
    """It cannot work."""


class Unwise(str):
    """It works, and is hardly what was meant."""


Finding = Fault | Unwise


@dataclass(frozen=True)
class Rule:
    """A judgement over several settings, made only where each of them is fine alone."""

    keys: tuple[str, ...]
    judge: Callable[..., Iterator[Finding]]


RULES: list[Rule] = []
Judge = Callable[..., Iterator[Finding]]


def rule(*keys: str) -> Callable[[Judge], Judge]:
    """The function judges the values of these settings, in this order."""

    def register(judge: Judge) -> Judge:
        RULES.append(Rule(keys, judge))
        return judge

    return register


def _fault(key: str, must: str, value: Any, remedy: str) -> Fault:
    return Fault(sentence(f"model.{key}", must, value, remedy))


def _beyond(key: str, must: str, value: Any, remedy: str) -> Finding:
    """A period longer than the budget: a fault where chosen, a warning where a default was left alone."""
    return (Unwise if value == DEFAULTS[key] else Fault)(sentence(f"model.{key}", must, value, remedy))


@rule("total_env_steps", "total_episodes")
def _one_budget(env_steps: int | None, episodes: int | None) -> Iterator[Finding]:
    if env_steps is None and episodes is None:
        yield Fault("model.total_env_steps and model.total_episodes are both null; set exactly one of them")
    elif env_steps is not None and episodes is not None:
        yield Fault(
            f"model.total_env_steps ({env_steps}) and model.total_episodes ({episodes}) are both set; "
            "set exactly one and the other to null"
        )


@rule("learner.warmup_env_steps", "replay.capacity")
def _warmup_below_capacity(warmup: int, capacity: int) -> Iterator[Finding]:
    if warmup >= capacity:
        must = f"be below model.replay.capacity ({capacity})"
        remedy = f"use at most {capacity - 1}, or a larger replay"
        yield _fault("learner.warmup_env_steps", must, warmup, remedy)


@rule("learner.warmup_env_steps", "learner.train_every", "total_env_steps")
def _budget_trains(warmup: int, train_every: float, budget: int | None) -> Iterator[Finding]:
    if budget is None:
        return
    if warmup >= budget:
        must = f"be below model.total_env_steps ({budget})"
        remedy = f"use about {max(1, budget // 10)}, or a larger budget"
        yield _fault("learner.warmup_env_steps", must, warmup, remedy)
    elif not updates_in_budget(warmup, train_every, budget):
        must = f"leave room for an update in the {budget - warmup} env steps after the warm-up"
        yield _fault("learner.train_every", must, train_every, "use 4, or raise model.total_env_steps")
    elif warmup > budget / 2:
        yield Unwise(f"model.learner.warmup_env_steps takes {warmup} of {budget} env steps without learning")


@rule("learner.batch_size", "learner.warmup_env_steps")
def _batch_within_warmup(batch_size: int, warmup: int) -> Iterator[Finding]:
    if batch_size > warmup:
        must = f"be at most model.learner.warmup_env_steps ({warmup}), for no batch can be drawn before"
        yield _fault("learner.batch_size", must, batch_size, f"raise the warm-up to {batch_size} or more")


@rule("learner.warmup_env_steps", "env.num_envs", "learner.n_step")
def _warmup_completes_a_transition(warmup: int, num_envs: int, n_step: int) -> Iterator[Finding]:
    needed = num_envs * (n_step + 1)
    if warmup < needed:
        must = f"give each of {num_envs} environments model.learner.n_step + 1 = {n_step + 1} steps"
        yield _fault("learner.warmup_env_steps", must, warmup, f"use at least {needed}")


@rule("replay.capacity", "env.num_envs", "learner.n_step", "env.frame_stack")
def _ring_holds_a_transition(
    capacity: int, num_envs: int, n_step: int, frame_stack: int
) -> Iterator[Finding]:
    needed = n_step + frame_stack + 2
    if capacity // num_envs < needed:
        must = f"hold n_step + frame_stack + 2 = {needed} rows for each of {num_envs} environments"
        yield _fault("replay.capacity", must, capacity, f"use at least {needed * num_envs}")


@rule("learner.target_update_period", "learner.warmup_env_steps", "learner.train_every", "total_env_steps")
def _target_moves(period: int, warmup: int, train_every: float, budget: int | None) -> Iterator[Finding]:
    updates = updates_in_budget(warmup, train_every, budget) if budget else None
    if not updates:
        return
    if period > updates:
        must = f"be at most {updates}, the updates in the budget, or the target network never moves"
        yield _beyond("learner.target_update_period", must, period, f"use about {max(1, updates // 20)}")
    elif period * 3 > updates:
        moves = f"moves the target network {updates // period} times in {updates} updates"
        yield Unwise(f"model.learner.target_update_period of {period} {moves}; use about {updates // 20}")


@rule(
    "replay.prioritized", "replay.beta_env_steps", "replay.beta_start", "replay.beta_end", "total_env_steps"
)
def _beta_arrives(
    prioritized: bool, steps: int, start: float, end: float, budget: int | None
) -> Iterator[Finding]:
    if start > end:
        must = f"be at most model.replay.beta_end ({end})"
        yield _fault("replay.beta_start", must, start, "use 0.4 and 1.0 for the paper's setting")
    elif prioritized and start < end and budget is not None and steps > budget:
        must = f"be at most model.total_env_steps ({budget}), or beta_end is never reached"
        yield _beyond("replay.beta_env_steps", must, steps, f"use {budget}")


@rule(
    "exploration.epsilon_start", "exploration.epsilon_end", "exploration.epsilon_env_steps", "total_env_steps"
)
def _epsilon_arrives(start: float, end: float, steps: int, budget: int | None) -> Iterator[Finding]:
    if start < end:
        yield Unwise(f"model.exploration.epsilon_end ({end}) is above epsilon_start ({start})")
    if start != end and budget is not None and steps > budget:
        must = f"be at most model.total_env_steps ({budget}), or epsilon_end is never reached"
        yield _beyond("exploration.epsilon_env_steps", must, steps, f"use about {max(1, budget // 10)}")


@rule("evaluation.every_env_steps", "evaluation.stop_at_return", "total_env_steps")
def _evaluation_happens(every: int | None, stop_at: float | None, budget: int | None) -> Iterator[Finding]:
    if every is None:
        if stop_at is not None:
            remedy = "set model.evaluation.every_env_steps, or this one to null"
            yield _fault("evaluation.stop_at_return", "be null where evaluations are off", stop_at, remedy)
    elif budget is not None and every > budget:
        must = f"be at most model.total_env_steps ({budget}), or no evaluation ever happens"
        yield _beyond("evaluation.every_env_steps", must, every, f"use about {max(1, budget // 10)}, or null")
    elif budget is not None and budget // every > 1_000:
        yield Unwise(f"model.evaluation.every_env_steps of {every} evaluates {budget // every} times")


@rule("env.num_envs", "total_env_steps")
def _each_env_acts(num_envs: int, budget: int | None) -> Iterator[Finding]:
    if budget is not None and num_envs > budget:
        must = f"be at most model.total_env_steps ({budget})"
        yield _fault("env.num_envs", must, num_envs, "use fewer environments or a larger budget")


@rule("replay.priority_clip", "replay.priority_eps")
def _priorities_differ(clip: float | None, eps: float) -> Iterator[Finding]:
    if clip is not None and clip <= eps:
        must = f"be above model.replay.priority_eps ({eps}), or all priorities are equal"
        yield _fault("replay.priority_clip", must, clip, "use 1.0, or null to leave priorities free")


@rule("replay.prioritized", "replay.alpha", "replay.beta_start", "replay.beta_end", "replay.beta_env_steps")
def _uniform_ignores(prioritized: bool, *given: float) -> Iterator[Finding]:
    names = ("alpha", "beta_start", "beta_end", "beta_env_steps")
    ignored = [f"model.replay.{n}" for n, v in zip(names, given, strict=True) if v != DEFAULTS[f"replay.{n}"]]
    if not prioritized and ignored:
        yield Unwise(f"model.replay.prioritized is false, so {', '.join(ignored)} have no effect")
    if prioritized and given[0] == 0:
        yield Unwise(
            "model.replay.alpha of 0 draws uniformly; so does model.replay.prioritized=false, faster"
        )


@rule("learner.target_update_period", "learner.target_tau")
def _target_lags(period: int, tau: float) -> Iterator[Finding]:
    if period == 1 and tau == 1:
        why = "with target_tau 1 leaves no target network; use 1000, or a tau of 0.005"
        yield Unwise(f"model.learner.target_update_period of 1 {why}")
    elif period > 100 and tau < 0.1:
        why = f"every {period} updates hardly moves the target network; use a period of 1, or a tau of 1"
        yield Unwise(f"model.learner.target_tau of {tau} {why}")


@rule("evaluation.num_envs", "evaluation.episodes", "evaluation.test_episodes")
def _evaluation_envs_play(num_envs: int, *episodes: int) -> Iterator[Finding]:
    if num_envs > max(episodes):
        yield Unwise(f"model.evaluation.num_envs of {num_envs} is more than there are episodes to play")


def updates_in_budget(warmup_env_steps: int, train_every: float, total_env_steps: int) -> int:
    """Updates that ``total_env_steps`` leave time for."""
    return max(0, int((total_env_steps - warmup_env_steps) / train_every))
