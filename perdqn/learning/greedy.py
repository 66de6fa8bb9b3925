"""Greedy actions of plain networks on the CPU, without torch's tens of microseconds for a call.

Knows nothing about environments, exploration or learning: it reads parameters where they lie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor, nn

from perdqn.jit import kernel
from perdqn.learning.heads import ExpectedHead
from perdqn.learning.networks import MLP, Encoder, MinAtarCNN, OneHot, QNetwork, ToImage, ToVector

Array = NDArray[Any]
Obs = Mapping[str, Array]  # columns [batch, ...]
Encode = Callable[[Obs], Array | None]  # to what the first linear layer takes, float32 [batch, in]

_MAX_PRODUCTS = 1_200_000  # of a batch; from there on torch's blocked products are as fast
_PLAIN = (QNetwork, Encoder, ToVector, OneHot, ToImage, MLP, MinAtarCNN, ExpectedHead)
_PLAIN_TORCH = (nn.ModuleList, nn.Sequential, nn.Linear, nn.ReLU, nn.Conv2d)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_OVERRIDES = {"forward", "greedy", "q_values", "resample"}


@partial(kernel, fastmath={"reassoc", "contract"})
def _layer(x: Array, weight: Array, bias: Array, has_relu: bool) -> Array:
    """[batch, in] to [batch, out]; each row comes out the same in any batch."""
    out = np.empty((x.shape[0], bias.size), np.float32)
    for j in range(bias.size):
        for i in range(x.shape[0]):
            total = np.float32(0.0)
            for k in range(x.shape[1]):
                total += weight[j, k] * x[i, k]
            total += bias[j]
            out[i, j] = np.float32(0.0) if has_relu and total < 0.0 else total
    return out


@intrinsic
def _pointer(context: Any, address: Any) -> Any:
    def cast(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(types.int64), cast


@kernel
def _stream(x: Array, layers: Array, has_relu: bool) -> Array:
    """The ``layers``, see `_Layers`, a ReLU between them and, if ``has_relu``, after the last."""
    for i in range(len(layers)):
        weight, bias, num_out, num_in = layers[i]
        weights = numba.carray(_pointer(weight), (num_out, num_in))  # type: ignore[call-arg]
        biases = numba.carray(_pointer(bias), (num_out,))  # type: ignore[call-arg]
        x = _layer(x, weights, biases, has_relu or i < len(layers) - 1)
    return x


@kernel
def _choose(x: Array, torso: Array, advantage: Array, value: Array) -> tuple[Array, Array]:
    """The best action and the values of all; of equal ones the first, and NaN is best, as in torch."""
    features = _stream(x, torso, True)
    q = _stream(features, advantage, False)
    of_state = _stream(features, value, False)  # the features themselves where there is no such stream
    best = np.zeros(q.shape[0], np.int64)
    for i in range(q.shape[0]):
        total = np.float32(0.0)
        for action in range(q.shape[1]):
            total += q[i, action]
        offset = of_state[i, 0] - total / np.float32(q.shape[1])
        for action in range(q.shape[1]):
            if len(value) > 0:
                q[i, action] += offset
            highest = q[i, best[i]]
            if q[i, action] > highest or (np.isnan(q[i, action]) and not np.isnan(highest)):
                best[i] = action
    return best, q


@kernel
def _convolve(frames: Array, weight: Array, bias: Array) -> Array:
    """3x3 convolution and ReLU of bool frames [batch, H, W, C] to [batch, filters * (H-2) * (W-2)].

    Only pixels that are set cost anything; in MinAtar that is one in fifty.
    """
    num, height, width, channels = frames.shape
    num_filters, rows, columns = bias.size, height - 2, width - 2
    out = np.empty((num, num_filters, rows, columns), np.float32)
    for i in range(num):
        for f in range(num_filters):
            for y in range(rows):
                for x in range(columns):
                    out[i, f, y, x] = bias[f]
        for y in range(height):
            for x in range(width):
                for c in range(channels):
                    if frames[i, y, x, c]:
                        for dy in range(max(0, y - rows + 1), min(3, y + 1)):
                            for dx in range(max(0, x - columns + 1), min(3, x + 1)):
                                for f in range(num_filters):
                                    out[i, f, y - dy, x - dx] += weight[f, c, dy, dx]
    features = out.reshape(num, num_filters * rows * columns)
    for i in range(num):
        for f in range(features.shape[1]):
            if features[i, f] < 0.0:
                features[i, f] = 0.0
    return features


class GreedyPolicy:
    """The greedy actions of a network: without torch where it is plain, by torch else.

    Args:
        network: a QNetwork; its parameters are read where they lie.
    """

    def __init__(self, network: Any) -> None:
        self.network = network
        self._fast: FastGreedy | None = None

    def __call__(self, obs: Obs, noise: torch.Generator) -> NDArray[np.int64]:
        """Actions [batch], from 0, of columns [batch, ...]; a stochastic network draws from ``noise``."""
        if self._fast is None or not self._fast.is_current:
            self._fast = FastGreedy(self.network)
        actions = self._fast(obs)
        return self._by_torch(obs, noise) if actions is None else actions

    def look_again(self) -> None:
        """The network may have been changed otherwise than by its parameters: hooked, say."""
        self._fast = None

    @torch.inference_mode()
    def _by_torch(self, obs: Obs, noise: torch.Generator) -> NDArray[np.int64]:
        self.network.resample(noise)
        device = next(self.network.parameters()).device
        columns = {name: torch.from_numpy(column).to(device) for name, column in obs.items()}
        return self.network.greedy(columns).cpu().numpy()

    @torch.no_grad()
    def take_over(self, network: nn.Module) -> None:
        """Parameters and buffers of another network of the same kind."""
        ours = [*self.network.parameters(), *self.network.buffers()]
        torch._foreach_copy_(ours, [*network.parameters(), *network.buffers()])


class _Plan(NamedTuple):
    """Layers are int64 [num_layers, 4]: address of the weight, of the bias, its rows, its columns.

    One compiled kernel so serves every depth, and arguments cost a fraction of a microsecond.
    """

    encode: Encode
    torso: Array
    advantage: Array
    value: Array  # of no layers where the network is not dueling
    views: list[Array]  # keep alive what the addresses point to
    max_batch: int


class FastGreedy:
    """Greedy actions of a network, or none where it is not plain enough or the batch too large.

    Plain is: columns of numbers or discrete values into an `MLP`, or MinAtar's bool frames into a
    `MinAtarCNN`; an `ExpectedHead`; float32 on the CPU; nothing derived, hooked or overridden. Values equal
    torch's up to rounding, and each row's are the same bits in any batch and process on one machine.

    Args:
        network: its parameters are read where they lie, so what is written into them shows.
    """

    def __init__(self, network: nn.Module) -> None:
        self._parameters = list(network.parameters())
        self._addresses = [*map(Tensor.data_ptr, self._parameters)]
        self._plan = _plan(network)

    @property
    def is_current(self) -> bool:
        """Whether all parameters still lie where they lay; if not, make another."""
        return [*map(Tensor.data_ptr, self._parameters)] == self._addresses

    def __call__(self, obs: Obs) -> NDArray[np.int64] | None:
        """The best actions [batch], counted from 0, of columns [batch, ...]; None: ask the network."""
        chosen = self._choose(obs)
        return None if chosen is None else chosen[0]

    def q_values(self, obs: Obs) -> NDArray[np.float32] | None:
        """The expected returns [batch, actions] behind them."""
        chosen = self._choose(obs)
        return None if chosen is None else chosen[1]

    def _choose(self, obs: Obs) -> tuple[Array, Array] | None:
        plan = self._plan
        if plan is None or len(next(iter(obs.values()))) > plan.max_batch:
            return None
        x = plan.encode(obs)
        return None if x is None else _choose(x, plan.torso, plan.advantage, plan.value)


def _plan(network: nn.Module) -> _Plan | None:
    if type(network) is not QNetwork or not all(map(_is_plain, network.modules())):
        return None
    if not all(p.is_cpu and p.dtype == torch.float32 and p.is_contiguous() for p in network.parameters()):
        return None
    torso, head = network.torso, network.head
    hidden: list[nn.Module] = []
    encode: Encode | None = None
    if type(torso) is MLP:
        encode, hidden = _encode_vectors(network.encoder), [*torso.layers]
    elif type(torso) is MinAtarCNN:
        encode, hidden = _encode_frames(network.encoder, torso.convolution), [torso.hidden, nn.ReLU()]
    advantage, value = _flat(head.advantage), _flat(head.value)
    if encode is None or not all(_alternates([*hidden, *s]) for s in (advantage, value or advantage)):
        return None
    views = [_view(parameter) for parameter in network.parameters()]
    max_batch = _MAX_PRODUCTS // sum(view.size for view in views)
    return _Plan(encode, _layers(hidden), _layers(advantage), _layers(value), views, max_batch)


def _is_plain(module: nn.Module) -> bool:
    """Whether it computes what its class says."""
    is_known = type(module) in _PLAIN or type(module) in _PLAIN_TORCH
    return is_known and not any(getattr(module, h) for h in _HOOKS) and not _OVERRIDES & vars(module).keys()


def _flat(stream: nn.Module | None) -> list[nn.Module]:
    if stream is None:
        return []
    return [*stream] if isinstance(stream, nn.Sequential) else [stream]


def _alternates(modules: Sequence[Any]) -> bool:
    """Whether they are Linear, ReLU, Linear, ..., Linear: someone may have exchanged one."""
    expected = [nn.Linear, nn.ReLU] * len(modules)
    has_biases = all(module.bias is not None for module in modules[::2] if type(module) is nn.Linear)
    return has_biases and len(modules) % 2 == 1 and [*map(type, modules)] == expected[: len(modules)]


def _layers(modules: Sequence[nn.Module]) -> Array:
    linears = [m for m in modules if isinstance(m, nn.Linear)]
    rows = [(m.weight.data_ptr(), m.bias.data_ptr(), *m.weight.shape) for m in linears]
    return np.array(rows, np.int64).reshape(-1, 4)


def _view(parameter: Tensor) -> Array:
    return parameter.detach().numpy()


def _encode_vectors(encoder: Any) -> Encode | None:
    """As `Encoder` does it: columns flattened and laid end to end."""
    if any(type(part) is ToImage for part in encoder.parts):
        return None
    parts = [
        (name, _vector if type(part) is ToVector else partial(_one_hot, _view(part.values)))
        for name, part in zip(encoder.names, encoder.parts, strict=True)
    ]
    (first, encode_first), *others = parts
    if not others:
        return lambda obs: encode_first(obs[first])
    return lambda obs: np.concatenate([encode(obs[name]) for name, encode in parts], 1)


def _vector(column: Array) -> Array:
    return np.ascontiguousarray(column.reshape(len(column), -1), np.float32)


def _one_hot(values: Array, column: Array) -> Array:
    hot = column.astype(np.int64)[..., None] == values
    return hot.reshape(len(column), -1).astype(np.float32)


def _encode_frames(encoder: Any, convolution: Any) -> Encode | None:
    """MinAtar's frames [batch, H, W, C] through the convolution."""
    part, name = encoder.parts[0], encoder.names[0]
    is_plain = convolution.extra_repr().endswith("kernel_size=(3, 3), stride=(1, 1)")  # and nothing else
    if len(encoder.names) > 1 or type(part) is not ToImage or not (part.is_channels_last and is_plain):
        return None
    weight, bias = _view(convolution.weight), _view(convolution.bias)

    def encode(obs: Obs) -> Array | None:
        frames = np.ascontiguousarray(obs[name])
        is_sparse = frames.dtype == np.bool_ and frames.ndim == 4
        return _convolve(frames, weight, bias) if is_sparse else None

    return encode
