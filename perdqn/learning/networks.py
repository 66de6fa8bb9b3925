"""Q-networks: an encoder of observations, a torso that finds features, a head that values actions.

Knows nothing about replay, losses or the environment beyond its `EnvSpec`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from perdqn import class_path
from perdqn.config import ClassSpec, LearnerConfig
from perdqn.learning.heads import HEADS
from perdqn.transition import Column, EnvSpec


class Stochastic(Protocol):
    """A module that draws noise in forward declares it by this method."""

    def resample(self, generator: torch.Generator) -> None:
        """Take new noise from ``generator`` (on the CPU): now, or in every forward until the next call."""


class QNetwork(nn.Module):
    """Observation columns in, head output out.

    Args:
        encoder: dict of columns [batch, ...] to a float tensor [batch, *shape].
        torso: [batch, *shape] to features [batch, num_features].
        head: features to an output, see `perdqn.learning.heads.Head`.
    """

    def __init__(self, encoder: nn.Module, torso: nn.Module, head: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.torso = torso
        self.head = head
        parts = (m for part in (encoder, torso, head) for m in part.modules())
        self._stochastic: list[Any] = [m for m in parts if hasattr(m, "resample")]

    def forward(self, obs: dict[str, Tensor]) -> Any:
        return self.head(self.torso(self.encoder(obs)))

    def q_values(self, obs: dict[str, Tensor]) -> Tensor:
        """Expected returns, [batch, actions]."""
        return self.head.q_values(self(obs))

    def greedy(self, obs: dict[str, Tensor]) -> Tensor:
        """The best action counted from 0, int64 [batch]."""
        return self.head.greedy(self(obs))

    def stochastic_modules(self) -> list[Stochastic]:
        """The modules with noise of their own, in a fixed order; empty for a deterministic network."""
        return self._stochastic

    def resample(self, generator: torch.Generator) -> None:
        """Draw new noise in every stochastic module."""
        for module in self._stochastic:
            module.resample(generator)


class Encoder(nn.Module):
    """Observation columns to one float tensor [batch, *shape] in the dtype of the network's parameters.

    A single column keeps its layout: an image becomes [C, H, W], all else a vector. Several columns
    are flattened and concatenated in the order of ``spec.columns``.
    """

    def __init__(self, spec: EnvSpec) -> None:
        super().__init__()
        self.names = [column.name for column in spec.columns]
        parts = [_encode_column(column, spec) for column in spec.columns]
        shapes = [part.shape for part in parts]
        self.parts = nn.ModuleList(parts)
        self.shape: tuple[int, ...] = shapes[0] if len(shapes) == 1 else (sum(map(math.prod, shapes)),)

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        if len(self.names) == 1:
            return self.parts[0](obs[self.names[0]])
        encoded = [part(obs[name]).flatten(1) for name, part in zip(self.names, self.parts, strict=True)]
        return torch.cat(encoded, 1)


class ToVector(nn.Module):
    """Numbers of any dtype and shape to a float vector."""

    unit: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = (math.prod(shape),)
        # A buffer follows the parameters through .to() and .double(), so its dtype is theirs.
        self.register_buffer("unit", torch.ones(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, *self.shape).to(self.unit.dtype)


class OneHot(nn.Module):
    """Values of a Discrete space, alone or stacked, to one-hot vectors laid end to end."""

    unit: Tensor
    values: Tensor

    def __init__(self, shape: tuple[int, ...], num_values: int, start: int = 0) -> None:
        super().__init__()
        self.shape = (math.prod(shape) * num_values,)
        self.register_buffer("unit", torch.ones(()), persistent=False)
        self.register_buffer("values", torch.arange(start, start + num_values), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        hot = x.long().unsqueeze(-1) == self.values
        return hot.reshape(-1, *self.shape).to(self.unit.dtype)


class ToImage(nn.Module):
    """Frames, alone or stacked, to float images [C, H, W].

    Bytes are scaled to [0, 1]; floats are taken as they are, for a replay can scale bytes by itself.
    Of three axes the channels are the smaller one of first and last, the last where they tie.
    The channels of stacked frames follow each other, oldest frame first.

    Args:
        shape: [H, W], [S, H, W] if ``is_stacked``, [C, H, W], [H, W, C], or the latter two stacked.
        is_stacked: whether the first axis counts frames.
    """

    scale: Tensor

    def __init__(self, shape: tuple[int, ...], is_stacked: bool = False) -> None:
        super().__init__()
        has_channels = len(shape) - is_stacked == 3
        self.is_channels_last = has_channels and shape[-1] <= shape[-3]
        frame = (shape[-1], *shape[-3:-1]) if self.is_channels_last else shape[-3:]
        if len(shape) == 2:
            frame = (1, *shape)
        self.shape = (shape[0] * frame[0], *frame[1:]) if len(shape) == 4 else frame
        self.register_buffer("scale", torch.tensor(1 / 255), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_channels_last:
            x = x.movedim(-1, -3)
        are_bytes = x.dtype == torch.uint8
        # Convolutions are slower on a permuted view than the one copy that the conversion makes anyway.
        x = x.reshape(-1, *self.shape).to(self.scale.dtype, memory_format=torch.contiguous_format)
        return x.mul_(self.scale) if are_bytes else x


def _encode_column(column: Column, spec: EnvSpec) -> ToVector | OneHot | ToImage:
    shape = spec.obs_shape(column)
    if column.num_values is not None:
        return OneHot(shape, column.num_values, column.start)
    if column.is_image:
        return ToImage(shape, is_stacked=spec.frame_stack > 1)
    return ToVector(shape)


class MLP(nn.Module):
    """Fully connected ReLU layers.

    Args:
        shape: of one encoded observation; flattened where it has several axes.
        hidden_sizes: width of each layer; none hands the observation on as it is.
    """

    def __init__(self, shape: tuple[int, ...], hidden_sizes: Sequence[int] = (128, 128)) -> None:
        super().__init__()
        sizes = [math.prod(shape), *hidden_sizes]
        if any(size < 1 for size in hidden_sizes):
            setting = "model.network.init_args.hidden_sizes"
            raise ValueError(f"{setting} must be at least 1 each, got {[*hidden_sizes]}; [128, 128] is usual")
        layers: list[nn.Module] = [nn.Flatten()] if len(shape) > 1 else []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.num_features = sizes[-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class NatureCNN(nn.Module):
    """The network of doi:10.1038/nature14236: three convolutions and one fully connected layer.

    Args:
        shape: [C, H, W], at least 36 pixels high and wide.
        hidden_size: width of the fully connected layer.
    """

    def __init__(self, shape: tuple[int, ...], hidden_size: int = 512) -> None:
        super().__init__()
        _check_image(shape, "nature_cnn", 36, "use minatar_cnn or mlp")
        _check_hidden_size(hidden_size, 512)
        self.convolutions = nn.Sequential(
            nn.Conv2d(shape[0], 32, 8, 4), nn.ReLU(),
            nn.Conv2d(32, 64, 4, 2), nn.ReLU(),
            nn.Conv2d(64, 64, 3, 1), nn.ReLU(),
        )  # fmt: skip
        # Weights in this layout make the convolutions faster, whatever the layout of the input.
        self.convolutions.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        height, width = (((n - 4) // 4 - 2) // 2 - 2 for n in shape[1:])
        self.hidden = nn.Linear(64 * height * width, hidden_size)
        self.num_features = hidden_size

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden(self.convolutions(x).flatten(1)).relu()


class MinAtarCNN(nn.Module):
    """The network of the MinAtar paper (arXiv:1903.03176): one small convolution, one linear layer.

    Args:
        shape: [C, H, W], at least 3 pixels high and wide.
        hidden_size: width of the fully connected layer.
    """

    def __init__(self, shape: tuple[int, ...], hidden_size: int = 128) -> None:
        super().__init__()
        _check_image(shape, "minatar_cnn", 3, "use mlp")
        _check_hidden_size(hidden_size, 128)
        self.convolution = nn.Conv2d(shape[0], 16, 3)
        self.hidden = nn.Linear(16 * (shape[1] - 2) * (shape[2] - 2), hidden_size)
        self.num_features = hidden_size

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden(self.convolution(x).relu().flatten(1)).relu()


TORSOS: dict[str, Callable[..., Any]] = {"mlp": MLP, "nature_cnn": NatureCNN, "minatar_cnn": MinAtarCNN}


def build_network(spec: EnvSpec, network: ClassSpec, head: ClassSpec, learner: LearnerConfig) -> QNetwork:
    """The Q-network that the settings ask for, with fresh weights from torch's global generator.

    Raises:
        ValueError: a class cannot be found or made, or is no torso or head; names the setting.
    """
    encoder = Encoder(spec)
    torsos = {"auto": _choose_torso(encoder.shape), **TORSOS}
    torso = class_path.instantiate(network, torsos, "model.network", encoder.shape)
    if not isinstance(getattr(torso, "num_features", None), int):
        remedy = "set it in __init__ to the length of the feature vector"
        raise ValueError(f"model.network: {network.class_path} has no num_features; {remedy}")
    return QNetwork(encoder, torso, _make_head(head, torso.num_features, spec.num_actions, learner))


def _make_head(head: ClassSpec, num_features: int, num_actions: int, learner: LearnerConfig) -> nn.Module:
    target = class_path.resolve(head, HEADS, "model.head")
    shared = [k for k in ("dueling", "loss", "huber_delta") if class_path.accepts(target, k)]
    if twice := [k for k in shared if k in head.init_args]:
        raise ValueError(f"model.head.init_args.{twice[0]} must be set as model.learner.{twice[0]}")
    given = {k: getattr(learner, k) for k in shared}
    made = class_path.instantiate(head, HEADS, "model.head", num_features, num_actions, **given)
    if missing := [name for name in ("q_values", "greedy", "item_loss") if not hasattr(made, name)]:
        remedy = "derive it from perdqn.learning.heads.Head"
        raise ValueError(f"model.head: {head.class_path} has no {' and no '.join(missing)}; {remedy}")
    return made


def _choose_torso(shape: tuple[int, ...]) -> Callable[..., Any]:
    """What ``auto`` means: images by their smaller side, all else an MLP."""
    if len(shape) != 3 or min(shape[1:]) < 7:
        return MLP
    return NatureCNN if min(shape[1:]) >= 36 else MinAtarCNN


def _check_image(shape: tuple[int, ...], name: str, smallest: int, remedy: str) -> None:
    if len(shape) != 3 or min(shape[1:]) < smallest:
        wanted = f"an image [channels, height, width] of at least {smallest}x{smallest}"
        raise ValueError(f"model.network {name} needs {wanted}, got {[*shape]}; {remedy}")


def _check_hidden_size(hidden_size: int, usual: int) -> None:
    if hidden_size < 1:
        setting = "model.network.init_args.hidden_size"
        raise ValueError(f"{setting} must be at least 1, got {hidden_size!r}; {usual} is the paper's")
