"""NaN and infinity are found where they stand, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from holdfast.triggers import Numerics, non_finite

NAN, INF = float("nan"), float("inf")


@pytest.fixture
def numerics(run) -> Numerics:
    trigger = Numerics()
    trigger.start(run.context)
    return trigger


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]
)
def test_the_tensor_that_is_not_finite_is_named(bad, dtype):
    tensors = {"good": torch.ones(5, dtype=dtype), "bad": torch.tensor([1.0, bad, 2.0]).to(dtype)}
    assert non_finite(tensors.items()) == "bad"


@pytest.mark.parametrize(
    "value",
    [
        torch.full((3,), 3e38),  # squares overflow, the numbers do not
        torch.full((1000,), 60_000.0, dtype=torch.float16),
        torch.full((3,), 1e308, dtype=torch.float64),
        torch.tensor([2**62]),
        torch.tensor([True]),
        torch.empty(0),
        torch.ones(3).to(torch.float8_e4m3fn),
        torch.eye(3).to_sparse(),
        torch.ones(3, requires_grad=True),
    ],
    ids=str,
)
def test_whatever_is_finite_or_cannot_be_otherwise_is_left_alone(value):
    assert non_finite([("value", value)]) is None


@pytest.mark.parametrize("outputs", [torch.tensor(NAN), {"loss": torch.tensor(INF)}])
def test_a_loss_is_found_as_tensor_or_in_a_dict(numerics, outputs):
    assert not numerics.check_loss(outputs)
    assert numerics.fired().message == "the loss is NaN or infinite"
    assert numerics.fired().is_stopping


@pytest.mark.parametrize("outputs", [None, {}, {"loss": None}, torch.tensor(1.0), torch.ones(3)])
def test_no_loss_is_a_good_loss(numerics, outputs):
    assert numerics.check_loss(outputs)
    assert numerics.fired() is None


def test_gradients_are_looked_at_where_there_are_some(numerics):
    layer = torch.nn.Linear(2, 1)
    assert numerics.check_gradients(layer.named_parameters())
    layer(torch.tensor([NAN, 1.0])).sum().backward()
    assert not numerics.check_gradients(layer.named_parameters())
    assert numerics.fired().message == "NaN or infinity in the gradient of weight"


def test_buffers_that_never_were_finite_are_meant_so(numerics):
    mask, mean = torch.full((2, 2), -INF).triu(1), torch.zeros(3)
    numerics.accept([("mask", mask), ("mean", mean)])
    assert numerics.check_state([("mask", mask), ("mean", mean)])
    assert not numerics.check_state([("mask", mask), ("mean", mean / 0)])
    assert numerics.fired().message == "NaN or infinity in mean"


def test_a_module_may_declare_more(numerics):
    class Module:
        found: str | None = None

        def non_finite(self) -> str | None:
            return self.found

    assert numerics.check_declared(object())
    assert numerics.check_declared(Module())
    Module.found = "3 priorities of the replay"
    assert not numerics.check_declared(Module())
    assert numerics.fired().message == "NaN or infinity in 3 priorities of the replay"


def test_a_period_below_one_is_refused():
    with pytest.raises(ValueError, match="check_every_n_steps"):
        Numerics(0)
