"""Proportional prioritized experience replay (arXiv:1511.05952) over rings of rows.

Knows nothing about networks or environments: priorities and rows come in, weighted batches go out.
"""

from __future__ import annotations

import gc
from dataclasses import asdict
from typing import Any

import numpy as np
import psutil
import torch
from holdfast.resources.heap import trim_heap
from holdfast.storage.generations import File
from holdfast.storage.parts import PartStore
from numpy.typing import NDArray

from perdqn.replay import passes
from perdqn.replay.journal import FASTEST, read_rows, write_rows
from perdqn.replay.memory import memory
from perdqn.replay.rows import (
    FINAL,
    Appended,
    Array,
    Columns,
    Ints,
    Rows,
)
from perdqn.replay.sum_tree import MinTree, SumTree
from perdqn.transition import EnvSpec, TransitionBatch

_COMPILED = (np.dtype(np.float32), np.dtype(np.float64))  # floats that kernels take
FIRST_PRIORITY = 1.0  # of rows that enter before anything was measured; see `_adopt_first_maximum`


class PrioritizedReplay:
    """Rows drawn with probability p_i^alpha / sum p^alpha, with weights that undo the bias.

    p^alpha is computed once, when a priority is written, and kept in a sum tree. New rows enter at
    the running maximum: the largest priority measured on a row that is still alive.

    Args:
        spec: what an observation looks like.
        num_envs: environments that add rows, one ring each.
        capacity: physical rows over all rings.
        prioritized: false draws uniformly with weights 1.
        alpha: priority exponent in [0, 1].
        priority_eps: added to every priority; above 0, so that no row is lost for ever.
        priority_clip: upper bound of a priority before the exponent.
        weight_normalization: ``batch`` or ``buffer``: whose largest weight becomes 1.
        n_step, gamma, reward_clip, storage, cached_frames: see `Rows`.
        memory_alert_fraction: share of the memory limit above which `get_memory_usage` alerts.
        seed: of the sampler's own random numbers.

    Raises:
        ValueError: a setting is out of range, or the rings are too short.
    """

    def __init__(
        self,
        spec: EnvSpec,
        num_envs: int = 1,
        capacity: int = 100_000,
        *,
        prioritized: bool = True,
        alpha: float = 0.6,
        priority_eps: float = 1e-6,
        priority_clip: float | None = None,
        weight_normalization: str = "batch",
        n_step: int = 1,
        gamma: float = 0.99,
        reward_clip: float | None = None,
        memory_alert_fraction: float = 0.9,
        storage: str = "raw",
        cached_frames: int = 0,
        seed: int = 0,
    ) -> None:
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
        if not priority_eps > 0.0:
            raise ValueError(f"priority_eps must be above 0, got {priority_eps}")
        if priority_clip is not None and not priority_clip > 0.0:
            raise ValueError(f"priority_clip must be above 0, got {priority_clip}; use null for none")
        if weight_normalization not in ("batch", "buffer"):
            raise ValueError(f"weight_normalization must be batch or buffer, got {weight_normalization!r}")
        self.spec, self.prioritized = spec, prioritized
        self.priority_eps = priority_eps
        self.priority_clip = np.inf if priority_clip is None else priority_clip
        self.weight_normalization = weight_normalization
        self.memory_alert_fraction = memory_alert_fraction
        if storage not in ("raw", "lz4"):
            raise ValueError(f"storage must be raw or lz4, got {storage!r}")
        if cached_frames < 0:
            raise ValueError(f"cached_frames must be at least 0, got {cached_frames}")
        self.rows = Rows(
            spec,
            num_envs,
            capacity,
            n_step=n_step,
            gamma=gamma,
            reward_clip=np.inf if reward_clip is None else reward_clip,
            storage=storage,
            cached_frames=cached_frames,
        )
        self._alpha = alpha if prioritized else 0.0
        self._tree = SumTree(self.rows.size_limit)
        self._smallest = MinTree(self.rows.size_limit) if weight_normalization == "buffer" else None
        self._priorities = np.zeros(self.rows.size_limit)
        self._measured = np.zeros(self.rows.size_limit, np.bool_)
        self._num_eligible = 0
        self._bounds = np.zeros(-(-self.rows.size_limit // passes.BLOCK))  # see `passes.seek_maximum`
        self._maximum, self._num_at_maximum = 0.0, 0
        self._scaled_maximum: tuple[float, float] | None = None  # (priority, priority^alpha) last used
        self._stale = False
        self.reseed(seed)
        self._envs = np.arange(num_envs)
        self.samples_drawn = self.transitions_added = self.priorities_updated = 0
        self._hits = self._misses = 0
        self._newest_batch: tuple[Ints, Array] | None = None

    def __len__(self) -> int:
        """Rows a transition can start from."""
        return self._num_eligible

    @property
    def capacity(self) -> int:
        """Physical rows."""
        return self.rows.size_limit

    @property
    def priority_max(self) -> float:
        """The running maximum, at which new rows enter."""
        if self._num_at_maximum <= 0 < self._maximum:  # a maximum of 0: nothing has been measured
            self._seek_maximum()
        return self._maximum if self._num_at_maximum > 0 else FIRST_PRIORITY

    # -- adding ----------------------------------------------------------------------------------

    def add(
        self,
        obs: Columns,
        action: Array,
        reward: Array,
        terminated: Array,
        truncated: Array,
        final_obs: Columns | None = None,
    ) -> None:
        """Add one step of every environment.

        Args:
            obs: the newest single frames the actions were chosen on, per column [num_envs, *shape].
            action: integers [num_envs] in [0, num_actions).
            reward: finite numbers [num_envs].
            terminated, truncated: bool [num_envs].
            final_obs: like ``obs``, after the step; needed and read only where an episode ended.

        Raises:
            ValueError: a shape, dtype or value is not as above; the buffer is unchanged then.
        """
        action, reward = np.asarray(action), np.asarray(reward)
        terminated, truncated = np.asarray(terminated), np.asarray(truncated)
        if reward.dtype.kind == "f" and reward.dtype not in _COMPILED:
            reward = reward.astype(np.float64)
        has_ended = self._check_step(action, reward, terminated, truncated)
        obs = self._check_frames("obs", obs, self._envs.size)
        if has_ended:
            if final_obs is None:
                raise ValueError("final_obs is missing though an episode ended")
            ended = terminated | truncated
            final_obs = self._check_frames("final_obs", final_obs, self._envs.size, ended)
        self._append(obs, action, reward, terminated, truncated)
        if has_ended and final_obs is not None:
            envs = np.flatnonzero(ended)
            flags = np.full(envs.size, FINAL, np.uint8)
            nothing = np.zeros(envs.size, np.float32)
            self._note(self.rows.append(envs, final_obs, nothing, nothing, flags))
        self.transitions_added += self._envs.size

    def _append(
        self, obs: Columns, action: Array, reward: Array, terminated: Array, truncated: Array
    ) -> None:
        """A row for every environment; at one go, unless the maximum must be sought anew."""
        rows, nodes = self.rows, self._tree.nodes
        slots, retired, ready, num_lost, self._num_at_maximum, has_entered = passes.add(
            *rows.scalars,
            *(rows.heads, rows.length, rows.n_step, rows.spec.frame_stack),
            *(self._envs, action, reward, terminated, truncated),
            *(rows.draws, self._priorities, self._measured),
            *(nodes.values, nodes.is_stale, nodes.stale, nodes.num_stale),
            *(self._maximum, self._num_at_maximum, *self._entry_priority()),
        )
        rows.store(slots, obs)
        self._num_eligible -= num_lost
        if self._smallest is not None:
            self._smallest.set(retired, np.full(retired.size, np.inf))
            self._smallest.set(ready, self._tree.leaves[ready])
        if has_entered:
            self._num_eligible += ready.size
        else:
            self._enter(ready)

    def cut(self, env: int, obs: Columns) -> None:
        """End the newest episode of ``env`` as truncated, ``obs`` [*shape] being its final observation."""
        frames = {name: np.asarray(frame)[None] for name, frame in obs.items()}
        self._note(self.rows.cut(env, self._check_frames("obs", frames, 1)))

    def _note(self, appended: Appended) -> None:
        retired, ready = appended
        if retired.size:
            self._num_eligible -= int(np.count_nonzero(self._tree.leaves[retired]))
            was_maximum = self._measured[retired] & (self._priorities[retired] == self._maximum)
            self._num_at_maximum -= int(np.count_nonzero(was_maximum))
            self._priorities[retired], self._measured[retired] = 0.0, False
            self.rows.draws[retired] = 0
            self._set_leaves(retired, np.zeros(retired.size))
        self._enter(ready)

    def _enter(self, ready: Ints) -> None:
        if ready.size:
            priority, leaf = self._entry_priority()
            self._priorities[ready] = priority
            self._set_leaves(ready, np.full(ready.size, leaf))
            self._num_eligible += ready.size

    def _entry_priority(self) -> tuple[float, float]:
        """The running maximum and its power alpha, which is computed only when it has changed."""
        priority = self.priority_max
        if self._scaled_maximum is None or self._scaled_maximum[0] != priority:
            self._misses += 1
            # through an array, since numpy's power of a scalar may differ in the last bit
            self._scaled_maximum = (priority, float((np.array([priority]) ** self._alpha)[0]))
        else:
            self._hits += 1
        return self._scaled_maximum

    def _seek_maximum(self) -> None:
        self._maximum, self._num_at_maximum = passes.seek_maximum(
            self._priorities, self._measured, self._bounds
        )

    def _set_leaves(self, slots: Ints, values: Array) -> None:
        self._tree.set(slots, values)
        if self._smallest is not None:
            self._smallest.set(slots, np.where(values > 0.0, values, np.inf))

    # -- drawing ---------------------------------------------------------------------------------

    def sample(self, batch_size: int, beta: float = 1.0, scaled: bool = False) -> TransitionBatch:
        """Draw a stratified batch: one row from each of ``batch_size`` equal shares of the priority mass.

        Weights are (N * P(i))^-beta over the N rows that can start a transition, divided by the
        largest of the batch or of the buffer.

        Args:
            scaled: images of bytes as float32 in [0, 1], each value times float32(1 / 255).

        Raises:
            ValueError: no row can start a transition yet, or beta lies outside [0, 1].
        """
        self._check_draw(batch_size, beta)
        self._refresh()
        rows = self.rows
        both_slots, both_ids, leaves, action, reward, discount = passes.draw(
            *self._tree.nodes,
            *(self._rng.random(batch_size), rows.draws),
            *rows.scalars,
            *(rows.heads, rows.length, rows.n_step, rows.gamma, rows.reward_clip),
        )
        weights, ids = self._weights(leaves, beta), both_ids[0]
        self.samples_drawn += batch_size
        self._newest_batch = (ids, weights)
        both = rows.observations_at(both_slots.reshape(-1), both_ids.reshape(-1), scaled)
        columns = {name: torch.from_numpy(column) for name, column in both.items()}
        return TransitionBatch(
            obs={name: column[:batch_size] for name, column in columns.items()},
            action=torch.from_numpy(action),
            reward=torch.from_numpy(reward),
            discount=torch.from_numpy(discount),
            next_obs={name: column[batch_size:] for name, column in columns.items()},
            is_weight=torch.from_numpy(weights),
            id=torch.from_numpy(ids),
        )

    def _check_draw(self, batch_size: int, beta: float) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0.0 <= beta <= 1.0:
            raise ValueError(f"beta must lie in [0, 1], got {beta}")
        if self._num_eligible == 0:
            raise ValueError("the replay holds no complete transition yet; add steps before sampling")

    def _weights(self, leaves: Array, beta: float) -> Array:
        self._hits += leaves.size
        smallest = leaves.min() if self._smallest is None else self._smallest.minimum
        # (N P)^-beta / max (N P)^-beta: N and the total cancel.
        return ((leaves / smallest) ** -beta).astype(np.float32)

    # -- priorities ------------------------------------------------------------------------------

    def update_priorities(self, ids: Ints | torch.Tensor, priorities: Array | torch.Tensor) -> None:
        """Store (priority + eps), clipped, of rows drawn earlier.

        Ids that have been overwritten since, or may not start a transition, are ignored.

        Args:
            ids: int64 [n], from a batch.
            priorities: finite, non-negative [n]; the absolute TD error for scalar heads.

        Raises:
            ValueError: a shape, dtype or value is not as above; nothing is changed then.
        """
        ids = np.asarray(ids)
        if isinstance(priorities, torch.Tensor):
            priorities = priorities.cpu().numpy()
        values = np.asarray(priorities, dtype=np.float64)
        if ids.dtype != np.int64 or ids.ndim != 1 or values.shape != ids.shape:
            raise ValueError(
                f"ids must be int64 [n] and priorities [n], got {ids.dtype} {list(ids.shape)} "
                f"and {list(values.shape)}"
            )
        rows = self.rows
        is_valid, slots, values = passes.check_priorities(
            *(ids, values, self.priority_eps, self.priority_clip),
            *(rows.flags, rows.heads, rows.length, rows.n_step, rows.spec.frame_stack),
        )
        if not is_valid:
            raise ValueError("priorities must be finite and non-negative")
        if not (self.prioritized and slots.size):
            return
        self._refresh()
        is_first = self._num_at_maximum <= 0 and not self._measured.any()
        nodes, powers = self._tree.nodes, values**self._alpha
        self._maximum, self._num_at_maximum = passes.measure(
            *(self._priorities, self._measured, self._bounds),
            *(nodes.values, nodes.is_stale, nodes.stale, nodes.num_stale),
            *(slots, values, powers, self._maximum, self._num_at_maximum),
        )
        if self._smallest is not None:
            self._smallest.set(slots, powers)
        self.priorities_updated += slots.size
        if is_first:
            self._adopt_first_maximum()

    def _adopt_first_maximum(self) -> None:
        """Rows that entered before anything was measured take the first measured maximum.

        Otherwise their arbitrary priority would dwarf the real ones, and their weights would vanish.
        """
        waiting = np.flatnonzero((self._tree.leaves > 0.0) & ~self._measured)
        priority, leaf = self._entry_priority()
        self._priorities[waiting] = priority
        self._set_leaves(waiting, np.full(waiting.size, leaf))

    @property
    def alpha(self) -> float:
        """Priority exponent; setting it makes every stored p^alpha cold."""
        return self._alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"alpha must lie in [0, 1], got {value}")
        if self.prioritized and value != self._alpha:
            self._alpha, self._stale, self._scaled_maximum = value, True, None

    def _refresh(self) -> None:
        """Compute p^alpha anew where it is cold."""
        if not self._stale:
            return
        held = self._tree.leaves > 0.0
        self._misses += int(np.count_nonzero(held))
        self._set_all_leaves(np.where(held, self._priorities**self._alpha, 0.0))
        self._stale = False

    def _set_all_leaves(self, leaves: Array) -> None:
        self._tree.set_all(leaves)
        if self._smallest is not None:
            self._smallest.set_all(np.where(leaves > 0.0, leaves, np.inf))

    # -- checks ----------------------------------------------------------------------------------

    def _check_step(self, action: Array, reward: Array, terminated: Array, truncated: Array) -> bool:
        expected = (self._envs.size,)
        if not action.shape == reward.shape == terminated.shape == truncated.shape == expected:
            named = {"action": action, "reward": reward, "terminated": terminated, "truncated": truncated}
            name, value = next((n, v) for n, v in named.items() if v.shape != expected)
            raise ValueError(f"{name} must have shape {expected}, got {value.shape}")
        if terminated.dtype != np.bool_ or truncated.dtype != np.bool_:
            raise ValueError(
                f"terminated and truncated must be bool, got {terminated.dtype}, {truncated.dtype}"
            )
        if action.dtype.kind not in "iu":
            raise ValueError(f"action must be integers, got {action.dtype}")
        if reward.dtype.kind not in "fiub":
            raise ValueError(f"reward must be finite float32 numbers, got {reward.dtype}")
        has_wrong_action, has_wrong_reward, has_ended = passes.find_fault(
            action, reward, terminated, truncated, self.spec.num_actions
        )
        if has_wrong_action:
            raise ValueError(f"action must lie in [0, {self.spec.num_actions}), got {action}")
        if has_wrong_reward:
            raise ValueError(f"reward must be finite float32 numbers, got {reward}")
        return has_ended

    def _check_frames(self, what: str, frames: Columns, num: int, chosen: Array | None = None) -> Columns:
        """Those of ``num`` frames that are ``chosen``."""
        checked = {}
        for column in self.spec.columns:
            if column.name not in frames:
                raise ValueError(f"{what} lacks the column {column.name!r}")
            frame = np.asarray(frames[column.name])
            if frame.shape != (num, *column.shape) or frame.dtype != column.dtype:
                raise ValueError(
                    f"{what} {column.name!r} must be {column.dtype} {[num, *column.shape]}, "
                    f"got {frame.dtype} {list(frame.shape)}"
                )
            checked[column.name] = frame = frame if chosen is None else frame[chosen]
            if frame.dtype in _COMPILED:
                is_finite = passes.is_finite(frame)
            else:
                is_finite = frame.dtype.kind != "f" or bool(np.isfinite(frame).all())
            if not is_finite:
                raise ValueError(f"{what} {column.name!r} holds NaN or infinity")
        return checked

    def check_valid(self) -> None:
        """Raise AssertionError unless tree, priorities and rows agree."""
        self._refresh()
        self._tree.check_valid()
        leaves = self._tree.leaves
        all_ids = self.rows.ids(np.arange(self.capacity))
        allowed = self.rows.may_start(all_ids)
        assert np.array_equal(leaves > 0.0, allowed), "a leaf is positive where no transition may start"
        assert np.array_equal(self._priorities > 0.0, allowed)
        assert self._num_eligible == int(allowed.sum())
        # not to the last bit: they may come from a machine whose powers round otherwise
        assert np.allclose(leaves[allowed], self._priorities[allowed] ** self._alpha, rtol=1e-15, atol=0.0)
        if self._num_at_maximum > 0:
            assert self._maximum == self._priorities[self._measured].max()
            assert self._num_at_maximum == np.count_nonzero(self._priorities[self._measured] == self._maximum)
        assert not (self._measured | (self.rows.draws > 0))[~allowed].any()
        blocks = np.arange(self.capacity) // passes.BLOCK
        assert (self._bounds[blocks] >= self._priorities * self._measured).all()
        if self._smallest is not None:
            self._smallest.check_valid()
            assert self._smallest.minimum == leaves[allowed].min(initial=np.inf)

    # -- statistics and memory -------------------------------------------------------------------

    def get_performance_stats(self) -> dict[str, Any]:
        """Counters and health of the replay.

        ``cache_hit_rate`` counts every look-up of a stored p^alpha; those that had to be computed
        again (alpha changed, restored without leaves, the maximum moved) are misses.
        ``frame_cache_hit_rate`` counts look-ups of decompressed frames, once for each frame of a batch;
        it is 0 where storage is raw.
        ``effective_sample_size`` is (sum q)^2 / sum q^2 over q = p^alpha, in rows;
        ``priority_entropy`` is that of P(i) in nats, divided by log N: 1 is uniform.
        Ages count rows of an environment since the row was added.
        """
        leaves = self._tree.leaves[self._tree.leaves > 0.0]
        lookups = self._hits + self._misses
        frame_hits, frame_misses = self.rows.frame_cache_counts
        probabilities = leaves / leaves.sum() if leaves.size else leaves
        entropy = -float((probabilities * np.log(probabilities)).sum()) if leaves.size else 0.0
        return {
            "size": len(self),
            "rows": len(self.rows),
            "capacity": self.capacity,
            "samples_drawn": self.samples_drawn,
            "transitions_added": self.transitions_added,
            "priorities_updated": self.priorities_updated,
            "cache_hits": self._hits,
            "cache_misses": self._misses,
            "cache_hit_rate": self._hits / lookups if lookups else 0.0,
            "frame_cache_hits": frame_hits,
            "frame_cache_misses": frame_misses,
            "frame_cache_hit_rate": frame_hits / max(1, frame_hits + frame_misses),
            "priority_max": self.priority_max,
            "priority_entropy": entropy / np.log(leaves.size) if leaves.size > 1 else 1.0,
            "effective_sample_size": float(1.0 / (probabilities**2).sum()) if leaves.size else 0.0,
            "never_replayed_fraction": 1.0 - self._measured.sum() / leaves.size if leaves.size else 0.0,
            "sampled_age_mean": self.newest_batch_stats()["age_mean"],
            "oldest_age": int(np.minimum(self.rows.heads, self.rows.length).max()),
            "memory_usage": self.get_memory_usage(),
        }

    def priorities_of(self, ids: Ints) -> tuple[Array, NDArray[np.bool_]]:
        """Stored priorities, before the exponent, of live rows, and whether each was ever measured [n]."""
        slots = self.rows.slots(ids)
        return self._priorities[slots], self._measured[slots]

    def newest_batch_stats(self) -> dict[str, float]:
        """Cheap figures of the batch drawn last: mean weight, its effective size, mean age in rows."""
        if self._newest_batch is None:
            return {"is_weight_mean": 0.0, "effective_sample_size": 0.0, "age_mean": 0.0}
        ids, weights = self._newest_batch
        counter, env = np.divmod(ids, self.rows.num_envs)
        weights = weights.astype(np.float64)
        return {
            "is_weight_mean": float(weights.mean()),
            "effective_sample_size": float(weights.sum() ** 2 / (weights**2).sum()),
            "age_mean": float((self.rows.heads[env] - 1 - counter).mean()),
        }

    def get_memory_usage(self) -> dict[str, Any]:
        """Bytes by part, per transition and of the process, and whether the alert threshold is passed.

        ``reserved_bytes`` is what the full replay takes; pages are committed as rows are written. Of
        compressed frames it is what they take now, and ``bytes_per_transition`` expects the rest to
        shrink like these.
        ``limit_bytes`` is the limit of a container with the least left, ``used_bytes`` all that counts
        against it; without one, the machine's memory and this process's share of it.
        """
        parts = {**self.rows.bytes_by_part(), "priorities": self._priorities.nbytes + self._measured.nbytes}
        parts["tree"] = self._tree.nbytes + (self._smallest.nbytes if self._smallest else 0)
        reserved = sum(parts.values())
        limit, used = memory()
        return {
            "parts": parts,
            "reserved_bytes": reserved,
            "bytes_per_transition": (reserved + self.rows.bytes_to_come) / self.capacity,
            "device_bytes": 0,
            "process_rss_bytes": psutil.Process().memory_info().rss,
            "used_bytes": used,
            "limit_bytes": limit,
            "limit_fraction": used / limit,
            "alert": used > self.memory_alert_fraction * limit,
        }

    @property
    def bytes_to_come(self) -> int:
        """Bytes that will still be taken until the replay is full."""
        reserved = self._priorities.nbytes + self._measured.nbytes + self._tree.nbytes
        untouched = int((1 - len(self.rows) / self.capacity) * reserved)
        return untouched + self.rows.untouched_bytes + self.rows.bytes_to_come

    def release_memory(self, caches: bool = False) -> int:
        """Hand memory that is not in use back to the system; returns by how many bytes the process shrank.

        Args:
            caches: also give up, for good, what only saves time: frames kept decompressed.
        """
        before = psutil.Process().memory_info().rss
        self._newest_batch = None
        self.rows.release_memory(caches)
        gc.collect()
        trim_heap()
        return max(0, before - psutil.Process().memory_info().rss)

    # -- state -----------------------------------------------------------------------------------

    def state_dict(self, include_leaves: bool = True) -> dict[str, Any]:
        """Everything that decides future batches, as tensors and plain values.

        Without leaves it is smaller, and p^alpha is computed anew when first needed after a load.
        """
        state = {
            "rows": self.rows.state_dict(),
            "priorities": torch.from_numpy(self._priorities.copy()),
            "measured": torch.from_numpy(self._measured.copy()),
            "draws": torch.from_numpy(self.rows.draws.copy()),
            **self._scalars(),
        }
        if not include_leaves:
            del state["scaled_maximum"]
        elif not self._stale:
            state["leaves"] = torch.from_numpy(self._tree.leaves.copy())
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, even if n_step or alpha is another one now.

        Raises:
            ValueError: the saved replay has another shape.
        """
        self.rows.load_state_dict(state["rows"])
        self.rows.draws[:] = state.get("draws", 0)
        leaves = state["leaves"].numpy() if "leaves" in state else None
        self._restore(state, state["priorities"].numpy(), state["measured"].numpy(), leaves)

    def save_parts(self, store: PartStore) -> dict[str, Any]:
        """Like `state_dict`, through parts: rows are written once, all that changes is written whole.

        The latter takes 22 bytes a row alive: priority, leaf, whether it was measured, draws, flags.
        """
        changing = self._changing()
        if not self._stale:
            changing["leaves"] = self._tree.leaves
        file = write_rows(
            store, changing, *self.rows.alive(self.rows.heads), kind="priorities", level=FASTEST
        )
        parts = {"rows": self.rows.save_parts(store), "priorities": asdict(file)}
        return {**parts, "has_leaves": "leaves" in changing, "has_draws": True, **self._scalars()}

    def load_parts(self, store: PartStore, entry: dict[str, Any]) -> None:
        """Continue where `save_parts` was called; see `load_state_dict`.

        Raises:
            DamagedPart: a part is not as it was written; the replay is unchanged then.
            ValueError: the saved replay has another shape; nor has it changed then.
        """
        saved = {name: np.zeros(self.capacity, array.dtype) for name, array in self._changing().items()}
        if not entry.get("has_draws"):  # saved by an earlier version
            del saved["draws"]
        if entry["has_leaves"]:
            saved["leaves"] = np.zeros(self.capacity)
        bounds = self.rows.alive(self.rows.saved_heads(entry["rows"]))
        read_rows(store, File(**entry["priorities"]), saved, *bounds)
        self.rows.load_parts(store, entry["rows"], saved["flags"])
        self.rows.draws[:] = saved.get("draws", 0)
        self._restore(entry, saved["priorities"], saved["measured"], saved.get("leaves"))

    def reseed(self, seed: int) -> None:
        """Begin the sampler's random numbers anew."""
        self._rng = np.random.default_rng(seed)

    def _changing(self) -> dict[str, Array]:
        """By slot, what a row's life changes; the leaves apart."""
        by_slot: dict[str, Array] = {"flags": self.rows.flags, "draws": self.rows.draws}
        return {**by_slot, "priorities": self._priorities, "measured": self._measured}

    def _scalars(self) -> dict[str, Any]:
        return {
            "maximum": (self._maximum, self._num_at_maximum),
            "alpha": self._alpha,
            "rng": self._rng.bit_generator.state,
            "counters": (self.samples_drawn, self.transitions_added, self.priorities_updated),
            "cache": (self._hits, self._misses),
            "scaled_maximum": self._scaled_maximum,
        }

    def _restore(
        self, state: dict[str, Any], priorities: Array, measured: Array, leaves: Array | None
    ) -> None:
        """Take over all but the rows, which are restored already."""
        self._priorities[:], self._measured[:] = priorities, measured
        self._bounds[:] = np.inf
        self._maximum, self._num_at_maximum = state["maximum"]
        self._rng.bit_generator.state = state["rng"]
        self.samples_drawn, self.transitions_added, self.priorities_updated = state["counters"]
        self._hits, self._misses = state["cache"]
        allowed = self.rows.may_start(self.rows.ids(np.arange(self.capacity)))
        self._num_eligible = int(allowed.sum())
        is_as_saved = np.array_equal(allowed, self._priorities > 0.0)
        if not is_as_saved:
            self._admit_only(allowed)
        has_same_alpha = state["alpha"] == self._alpha
        self._scaled_maximum = state.get("scaled_maximum") if has_same_alpha else None
        self._stale = leaves is None or not has_same_alpha or not is_as_saved
        self._set_all_leaves(allowed.astype(np.float64) if leaves is None or self._stale else leaves)

    def _admit_only(self, allowed: NDArray[np.bool_]) -> None:
        """With windows of another length, other rows may start a transition."""
        self._priorities[~allowed], self.rows.draws[~allowed] = 0.0, 0
        self._measured &= allowed
        self._bounds[:] = np.inf
        self._seek_maximum()
        entry = self._maximum if self._num_at_maximum > 0 else FIRST_PRIORITY
        self._priorities[allowed & (self._priorities == 0.0)] = entry
