"""TD targets and losses on numbers that can be checked on paper."""

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

from perdqn.learning import td


def test_huber_is_quadratic_inside_delta_and_linear_beyond() -> None:
    error = tensor([-3.0, -2.0, -1.0, 0.0, 1.0, 4.0])
    assert_close(td.huber(error, 2.0), tensor([4.0, 2.0, 0.5, 0.0, 0.5, 6.0]))


def test_slope_of_huber_is_the_clipped_error() -> None:
    error = tensor([-3.0, -0.5, 0.0, 0.25, 7.0], requires_grad=True)
    td.huber(error, 1.0).sum().backward()
    assert_close(error.grad, tensor([-1.0, -0.5, 0.0, 0.25, 1.0]))


def test_squared_carries_the_half_so_that_its_slope_is_the_error() -> None:
    error = tensor([-3.0, 0.5], requires_grad=True)
    loss = td.squared(error)
    loss.sum().backward()
    assert_close(loss, tensor([4.5, 0.125]))
    assert_close(error.grad, tensor([-3.0, 0.5]))


def test_squared_equals_huber_inside_delta() -> None:
    error = torch.linspace(-2, 2, 41, dtype=torch.float64)
    assert_close(td.squared(error), td.huber(error, 2.0))


def test_target_is_the_return_plus_the_discounted_value() -> None:
    # gamma 0.5: three steps leave 0.125, one step 0.5.
    y = td.bootstrap_target(tensor([1.75, 1.0]), tensor([0.125, 0.5]), tensor([8.0, -4.0]))
    assert_close(y, tensor([2.75, -1.0]))


def test_terminated_target_is_the_return_alone() -> None:
    assert_close(td.bootstrap_target(tensor([1.75]), tensor([0.0]), tensor([8.0])), tensor([1.75]))


@pytest.mark.parametrize("wrong", [(2, 1), (1,), (3,), ()])
def test_target_of_unequal_shapes_is_refused_instead_of_broadcast(wrong: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"one shape, \[batch\]"):
        td.bootstrap_target(torch.zeros(2), torch.zeros(2), torch.zeros(wrong))


def test_select_takes_each_item_by_its_own_action() -> None:
    values = tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert_close(td.select(values, tensor([2, 0])), tensor([3.0, 4.0]))


def test_select_takes_whole_distributions() -> None:
    values = torch.arange(24.0).view(2, 3, 4)
    assert_close(td.select(values, tensor([1, 2])), torch.stack([values[0, 1], values[1, 2]]))


def paper_error(next_action: list[int], discount: list[float]) -> Tensor:
    return td.td_error(
        q_values=tensor([[1.0, 2.0], [0.5, -1.0]]),
        action=tensor([0, 1]),
        reward=tensor([2.0, -3.0]),
        discount=tensor(discount),
        next_q_values=tensor([[10.0, 4.0], [8.0, 2.0]]),
        next_action=tensor(next_action),
    )


def test_td_error_is_target_minus_estimate() -> None:
    # 2 + 0.25 * 4 - 1 = 2 and -3 + 0.5 * 8 + 1 = 2
    assert_close(paper_error([1, 0], [0.25, 0.5]), tensor([2.0, 2.0]))


def test_td_error_values_the_chosen_action_and_not_the_best() -> None:
    # 2 + 0.25 * 10 - 1 = 3.5 and -3 + 0.5 * 2 + 1 = -1
    assert_close(paper_error([0, 1], [0.25, 0.5]), tensor([3.5, -1.0]))


def test_td_error_does_not_bootstrap_where_the_discount_is_zero() -> None:
    assert_close(paper_error([1, 0], [0.0, 0.0]), tensor([1.0, -2.0]))


def test_gradient_reaches_the_taken_actions_value_alone() -> None:
    q_values = torch.zeros(2, 2, requires_grad=True)
    next_q_values = torch.ones(2, 2, requires_grad=True)
    ones = torch.ones(2)
    td.td_error(q_values, tensor([0, 1]), ones, ones, next_q_values, tensor([0, 0])).sum().backward()
    assert_close(q_values.grad, tensor([[-1.0, 0.0], [0.0, -1.0]]))
    assert next_q_values.grad is None
