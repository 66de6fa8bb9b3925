"""Fast greedy actions are torch's: same values up to rounding, same choice where the margin is larger."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from perdqn.config import ClassSpec, LearnerConfig
from perdqn.learning.greedy import FastGreedy
from perdqn.learning.networks import MLP, QNetwork, build_network
from perdqn.transition import OBS, Column, EnvSpec

# float32 sums of some hundred terms of size 1, added up in another order
RTOL, ATOL = 1e-5, 1e-5

VECTOR = Column(OBS, (4,), np.dtype(np.float32))
FRAMES = Column(OBS, (10, 10, 4), np.dtype(np.bool_))
MIXED = (
    Column("double", (3,), np.dtype(np.float64)),
    Column("position", (), np.dtype(np.int64), num_values=4, start=2),
    Column("bytes", (5,), np.dtype(np.uint8)),
)


class DerivedMLP(MLP):
    """May compute anything."""


def spec(*columns: Column, frame_stack: int = 1) -> EnvSpec:
    return EnvSpec(columns, is_dict=len(columns) > 1, num_actions=6, frame_stack=frame_stack)


def build(
    spec: EnvSpec,
    network: str = "auto",
    hidden_size: int | None = None,
    dueling: bool = True,
    **init_args: Any,
) -> QNetwork:
    torch.manual_seed(0)
    head = ClassSpec("expected", {"hidden_size": hidden_size})
    return build_network(spec, ClassSpec(network, init_args), head, LearnerConfig(dueling=dueling))


def observations(spec: EnvSpec, batch: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)

    def draw(column: Column) -> NDArray[Any]:
        shape = (batch, *spec.obs_shape(column))
        if column.num_values is not None:
            return column.start + rng.integers(column.num_values, size=shape)
        if column.dtype == np.bool_:
            return rng.random(shape) < 0.05
        return (rng.integers(256, size=shape) if column.dtype == np.uint8 else rng.normal(size=shape)).astype(
            column.dtype
        )

    return {column.name: draw(column) for column in spec.columns}


@torch.inference_mode()
def q_by_torch(network: QNetwork, obs: dict[str, NDArray[Any]]) -> NDArray[Any]:
    return network.q_values({name: torch.from_numpy(column) for name, column in obs.items()}).numpy()


def assert_same(network: QNetwork, obs: dict[str, NDArray[Any]]) -> None:
    fast, expected = FastGreedy(network), q_by_torch(network, obs)
    q, actions = fast.q_values(obs), fast(obs)
    assert q is not None
    assert actions is not None
    assert actions.dtype == np.int64
    atol = ATOL * np.abs(expected).max()
    np.testing.assert_allclose(q, expected, RTOL, atol)
    chosen = expected[np.arange(len(expected)), actions]
    np.testing.assert_allclose(chosen, expected.max(1), RTOL, 2 * atol)


@pytest.mark.parametrize("dueling", [True, False])
@pytest.mark.parametrize("hidden_size", [None, 33])
@pytest.mark.parametrize("hidden_sizes", [[], [64], [120, 84]])
@pytest.mark.parametrize(
    "spec",
    [spec(VECTOR), spec(VECTOR, frame_stack=3), spec(*MIXED), spec(*MIXED[1:2], frame_stack=2)],
    ids=["vector", "stack", "mixed", "discrete"],
)
def test_values_of_vectors_are_those_of_torch(
    spec: EnvSpec, hidden_sizes: list[int], hidden_size: int | None, dueling: bool
) -> None:
    network = build(spec, "mlp", hidden_size, dueling, hidden_sizes=hidden_sizes)
    assert_same(network, observations(spec, 7))


@pytest.mark.parametrize("hidden_size", [None, 33])
@pytest.mark.parametrize("shape", [(10, 10, 4), (7, 9, 3), (10, 10, 10)])
@pytest.mark.parametrize("density", [0.0, 0.05, 1.0])
def test_values_of_frames_are_those_of_torch(
    shape: tuple[int, ...], density: float, hidden_size: int | None
) -> None:
    frames = spec(Column(OBS, shape, np.dtype(np.bool_)))
    obs = {OBS: np.random.default_rng(0).random((3, *shape)) < density}
    assert_same(build(frames, "minatar_cnn", hidden_size), obs)


@pytest.mark.parametrize("columns", [VECTOR, FRAMES])
def test_a_row_gets_the_same_bits_in_any_batch(columns: Column) -> None:
    fast, obs = FastGreedy(build(spec(columns))), observations(spec(columns), 7)[OBS]
    together = fast.q_values({OBS: obs})
    alone = [fast.q_values({OBS: row[None]}) for row in obs]
    assert together is not None
    np.testing.assert_array_equal(together, np.concatenate(alone))


def test_what_an_optimiser_or_a_checkpoint_writes_shows_at_once() -> None:
    network, other = build(spec(VECTOR)), build(spec(VECTOR))
    obs, fast = observations(spec(VECTOR), 5), FastGreedy(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1, fused=True)
    network({OBS: torch.from_numpy(obs[OBS])}).square().sum().backward()
    optimizer.step()
    assert not np.allclose(q_by_torch(network, obs), q_by_torch(other, obs), atol=0.01)
    np.testing.assert_allclose(fast.q_values(obs), q_by_torch(network, obs), RTOL, ATOL)
    network.load_state_dict(other.state_dict())
    np.testing.assert_allclose(fast.q_values(obs), q_by_torch(other, obs), RTOL, ATOL)
    assert fast.is_current


def test_parameters_that_moved_are_noticed() -> None:
    network = build(spec(VECTOR))
    fast = FastGreedy(network)
    copied = copy.deepcopy(fast)
    assert not copied.is_current
    network.double()
    assert not fast.is_current
    assert FastGreedy(network)(observations(spec(VECTOR), 1)) is None
    network.float()
    assert_same(network, observations(spec(VECTOR), 5))
    head = FastGreedy(network)
    network.head.advantage.weight.data = network.head.advantage.weight.data.clone()
    assert not head.is_current


def test_nan_is_chosen_as_torch_chooses_it() -> None:
    network, obs = build(spec(VECTOR), dueling=False), observations(spec(VECTOR), 3)
    with torch.no_grad():
        network.head.advantage.bias[[2, 4]] = torch.nan
    assert FastGreedy(network)(obs).tolist() == [2, 2, 2]


def hooked(network: QNetwork) -> None:
    network.torso.layers[0].register_forward_hook(lambda module, args, output: -output)


def overridden(network: QNetwork) -> None:
    network.torso.forward = lambda x: -x


def derived(network: QNetwork) -> None:
    network.torso.__class__ = DerivedMLP


def exchanged(network: QNetwork) -> None:
    network.torso.layers[1] = nn.Linear(128, 128)


def dropped(network: QNetwork) -> None:
    del network.torso.layers[-1]


def strange(network: QNetwork) -> None:
    network.torso.layers[1] = nn.Tanh()


def unbiased(network: QNetwork) -> None:
    network.torso.layers[0] = nn.Linear(4, 128, bias=False)


@pytest.mark.parametrize(
    "change", [hooked, overridden, derived, exchanged, dropped, strange, unbiased, QNetwork.double]
)
def test_what_is_not_plain_is_left_to_torch(change: Any) -> None:
    network = build(spec(VECTOR))
    assert FastGreedy(network)(observations(spec(VECTOR), 2)) is not None
    change(network)
    assert FastGreedy(network)(observations(spec(VECTOR), 2)) is None


@pytest.mark.parametrize("change", [{"stride": 2}, {"padding": 1}, {"kernel_size": 1}])
def test_another_convolution_is_left_to_torch(change: dict[str, int]) -> None:
    network = build(spec(FRAMES))
    network.torso.convolution = nn.Conv2d(4, 16, **{"kernel_size": 3, **change})
    assert FastGreedy(network)(observations(spec(FRAMES), 2)) is None


@pytest.mark.parametrize(
    "column", [Column(OBS, (84, 84, 1), np.dtype(np.uint8)), Column(OBS, (10, 10, 4), np.dtype(np.float32))]
)
def test_other_images_are_left_to_torch(column: Column) -> None:
    assert FastGreedy(build(spec(column)))(observations(spec(column), 1)) is None


def test_large_batches_are_left_to_torch() -> None:
    fast = FastGreedy(build(spec(VECTOR)))
    assert fast(observations(spec(VECTOR), 20)) is not None
    assert fast(observations(spec(VECTOR), 2_000)) is None
