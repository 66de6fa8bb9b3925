"""What the networks make of transitions spread over the replay.

Knows nothing about what the answers mean; it reads a `PERDQN`, draws no random number and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from perdqn.module import PERDQN

NUM_PROBED = 256  # transitions
NUM_LOOKED_AT = 16_384  # rows, of which these are chosen

Ids = NDArray[np.int64]
_aten = torch.ops.aten
_ACTIVATIONS = {
    op.default
    for op in (_aten.relu, _aten.relu_, _aten.gelu, _aten.silu, _aten.elu, _aten.leaky_relu, _aten.tanh)
}


class Probe(NamedTuple):
    """Answers on n transitions.

    Args:
        ids: of their rows, int64 [n].
        q_values: of the online network at obs, [n, actions].
        next_action: greedy at next_obs by the online network, int64 [n].
        next_target_action: likewise by the target network.
        td_error: signed, [n].
        priority: that the head gives each now, before the replay's offset, [n].
        action: taken, int64 [n].
        reward: of the n-step window, [n].
        discount: gamma^k, 0 after a termination, [n].
        inputs: what the encoder hands to the torso, [n, ...].
        features: what the torso hands to the head, [n, num_features].
        activations: of each hidden layer, mean size of each unit (channel of a convolution) over all
            transitions, [units].
    """

    ids: Ids
    q_values: Tensor
    next_action: Tensor
    next_target_action: Tensor
    td_error: Tensor
    priority: Tensor
    action: Tensor
    reward: Tensor
    discount: Tensor
    inputs: Tensor
    features: Tensor
    activations: list[Tensor]


class Networks:
    """Both networks, in evaluation mode between `__enter__` and `__exit__`.

    So dropout draws nothing and no running statistic moves.
    """

    def __init__(self, module: PERDQN) -> None:
        self._module, self.online, self.target = module, module.online, module.target
        self._were_training: list[nn.Module] = []

    def __enter__(self) -> Networks:
        parts = [*self.online.modules(), *self.target.modules()]
        self._were_training = [part for part in parts if part.training]
        for part in self._were_training:
            part.training = False
        return self

    def __exit__(self, *_: object) -> None:
        for part in self._were_training:
            part.training = True

    def observations(self, ids: Ids) -> dict[str, Tensor]:
        """Observations ending at rows, where the networks are."""
        columns = self._module.memory.rows.observations(ids)
        return {name: torch.from_numpy(column).to(self._module.device) for name, column in columns.items()}

    @torch.no_grad()
    def q_values(self, ids: Ids) -> Tensor:
        """Of the online network, [n, actions]."""
        return self.online.q_values(self.observations(ids))


def spread_ids(module: PERDQN, num: int) -> Ids:
    """Up to ``num`` rows that may start a transition, evenly spread over the replay by slot."""
    rows, capacity = module.memory.rows, module.memory.capacity
    slots = np.arange(capacity)
    if capacity > NUM_LOOKED_AT:  # of the rows alive, since looking at each would take long
        alive = np.minimum(rows.heads, rows.length)
        place = spread(int(alive.sum()), NUM_LOOKED_AT)
        env = np.searchsorted(np.cumsum(alive), place, side="right")
        slots = place - (np.cumsum(alive) - alive)[env] + env * rows.length
    ids = rows.ids(slots)
    ids = ids[rows.may_start(ids)]
    return ids[spread(ids.size, num)]


def spread(size: int, num: int) -> Ids:
    """Up to ``num`` places in 0 .. size - 1, evenly spread, both ends among them."""
    return np.linspace(0, size - 1, min(num, size)).astype(np.int64)


@torch.no_grad()
def probe(module: PERDQN, networks: Networks, ids: Ids | None = None) -> Probe | None:
    """Of transitions that start at ``ids``, else of up to `NUM_PROBED`; None where there is none."""
    ids = spread_ids(module, NUM_PROBED) if ids is None else ids
    if ids.size == 0:
        return None
    online, target = networks.online, networks.target
    window = module.memory.rows.windows(ids)
    obs, next_obs = networks.observations(ids), networks.observations(window.next_id)
    seen: dict[str, Tensor] = {}
    hooks = [part.register_forward_hook(_keep(seen, name)) for name, part in _parts(online)]
    with _Activations() as recorded:
        output = online(obs)
    for hook in hooks:
        hook.remove()
    next_online, next_output = online(next_obs), target(next_obs)
    chosen, chosen_by_target = online.head.greedy(next_online), online.head.greedy(next_output)
    next_action = chosen if module.config.learner.double else chosen_by_target
    action, reward, discount = (
        torch.from_numpy(part).to(module.device) for part in (window.action, window.reward, window.discount)
    )
    item = online.head.item_loss(output, action, reward, discount, next_output, next_action)
    return Probe(
        ids,
        online.head.q_values(output),
        chosen,
        chosen_by_target,
        item.td_error,
        item.priority,
        action,
        reward,
        discount,
        seen["encoder"],
        seen["torso"],
        recorded.sizes,
    )


def _parts(network: Any) -> list[tuple[str, nn.Module]]:
    return [("encoder", network.encoder), ("torso", network.torso)]


def _keep(seen: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_: nn.Module, __: Any, output: Tensor) -> None:
        seen[name] = output

    return hook


class _Activations(TorchDispatchMode):
    """Sees what comes out of activation functions, however a network calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in _ACTIVATIONS and out.ndim > 1:
            self.sizes.append(out.abs().transpose(0, 1).flatten(1).mean(1))
        return out
