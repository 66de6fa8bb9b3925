"""How value-based learning is doing: figures of networks, values, priorities and episodes.

Knows nothing about what should be done about them; it reads a `PERDQN`, draws no random number and changes
nothing in it. Definitions, units and sources: docs/metrics.md.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from perdqn.formulas import (
    Floats,
    dormant_fraction,
    effective_rank,
    entropy,
    norm_of,
    ratio,
    realised_returns,
    weight_norm,
    weight_sample_size,
)
from perdqn.probe import NUM_LOOKED_AT, Ids, Networks, Probe, probe, spread, spread_ids
from perdqn.replay.rows import FINAL, TERMINATED, TRUNCATED, Rows

if TYPE_CHECKING:
    from perdqn.module import PERDQN

EVERY_UPDATES = 20_000  # between two looks, beside one with each evaluation; see docs/observability.md
DORMANT = 0.025  # of the layer's mean activation: arXiv:2302.12902
NUM_NEWEST = 2_048  # rows whose episodes are looked at
NUM_VALUED = 128  # of these, whose realised return is compared with their value
UNKNOWN = 0.05  # share of a truncated episode's value that may lie beyond its end

Figures = dict[str, float]


class Health:
    """Looks at a run now and then.

    What it remembers from one look to the next is saved with the run: which actions were greedy on which
    rows, and the largest gain of a layer at the first look.
    """

    def __init__(self, module: PERDQN) -> None:
        self._initial_norm = weight_norm(module.online)
        self._first_gain: float | None = None
        self._looked_at: int | None = None  # update of the last look
        self._actions: tuple[Ids, Ids] | None = None  # rows probed then, and the greedy actions on them

    def is_due(self, update_steps: int) -> bool:
        """Whether the last look is so long ago; by updates, so that a run repeats."""
        return self._looked_at is None or update_steps - self._looked_at >= EVERY_UPDATES

    def look(self, module: PERDQN) -> Figures:
        """`measure`, and remember it for the next look."""
        figures, seen = self._measure(module)
        self._looked_at = module.update_steps
        self._first_gain = figures["health/weight_gain_first"]
        if seen is not None:
            self._actions = (seen.ids, seen.q_values.argmax(1).cpu().numpy())
        return figures

    def measure(self, module: PERDQN) -> Figures:
        """Every figure that can be told now, named ``health/...``."""
        return self._measure(module)[0]

    def _measure(self, module: PERDQN) -> tuple[Figures, Probe | None]:
        figures = {
            "progress": _progress(module),
            "updates": float(module.update_steps),
            **_weights(module, self._initial_norm),
            **_optimizer(module),
        }
        figures["weight_gain_first"] = (
            figures["weight_gain"] if self._first_gain is None else self._first_gain
        )
        with Networks(module) as networks:
            seen = probe(module, networks)
            if seen is not None:
                figures |= {
                    **_layers(seen),
                    **_values(module, seen),
                    **_errors(module, seen),
                    **_inputs(seen),
                    **_replay(module),
                    **_episodes(module, networks, float(seen.q_values.abs().mean())),
                    "policy_churn": self._churn(module, networks),
                }
        return {f"health/{name}": value for name, value in figures.items() if not math.isnan(value)}, seen

    def _churn(self, module: PERDQN, networks: Networks) -> float:
        """Share of the rows probed last time, if still there, whose greedy action is another one now."""
        if self._actions is None:
            return math.nan
        ids, actions = self._actions
        there = module.memory.rows.may_start(ids)
        if not there.any():
            return math.nan
        now = networks.q_values(ids[there]).argmax(1).cpu().numpy()
        return float((now != actions[there]).mean())

    def state_dict(self) -> dict[str, Any]:
        actions = None if self._actions is None else [torch.from_numpy(part) for part in self._actions]
        return {"looked_at": self._looked_at, "actions": actions, "first_gain": self._first_gain}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._looked_at, actions = state["looked_at"], state["actions"]
        self._first_gain = state.get("first_gain", self._first_gain)
        self._actions = None if actions is None else (actions[0].numpy(), actions[1].numpy())


# -- figures -------------------------------------------------------------------------------------


def _progress(module: PERDQN) -> float:
    total = module.config.total_env_steps
    return module.env_steps / total if total else module.episodes / (module.config.total_episodes or 1)


def _layers(seen: Probe) -> Figures:
    """Of hidden layers the worst one counts."""
    sizes, rank = seen.activations, effective_rank(seen.features)
    silent = [float((layer == 0.0).double().mean()) for layer in sizes]
    return {
        "dormant_fraction": max((dormant_fraction(layer, DORMANT) for layer in sizes), default=math.nan),
        "dead_fraction": max(silent, default=math.nan),
        "num_features": float(seen.features.shape[1]),
        "feature_rank": float(rank),
        "feature_rank_fraction": rank / min(seen.features.shape),
    }


def _values(module: PERDQN, seen: Probe) -> Figures:
    q_values, gamma = seen.q_values.double(), module.config.learner.gamma
    size = float(q_values.abs().mean())
    rows, ends = module.memory.rows, seen.discount == 0.0
    largest = float(np.abs(rows.rewards).clip(max=rows.reward_clip).max())
    bound = largest / (1 - gamma) if gamma < 1 else math.nan
    best = q_values.topk(min(2, q_values.shape[1]), dim=1).values
    gap = float((best[:, 0] - best[:, -1]).mean())
    return {
        "q_abs_max": float(q_values.abs().max()),
        "q_bound_ratio": ratio(float(q_values.abs().max()), bound),
        "action_gap": ratio(gap, size),
        "action_spread": ratio(float(q_values.std(1, correction=0).mean()), size),
        "state_spread": ratio(float(q_values.amax(1).std(correction=0)), size),
        "target_disagreement": float((seen.next_action != seen.next_target_action).double().mean()),
        "terminal_fraction": float(ends.double().mean()),
    }


def _errors(module: PERDQN, seen: Probe) -> Figures:
    size = seen.td_error.double().abs()
    growth = _priority_growth(module, seen)
    return {
        "td_error_mean": float(seen.td_error.double().mean()),
        "td_error_abs_p50": float(size.quantile(0.5)),
        "td_error_abs_p99": float(size.quantile(0.99)),
        "td_error_relative": ratio(float(size.mean()), float(seen.q_values.double().abs().mean())),
        "td_error_beyond_huber": float((size > module.config.learner.huber_delta).double().mean()),
        "priority_staleness": float(np.median(np.abs(growth))) if growth.size else math.nan,
    }


def _priority_growth(module: PERDQN, seen: Probe) -> Floats:
    """log(fresh / stored) of those whose priority was measured; fresh is what the networks give now."""
    if not module.memory.prioritized:
        return np.empty(0)
    stored, is_measured = module.memory.priorities_of(seen.ids)
    fresh = seen.priority.double().cpu().numpy() + module.memory.priority_eps
    growth: Floats = np.log(fresh.clip(max=module.memory.priority_clip) / stored)[is_measured]
    return growth


def _inputs(seen: Probe) -> Figures:
    inputs = seen.inputs.double()
    return {
        "obs_mean": float(inputs.mean()),
        "obs_std": float(inputs.std(correction=0)),
        "obs_abs_max": float(inputs.abs().max()),
        "obs_varying_fraction": float((inputs != inputs[0]).any(0).double().mean()),
    }


def _replay(module: PERDQN) -> Figures:
    memory = module.memory
    ids = spread_ids(module, NUM_LOOKED_AT)
    slots = memory.rows.slots(ids)
    rewards = np.abs(memory.rows.rewards[slots].astype(np.float64))
    taken = np.bincount(memory.rows.actions[slots], minlength=memory.spec.num_actions)
    return {
        **(_priorities(module, ids) if memory.prioritized else {}),
        "replay_ratio": ratio(memory.samples_drawn, memory.transitions_added),
        "overwritten_fraction": 1.0 - len(memory.rows) / int(memory.rows.heads.sum()),
        "action_entropy": entropy(taken / taken.sum()),
        "reward_abs_mean": float(rewards.mean()),
        "reward_abs_max": float(rewards.max()),
        "reward_clipped_fraction": float((rewards > memory.rows.reward_clip).mean()),
    }


def _priorities(module: PERDQN, ids: Ids) -> Figures:
    priorities, is_measured = module.memory.priorities_of(ids)
    powers = priorities**module.memory.alpha  # whatever the tree holds: it may be cold
    probabilities = powers / powers.sum()
    beta = module.experience.beta(module.env_steps)
    return {
        "priority_entropy": entropy(probabilities),
        "weight_sample_size": weight_sample_size(probabilities, beta),
        "never_replayed_fraction": 1.0 - float(is_measured.mean()),
    }


def _episodes(module: PERDQN, networks: Networks, q_size: float) -> Figures:
    """Of the newest rows, as far back as `NUM_NEWEST` reach over all environments."""
    rows, gamma = module.memory.rows, module.config.learner.gamma
    per_env = max(1, NUM_NEWEST // rows.num_envs)
    newest = [_newest_rows(rows, env, per_env) for env in range(rows.num_envs)]
    told = [_look_at_steps(rows, ids, gamma) for ids in newest]
    ids, returns, weights, rewards, terminated, truncated = (
        np.concatenate(parts) for parts in zip(*told, strict=True)
    )
    num_ended = int(terminated.sum() + truncated.sum())
    figures = {
        "truncated_fraction": ratio(float(truncated.sum()), num_ended),
        "replay_episodes": ratio(len(rows) * num_ended, ids.size),
        **_whole_episodes(module, ids % rows.num_envs, rewards, terminated | truncated, truncated),
    }
    may_start = rows.may_start(ids)
    known = np.flatnonzero((weights <= UNKNOWN) & may_start)  # NaN is not
    if known.size:
        chosen = known[spread(known.size, NUM_VALUED)]
        figures |= _compare(rows, networks, ids[chosen], returns[chosen])
    last = np.flatnonzero(terminated & may_start)[-NUM_VALUED // 2 :]
    if (ends := probe(module, networks, ids[last])) is not None:
        surplus = -ends.td_error.double().cpu().numpy()  # there the target is the reward alone
        figures["terminal_surplus"] = ratio(float(surplus.mean()), q_size)
        growth = _priority_growth(module, ends)
        figures["terminal_priority_growth"] = float(np.median(growth)) if growth.size else math.nan
    return figures


def _whole_episodes(
    module: PERDQN, env: Ids, rewards: Floats, ended: NDArray[np.bool_], truncated: NDArray[np.bool_]
) -> Figures:
    """Of episodes whose every step is among these; each environment's follow each other."""
    ends = np.flatnonzero(ended)
    is_whole = env[ends[1:]] == env[ends[:-1]]  # of each environment's first one, steps may be gone
    lengths, totals = np.diff(ends)[is_whole], np.diff(rewards.cumsum()[ends])[is_whole]
    if not lengths.size:
        return {}
    is_cut = truncated[ends[1:]][is_whole]
    paid = np.array(module.recent_episodes.window_state()["returns"])[-totals.size :]
    totals = totals[-paid.size :] if paid.size else totals
    return {
        "truncated_early_fraction": float((is_cut & (lengths < lengths.max())).sum() / max(1, is_cut.sum())),
        "reward_disagreement": abs(totals.mean() - paid.mean()) / (np.abs(paid).mean() or math.nan)
        if paid.size
        else math.nan,
    }


def _newest_rows(rows: Rows, env: int, num: int) -> Ids:
    head = int(rows.heads[env])
    return np.arange(max(0, head - min(num, rows.length)), head) * rows.num_envs + env


def _look_at_steps(rows: Rows, ids: Ids, gamma: float) -> tuple[Any, ...]:
    """Ids, realised returns, weights of the unknown, rewards and ends of the rows that are steps."""
    flags = rows.flags[rows.slots(ids)]
    ids, flags = ids[flags & FINAL == 0], flags[flags & FINAL == 0]
    rewards = rows.rewards[rows.slots(ids)].astype(np.float64)
    clipped = rewards.clip(-rows.reward_clip, rows.reward_clip)
    terminated = flags & TERMINATED != 0
    truncated = (flags & TRUNCATED != 0) & ~terminated
    return ids, *realised_returns(clipped, terminated, truncated, gamma), rewards, terminated, truncated


def _compare(rows: Rows, networks: Networks, ids: Ids, returns: Floats) -> Figures:
    taken = _taken(rows, networks, ids)
    size = float(np.abs(returns).mean())
    correlation = math.nan
    if taken.std() > 0 and returns.std() > 0:
        correlation = float(np.corrcoef(taken, returns)[0, 1])
    return {
        "q_taken_mean": float(taken.mean()),
        "realised_return_mean": float(returns.mean()),
        "overestimation": ratio(float((taken - returns).mean()), size),
        "value_correlation": correlation,
    }


def _taken(rows: Rows, networks: Networks, ids: Ids) -> Floats:
    """Values of the actions that were taken."""
    actions = torch.from_numpy(rows.actions[rows.slots(ids)].astype(np.int64))
    q_values = networks.q_values(ids).double().cpu()
    return q_values.gather(1, actions[:, None])[:, 0].numpy()


def _weights(module: PERDQN, initial_norm: float) -> Figures:
    online, target = [*module.online.parameters()], [*module.target.parameters()]
    norm = norm_of(online)
    differences = torch._foreach_sub([p.detach() for p in online], [p.detach() for p in target])
    matrices = [p.detach() for p in online if p.ndim > 1]
    gains = [float(p.double().square().mean().sqrt()) * math.sqrt(p[0].numel()) for p in matrices]
    return {
        "weight_norm": norm,
        "weight_norm_growth": ratio(norm, initial_norm),
        "weight_gain": max(gains, default=0.0),
        "target_norm_growth": ratio(norm_of(target), initial_norm),
        "target_lag": ratio(norm_of(differences), norm),
    }


def _optimizer(module: PERDQN) -> Figures:
    """Of Adam's moments: how far the next step would go, and what it is divided by."""
    optimizers = module.trainer.optimizers if module._trainer is not None else []
    if not optimizers or module.update_steps == 0:
        return {}
    (group,) = optimizers[0].param_groups
    states = [optimizers[0].state.get(parameter, {}) for parameter in group["params"]]
    moments = [(state["exp_avg"], state["exp_avg_sq"]) for state in states if "exp_avg" in state]
    if not moments:
        return {}
    beta1, beta2 = group["betas"]
    first, second = (1 - beta**module.update_steps for beta in (beta1, beta2))
    roots = [(square / second).sqrt() for _, square in moments]
    steps = [
        group["lr"] * mean / first / (root + group["eps"])
        for (mean, _), root in zip(moments, roots, strict=True)
    ]
    told = sum(int((root > 0.0).sum()) for root in roots)
    small = sum(int(((root > 0.0) & (root < group["eps"])).sum()) for root in roots)
    idle = sum(not bool(root.any()) for root in roots) + len(states) - len(moments)
    norm = weight_norm(module.online)
    return {
        "step_ratio": ratio(norm_of(steps), norm),
        "step_limit": ratio(group["lr"] * math.sqrt(sum(p.numel() for p in group["params"])), norm),
        "adam_eps_fraction": ratio(small, told),
        "untrained_fraction": idle / len(states),
    }
