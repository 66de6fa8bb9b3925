"""Heads: their losses, greedy actions and priorities; and that a distributional one fits the interface."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn, tensor
from torch.testing import assert_close

from perdqn.config import ClassSpec, LearnerConfig
from perdqn.learning import td
from perdqn.learning.heads import ExpectedHead, Head
from perdqn.learning.networks import MLP, Encoder, QNetwork, build_network
from perdqn.learning.td import ItemLoss
from perdqn.transition import OBS, Column, EnvSpec

TWO_STATES = EnvSpec((Column(OBS, (), np.dtype(np.int64), num_values=2),), is_dict=False, num_actions=2)
GAMMA = 0.5


def set_linear(layer: nn.Module | None, weight: list[list[float]], bias: list[float]) -> None:
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight.copy_(tensor(weight))
        layer.bias.copy_(tensor(bias))


def test_plain_head_is_one_linear_layer() -> None:
    head = ExpectedHead(2, 3, dueling=False)
    set_linear(head.advantage, [[1, 0], [0, 1], [1, 1]], [0, 0, -1])
    assert_close(head(tensor([[2.0, 5.0]])), tensor([[2.0, 5.0, 6.0]]))


def test_dueling_head_adds_the_advantages_less_their_mean_to_the_value() -> None:
    head = ExpectedHead(2, 3)
    set_linear(head.value, [[1, 1]], [0])
    set_linear(head.advantage, [[1, 0], [0, 1], [1, 1]], [0, 0, 1])
    # V = 7; A = 2, 5, 8 with mean 5; and V = 1; A = 1, 0, 2 with mean 1
    assert_close(head(tensor([[2.0, 5.0], [1.0, 0.0]])), tensor([[4.0, 7.0, 10.0], [1.0, 0.0, 2.0]]))


def test_hidden_size_gives_each_stream_a_layer_of_its_own() -> None:
    head = ExpectedHead(3, 4, hidden_size=7)
    shapes = sorted(tuple(p.shape) for p in head.parameters() if p.ndim == 2)
    assert shapes == [(1, 7), (4, 7), (7, 3), (7, 3)]
    assert head(torch.zeros(2, 3)).shape == (2, 4)


def test_hidden_layer_of_a_stream_is_rectified() -> None:
    head = ExpectedHead(1, 1, dueling=False, hidden_size=2)
    first, *_, last = head.advantage.children()
    set_linear(first, [[1], [-1]], [0, 0])
    set_linear(last, [[1, 1]], [0])
    assert_close(head(tensor([[-3.0], [2.0]])), tensor([[3.0], [2.0]]))  # the absolute value


def test_greedy_takes_the_lowest_of_equal_actions() -> None:
    greedy = ExpectedHead(1, 3).greedy(tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [0.0, 1.0, 2.0]]))
    assert greedy.tolist() == [1, 0, 2]
    assert greedy.dtype == torch.int64


@pytest.mark.parametrize(("loss", "expected"), [("huber", [1.5, 0.125]), ("squared", [2.0, 0.125])])
def test_expected_head_weighs_its_td_error_by_the_chosen_loss(loss: str, expected: list[float]) -> None:
    head = ExpectedHead(1, 2, loss=loss)
    output = tensor([[0.0, 3.0], [1.0, 0.5]], requires_grad=True)
    no_discount = torch.zeros(2)
    item = head.item_loss(output, tensor([1, 0]), tensor([1.0, 1.5]), no_discount, output, tensor([0, 0]))
    assert_close(item.td_error, tensor([-2.0, 0.5]))
    assert_close(item.priority, tensor([2.0, 0.5]))
    assert_close(item.loss, tensor(expected))
    assert item.loss.requires_grad
    assert not item.priority.requires_grad
    assert not item.td_error.requires_grad


def test_huber_delta_is_where_the_loss_turns_linear() -> None:
    head = ExpectedHead(1, 1, huber_delta=0.5)
    zeros = torch.zeros(1, 1)
    item = head.item_loss(zeros, tensor([0]), tensor([2.0]), tensor([0.0]), zeros, tensor([0]))
    assert_close(item.loss, tensor([0.5 * (2.0 - 0.25)]))


@pytest.mark.parametrize(
    ("setting", "value"),
    [("loss", "hubert"), ("huber_delta", 0.0), ("huber_delta", math.nan), ("hidden_size", 0)],
)
def test_head_refuses_bad_settings_by_name(setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"model\..*{setting} must be .*{value}"):
        ExpectedHead(2, 2, **{setting: value})  # type: ignore[arg-type]


# The whole update on paper. Two states, two actions, no hidden layer: Q(s, a) = weight[a, s] + bias[a].
#
#            Q(s0)     Q(s1)
# online     1   2     3   5     so the online network chooses action 1 in s1,
# target     0   0    10   4     which the target network values at 4 and not at its own best, 10.
#
# Two steps of gamma 0.5 from s0 by action 0, with rewards 1 and 2: R = 1 + 0.5 * 2 = 2.


def tabular(q_values_s0: list[float], q_values_s1: list[float]) -> QNetwork:
    head = ExpectedHead(2, 2, dueling=False, loss="squared")
    set_linear(head.advantage, torch.tensor([q_values_s0, q_values_s1]).T.tolist(), [0, 0])
    return QNetwork(Encoder(TWO_STATES), MLP((2,), hidden_sizes=()), head)


def update_once(discount: float, is_weight: float, double: bool = True) -> tuple[QNetwork, ItemLoss]:
    """One step of gradient descent at rate 0.1 on the transition above."""
    online, target = tabular([1, 2], [3, 5]), tabular([0, 0], [10, 4])
    obs, next_obs = {OBS: tensor([0])}, {OBS: tensor([1])}
    next_output = target(next_obs)
    next_action = online.greedy(next_obs) if double else target.head.greedy(next_output)
    item = online.head.item_loss(
        online(obs), tensor([0]), tensor([2.0]), tensor([discount]), next_output, next_action
    )
    optimizer = torch.optim.SGD(online.parameters(), lr=0.1)
    (item.loss * is_weight).mean().backward()
    optimizer.step()
    return online, item


def test_double_q_update_bootstraps_a_truncated_window() -> None:
    online, item = update_once(discount=GAMMA**2, is_weight=0.5)
    # y = 2 + 0.25 * 4 = 3, delta = 3 - 1 = 2, loss = 2^2 / 2; slope -delta * 0.5 = -1 times the rate 0.1
    assert_close(item.td_error, tensor([2.0]))
    assert_close(item.priority, tensor([2.0]))
    assert_close(item.loss, tensor([2.0]))
    assert_close(online.head.advantage.weight, tensor([[1.1, 3.0], [2.0, 5.0]]))
    assert_close(online.head.advantage.bias, tensor([0.1, 0.0]))


def test_double_q_update_ends_at_a_terminated_window() -> None:
    online, item = update_once(discount=0.0, is_weight=0.5)
    # y = 2, delta = 1; slope -0.5 times the rate 0.1
    assert_close(item.td_error, tensor([1.0]))
    assert_close(online.head.advantage.weight, tensor([[1.05, 3.0], [2.0, 5.0]]))
    assert_close(online.head.advantage.bias, tensor([0.05, 0.0]))


def test_plain_q_update_bootstraps_from_the_target_networks_own_best_action() -> None:
    _, item = update_once(discount=GAMMA**2, is_weight=1.0, double=False)
    # y = 2 + 0.25 * 10 = 4.5
    assert_close(item.td_error, tensor([3.5]))


class Categorical(Head):
    """C51 (arXiv:1707.06887), as small as it goes: what a distributional head needs of the interface."""

    support: Tensor

    def __init__(self, num_features: int, num_actions: int, num_atoms: int = 3) -> None:
        super().__init__()
        self.logits = nn.Linear(num_features, num_actions * num_atoms)
        self.shape = (num_actions, num_atoms)
        self.register_buffer("support", torch.linspace(-1, 1, num_atoms))

    def forward(self, features: Tensor) -> Tensor:
        return self.logits(features).unflatten(1, self.shape)

    def q_values(self, output: Tensor) -> Tensor:
        return output.softmax(-1) @ self.support

    def project(self, probability: Tensor, reward: Tensor, discount: Tensor) -> Tensor:
        moved = (reward.unsqueeze(1) + discount.unsqueeze(1) * self.support).clamp(-1, 1)
        spacing = self.support[1] - self.support[0]
        share = 1 - (moved.unsqueeze(1) - self.support.view(1, -1, 1)).abs() / spacing
        return (share.clamp(min=0) * probability.unsqueeze(1)).sum(-1)

    def item_loss(
        self,
        output: Tensor,
        action: Tensor,
        reward: Tensor,
        discount: Tensor,
        next_output: Tensor,
        next_action: Tensor,
    ) -> ItemLoss:
        next_probability = td.select(next_output, next_action).softmax(-1).detach()
        target = self.project(next_probability, reward, discount)
        logits = td.select(output, action)
        loss = -(target * logits.log_softmax(-1)).sum(-1)
        error = (target - logits.softmax(-1)).detach() @ self.support
        return ItemLoss(loss, loss.detach(), error)


def test_distributional_projection_by_hand() -> None:
    head = Categorical(1, 1)
    probability = tensor([[0.2, 0.3, 0.5], [0.2, 0.3, 0.5]])
    # 0.5 + 0.5 * (-1, 0, 1) = (0, 0.5, 1): the middle atom's 0.3 is split between 0 and 1.
    # Terminated: all mass at 0.5, split in halves.
    projected = head.project(probability, tensor([0.5, 0.5]), tensor([0.5, 0.0]))
    assert_close(projected, tensor([[0.0, 0.35, 0.65], [0.0, 0.5, 0.5]]))


def test_distributional_head_owns_loss_and_priority() -> None:
    head = Categorical(1, 2)
    output = tensor([[[0.25, 0.25, 0.5], [1 / 3, 1 / 3, 1 / 3]]]).log().requires_grad_()
    next_output = tensor([[[0.0, 0.0, 1.0], [0.2, 0.3, 0.5]]]).log()
    item = head.item_loss(output, tensor([0]), tensor([0.5]), tensor([0.5]), next_output, tensor([1]))
    cross_entropy = tensor([-(0.35 * math.log(0.25) + 0.65 * math.log(0.5))])
    assert_close(item.loss, cross_entropy)
    assert_close(item.priority, cross_entropy)
    assert_close(item.td_error, tensor([0.65 - 0.25]))
    item.loss.sum().backward()
    # softmax minus target, for the action taken alone
    assert_close(output.grad, tensor([[[0.25, -0.1, -0.15], [0.0, 0.0, 0.0]]]))


def test_distributional_head_fits_a_network_and_selects_by_q_values() -> None:
    spec = ClassSpec(f"{__name__}.Categorical", {"num_atoms": 5})
    online = build_network(TWO_STATES, ClassSpec("mlp"), spec, LearnerConfig())
    target = copy.deepcopy(online)
    obs = {OBS: tensor([0, 1, 1])}
    assert online.q_values(obs).shape == (3, 2)
    assert torch.equal(online.greedy(obs), online.q_values(obs).argmax(1))
    next_action = online.greedy(obs)
    ones = torch.ones(3)
    item = online.head.item_loss(online(obs), tensor([0, 1, 0]), ones, ones, target(obs), next_action)
    item.loss.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in online.parameters())
    assert (item.priority >= 0).all()
