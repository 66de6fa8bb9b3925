"""Field names, shapes and devices of a batch."""

import numpy as np
import pytest
import torch

from perdqn.transition import OBS, Column, EnvSpec, TransitionBatch, copy_to


def batch_of(num):
    return TransitionBatch(
        obs={OBS: torch.zeros(num, 3)},
        action=torch.zeros(num, dtype=torch.int64),
        reward=torch.zeros(num),
        discount=torch.ones(num),
        next_obs={OBS: torch.ones(num, 3)},
        is_weight=torch.ones(num),
        id=torch.arange(num),
    )


@pytest.mark.parametrize(("frame_stack", "shape"), [(1, (84, 84)), (4, (4, 84, 84))])
def test_a_stack_is_a_leading_axis_and_a_stack_of_one_is_none(frame_stack, shape):
    column = Column(OBS, (84, 84), np.dtype(np.uint8))
    assert EnvSpec((column,), False, 6, frame_stack=frame_stack).obs_shape(column) == shape


def test_a_batch_already_on_the_device_is_not_copied():
    batch = batch_of(2)
    assert batch.to(torch.device("cpu")) is batch


def test_everything_but_the_ids_moves_to_the_device():
    moved = batch_of(2).to(torch.device("meta"))
    assert {moved.obs[OBS].device.type, moved.next_obs[OBS].device.type, moved.reward.device.type} == {"meta"}
    assert {moved.action.device.type, moved.discount.device.type, moved.is_weight.device.type} == {"meta"}
    assert moved.id.device.type == "cpu"
    assert moved.id.tolist() == [0, 1]


class Noted:
    """Stands for a tensor of a machine with a GPU."""

    def __init__(self, device, steps):
        self.device, self.steps = torch.device(device), steps

    def pin_memory(self):
        return Noted("cpu", [*self.steps, "pinned"])

    def to(self, device, non_blocking):
        return Noted(device, [*self.steps, "waits not" if non_blocking else "waits"])


@pytest.mark.parametrize(
    ("at", "to", "steps"),
    [
        ("cpu", "cuda:0", ["pinned", "waits not"]),
        ("cuda:0", "cuda:0", ["waits not"]),
        ("cpu", "cpu", ["waits"]),
        ("cuda:0", "cpu", ["waits"]),
    ],
)
def test_only_a_copy_onto_a_gpu_goes_without_waiting_and_from_pinned_memory(at, to, steps):
    assert copy_to(Noted(at, []), torch.device(to)).steps == steps
