"""Encoding of every kind of observation, the torsos, and how settings become a network."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn, tensor
from torch.nn import functional
from torch.testing import assert_close

from perdqn.config import ClassSpec, LearnerConfig
from perdqn.learning.heads import ExpectedHead
from perdqn.learning.networks import MLP, Encoder, MinAtarCNN, NatureCNN, QNetwork, build_network
from perdqn.transition import OBS, Column, EnvSpec


def box(shape: tuple[int, ...], dtype: Any = np.float32, frame_stack: int = 1) -> EnvSpec:
    column = Column(OBS, shape, np.dtype(dtype))
    return EnvSpec((column,), is_dict=False, num_actions=3, frame_stack=frame_stack)


def discrete(num_values: int, start: int = 0, frame_stack: int = 1) -> EnvSpec:
    column = Column(OBS, (), np.dtype(np.int64), num_values, start)
    return EnvSpec((column,), is_dict=False, num_actions=3, frame_stack=frame_stack)


def build(spec: EnvSpec, network: str = "auto", head: str = "expected", **init_args: Any) -> QNetwork:
    return build_network(spec, ClassSpec(network, init_args), ClassSpec(head), LearnerConfig())


def test_discrete_becomes_one_hot() -> None:
    encoder = Encoder(discrete(3))
    assert encoder.shape == (3,)
    assert encoder({OBS: tensor([2, 0])}).tolist() == [[0, 0, 1], [1, 0, 0]]


def test_discrete_is_counted_from_its_start() -> None:
    assert Encoder(discrete(3, start=-1))({OBS: tensor([-1, 1])}).tolist() == [[1, 0, 0], [0, 0, 1]]


def test_stacked_discrete_lays_the_one_hots_end_to_end() -> None:
    encoder = Encoder(discrete(2, frame_stack=2))
    assert encoder.shape == (4,)
    assert encoder({OBS: tensor([[0, 1], [1, 1]])}).tolist() == [[1, 0, 0, 1], [0, 1, 0, 1]]


def test_scalar_box_becomes_a_vector_of_one() -> None:
    assert Encoder(box(()))({OBS: tensor([3.0, 4.0])}).tolist() == [[3], [4]]


def test_stacked_vectors_are_flattened_oldest_first() -> None:
    encoder = Encoder(box((2,), frame_stack=2))
    assert encoder.shape == (4,)
    assert encoder({OBS: tensor([[[1.0, 2.0], [3.0, 4.0]]])}).tolist() == [[1, 2, 3, 4]]


def test_uint8_image_is_scaled_to_one() -> None:
    encoder = Encoder(box((2, 2), np.uint8))
    assert encoder.shape == (1, 2, 2)
    encoded = encoder({OBS: tensor([[[0, 51], [102, 255]]], dtype=torch.uint8)})
    assert_close(encoded, tensor([[[[0.0, 0.2], [0.4, 1.0]]]]))


def test_encoding_leaves_the_observation_as_it_was() -> None:
    obs = torch.full((1, 2, 2), 255, dtype=torch.uint8)
    Encoder(box((2, 2), np.uint8))({OBS: obs})
    assert (obs == 255).all()


def test_uint8_vector_is_not_scaled() -> None:
    encoded = Encoder(box((2,), np.uint8))({OBS: tensor([[7, 255]], dtype=torch.uint8)})
    assert encoded.tolist() == [[7, 255]]


def test_image_of_another_dtype_is_not_scaled() -> None:
    assert Encoder(box((1, 2), np.int16))({OBS: tensor([[[7, 300]]]).short()}).tolist() == [[[[7, 300]]]]


@pytest.mark.parametrize(
    ("shape", "encoded"),
    [
        ((10, 10, 4), (4, 10, 10)),
        ((4, 10, 10), (4, 10, 10)),
        ((210, 160, 3), (3, 210, 160)),
        ((5, 4, 5), (5, 5, 4)),  # a tie: the last axis
    ],
)
def test_channels_are_the_smaller_of_first_and_last_axis(
    shape: tuple[int, ...], encoded: tuple[int, ...]
) -> None:
    encoder = Encoder(box(shape, bool))
    assert encoder.shape == encoded
    assert encoder({OBS: torch.zeros(2, *shape, dtype=torch.bool)}).shape == (2, *encoded)


def test_last_axis_of_a_tie_moves_to_the_front() -> None:
    obs = torch.arange(100.0).view(1, 5, 4, 5)
    assert torch.equal(Encoder(box((5, 4, 5)))({OBS: obs}), obs.permute(0, 3, 1, 2))


def test_stacked_grey_frames_are_the_channels() -> None:
    obs = torch.arange(24.0).view(1, 4, 2, 3)
    encoder = Encoder(box((2, 3), frame_stack=4))
    assert encoder.shape == (4, 2, 3)
    assert torch.equal(encoder({OBS: obs}), obs)


@pytest.mark.parametrize(("frame", "axis"), [((6, 5, 3), -1), ((3, 6, 5), 2)])
def test_channels_of_stacked_frames_follow_each_other_oldest_first(frame: tuple[int, ...], axis: int) -> None:
    obs = torch.randint(0, 256, (7, 2, *frame), dtype=torch.uint8)
    encoder = Encoder(box(frame, np.uint8, frame_stack=2))
    assert encoder.shape == (6, 6, 5)
    encoded = encoder({OBS: obs})
    for stacked in range(2):
        for channel in range(3):
            expected = obs[:, stacked].select(axis if axis < 0 else axis - 1, channel) / 255
            assert_close(encoded[:, 3 * stacked + channel], expected)


def test_images_leave_contiguous() -> None:
    assert Encoder(box((6, 6, 2), bool))({OBS: torch.zeros(2, 6, 6, 2, dtype=torch.bool)}).is_contiguous()


def test_dict_columns_are_flattened_and_joined_in_their_order() -> None:
    columns = (
        Column("pixels", (2, 2), np.dtype(np.uint8)),
        Column("room.id", (), np.dtype(np.int64), num_values=2, start=1),
        Column("speed", (2,), np.dtype(np.float64)),
    )
    encoder = Encoder(EnvSpec(columns, is_dict=True, num_actions=2))
    obs = {
        "speed": tensor([[0.5, -1.5]], dtype=torch.float64),
        "room.id": tensor([2]),
        "pixels": tensor([[[255, 0], [0, 51]]], dtype=torch.uint8),
    }
    assert encoder.shape == (8,)
    assert_close(encoder(obs), tensor([[1.0, 0.0, 0.0, 0.2, 0.0, 1.0, 0.5, -1.5]]))


INTEGERS = ["uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"]
DTYPES = ["bool", *INTEGERS, "float16", "float32", "float64"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3,), (8, 8), (8, 8, 2)])
def test_encoding_takes_any_dtype_to_that_of_the_parameters(
    shape: tuple[int, ...], precision: torch.dtype, dtype: str
) -> None:
    network = build(box(shape, dtype)).to(precision)
    obs = {OBS: torch.from_numpy(np.ones((2, *shape), dtype))}
    assert network.encoder(obs).dtype == precision
    assert network(obs).dtype == precision


@pytest.mark.parametrize("dtype", INTEGERS)
def test_discrete_of_any_integer_dtype_becomes_one_hot(dtype: str) -> None:
    encoder = Encoder(discrete(3)).double()
    encoded = encoder({OBS: torch.from_numpy(np.array([1, 2], dtype))})
    assert_close(encoded, tensor([[0, 1, 0], [0, 0, 1]], dtype=torch.float64))


def test_encoder_adds_nothing_to_the_state_dict() -> None:
    assert not any(name.startswith("encoder") for name in build(discrete(3)).state_dict())


def test_mlp_has_a_relu_after_every_layer() -> None:
    mlp = MLP((2, 2), hidden_sizes=[5, 3])
    assert mlp.num_features == 3
    assert [tuple(p.shape) for p in mlp.parameters() if p.ndim == 2] == [(5, 4), (3, 5)]
    assert (mlp(torch.randn(64, 2, 2)) >= 0).all()


def test_minatar_cnn_is_the_papers_network() -> None:
    cnn = MinAtarCNN((4, 10, 10))
    assert [tuple(p.shape) for p in cnn.parameters()] == [(16, 4, 3, 3), (16,), (128, 1024), (128,)]
    x = torch.rand(3, 4, 10, 10)
    patches = functional.unfold(x, 3)  # the oracle: a convolution is a product with its patches
    weight, bias = cnn.convolution.parameters()
    convolved = (weight.flatten(1) @ patches + bias[:, None]).relu().flatten(1)
    assert_close(cnn(x), cnn.hidden(convolved).relu(), rtol=1e-5, atol=1e-6)  # sums of 36 float32 terms


def test_nature_cnn_is_the_papers_network() -> None:
    cnn = NatureCNN((4, 84, 84))
    shapes = [tuple(p.shape) for p in cnn.parameters() if p.ndim > 1]
    assert shapes == [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, 3136)]
    assert sum(math.prod(p.shape) for p in cnn.parameters()) == 1_684_128
    assert cnn.num_features == 512


def test_nature_cnn_rectifies_every_layer() -> None:
    cnn = NatureCNN((2, 44, 44), hidden_size=64).double()
    w1, b1, w2, b2, w3, b3, w4, b4 = cnn.parameters()
    x = torch.rand(3, 2, 44, 44, dtype=torch.float64)
    y = functional.conv2d(x, w1, b1, stride=4).relu()
    y = functional.conv2d(y, w2, b2, stride=2).relu()
    y = functional.conv2d(y, w3, b3).relu()
    assert_close(cnn(x), functional.linear(y.flatten(1), w4, b4).relu())


@pytest.mark.parametrize("size", [(36, 36), (36, 50), (210, 160)])
def test_nature_cnn_takes_any_image_large_enough(size: tuple[int, int]) -> None:
    assert NatureCNN((1, *size), hidden_size=8)(torch.rand(2, 1, *size)).shape == (2, 8)


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (
            "nature_cnn",
            (35, 84, 1),
            r"model\.network nature_cnn needs .*36x36, got \[1, 35, 84\].*minatar_cnn",
        ),
        ("nature_cnn", (4,), r"model\.network nature_cnn needs an image.*got \[4\].*mlp"),
        ("minatar_cnn", (4,), r"model\.network minatar_cnn needs an image.*got \[4\].*mlp"),
    ],
)
def test_torso_refuses_observations_it_cannot_see(network: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(box(shape), network)


@pytest.mark.parametrize(
    ("network", "init_args"),
    [
        ("mlp", {"hidden_sizes": [64, 0]}),
        ("minatar_cnn", {"hidden_size": 0}),
        ("nature_cnn", {"hidden_size": 0}),
    ],
)
def test_torso_refuses_empty_layers_by_name(network: str, init_args: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"model\.network\.init_args\.{next(iter(init_args))} must be"):
        build(box((40, 40)), network, **init_args)


@pytest.mark.parametrize(
    ("spec", "torso"),
    [
        (box((4,)), MLP),
        (discrete(16), MLP),
        (box((128,), np.uint8, frame_stack=4), MLP),
        (box((5, 5)), MLP),
        (box((10, 10, 4), bool), MinAtarCNN),
        (box((7, 7, 3), np.uint8), MinAtarCNN),
        (box((35, 84)), MinAtarCNN),
        (box((36, 36)), NatureCNN),
        (box((84, 84), np.uint8, frame_stack=4), NatureCNN),
        (box((96, 96, 3), np.uint8, frame_stack=4), NatureCNN),
    ],
)
def test_auto_chooses_the_torso_by_the_encoded_shape(spec: EnvSpec, torso: type) -> None:
    assert type(build(spec).torso) is torso


def test_auto_passes_init_args_to_the_torso_it_chooses() -> None:
    assert build(box((4,)), hidden_sizes=[7]).torso.num_features == 7


def test_learner_settings_reach_the_head() -> None:
    learner = LearnerConfig(dueling=False, huber_delta=2.5)
    head = ClassSpec("expected", {"hidden_size": 9})
    network = build_network(box((4,)), ClassSpec("mlp"), head, learner)
    assert network.head.value is None
    assert network.head.huber_delta == 2.5
    assert network.head.advantage[0].out_features == 9


def test_learner_setting_in_the_head_is_pointed_to_its_place() -> None:
    head = ClassSpec("expected", {"dueling": False})
    with pytest.raises(
        ValueError, match=r"model\.head\.init_args\.dueling must be set as model\.learner\.dueling"
    ):
        build_network(box((4,)), ClassSpec("mlp"), head, LearnerConfig())


class NoisyTorso(nn.Module):
    """A linear layer with factorless noise, drawn by `resample` alone."""

    def __init__(self, shape: tuple[int, ...], num_features: int = 8) -> None:
        super().__init__()
        self.linear = nn.Linear(shape[0], num_features)
        self.num_features = num_features
        self.noise = torch.zeros_like(self.linear.weight)

    def resample(self, generator: torch.Generator) -> None:
        self.noise = torch.randn(self.noise.shape, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.linear.weight + self.noise, self.linear.bias)


NOISY = f"{__name__}.NoisyTorso"
FEATURELESS = f"{__name__}.Featureless"


class Featureless(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()


def test_network_hands_noise_to_the_modules_that_declare_it() -> None:
    network = build(box((4,)), NOISY, num_features=5)
    assert network.stochastic_modules() == [network.torso]
    obs = {OBS: torch.ones(2, 4)}
    outputs = []
    for seed in (1, 2, 1):
        network.resample(torch.Generator().manual_seed(seed))
        assert torch.equal(network(obs), network(obs))
        outputs.append(network(obs))
    assert torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], outputs[1])


def test_noise_of_a_head_is_found_too() -> None:
    torso = NoisyTorso((4,))
    head = nn.Sequential(NoisyTorso((8,)), ExpectedHead(8, 3))
    assert QNetwork(Encoder(box((4,))), torso, head).stochastic_modules() == [torso, head[0]]


def test_deterministic_network_draws_nothing() -> None:
    network = build(box((4,)))
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    network.resample(generator)
    assert network.stochastic_modules() == []
    assert torch.equal(generator.get_state(), before)


def test_copied_network_resamples_its_own_modules() -> None:
    online = build(box((4,)), NOISY)
    target = copy.deepcopy(online)
    assert target.stochastic_modules() == [target.torso]
    assert isinstance(online.torso, NoisyTorso)
    assert isinstance(target.torso, NoisyTorso)
    target.resample(torch.Generator().manual_seed(0))
    assert torch.equal(online.torso.noise, torch.zeros(8, 4))
    assert not torch.equal(target.torso.noise, online.torso.noise)


def test_network_answers_in_outputs_values_and_actions() -> None:
    network = build(box((4,)))
    obs = {OBS: torch.randn(6, 4)}
    assert network(obs).shape == (6, 3)
    assert torch.equal(network.q_values(obs), network(obs))
    assert torch.equal(network.greedy(obs), network(obs).argmax(1))


def test_torso_without_num_features_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.network: .*Featureless has no num_features"):
        build(box((4,)), FEATURELESS)


def test_head_without_its_methods_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.head: torch\.nn\.Linear has no q_values and no greedy"):
        build(box((4,)), head="torch.nn.Linear")


def test_network_is_remade_by_the_global_seed() -> None:
    torch.manual_seed(3)
    first = build(box((4,))).state_dict()
    torch.manual_seed(3)
    second = build(box((4,))).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert isinstance(build(box((4,))).head, ExpectedHead)
