"""Single layers: what they cost, what they hand on, and that nobody notices they were looked at."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from holdfast.timing.interventions import LayerInputs, layer_excess_s
from holdfast.timing.layers import profile_layers
from torch import Tensor, nn


class Slow(nn.Linear):
    """Does what it does, and something more."""

    def forward(self, x: Tensor) -> Tensor:
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            pass
        return super().forward(x)


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4 * 36, 3)
    )


def test_flops_and_bytes_are_those_on_paper() -> None:
    profile = profile_layers(images(), torch.ones(2, 1, 8, 8))
    by_kind = {layer.kind: layer for layer in profile.layers}
    assert by_kind["Conv2d"].flops == 2 * (2 * 4 * 6 * 6) * 9  # multiply and add, for each output
    assert by_kind["Linear"].flops == 2 * 2 * 144 * 3
    assert by_kind["Conv2d"].output_bytes == 4 * 2 * 4 * 6 * 6
    assert by_kind["Linear"].parameter_bytes == 4 * (144 * 3 + 3)
    assert all(layer.calls == 1 for layer in profile.layers)
    assert 0 < sum(layer.seconds for layer in profile.layers) <= profile.seconds


def test_dead_units_zeros_and_nan_are_counted() -> None:
    linear = nn.Linear(2, 4, bias=False)
    linear.weight.data = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [float("nan"), 0]])
    x = torch.tensor([[1.0, 1], [1, -1]])
    profile = profile_layers(nn.Sequential(linear, nn.ReLU()), x)
    relu = profile.layers[1]
    assert profile.layers[0].nan_share == relu.nan_share == 0.25
    assert relu.zero_share == 3 / 8  # the second unit twice, the third once
    assert relu.dead_share == 1 / 4
    assert relu.mean == pytest.approx(3 / 6)
    assert relu.std == pytest.approx(0.5)


def test_a_module_is_left_as_it_was() -> None:
    module = images().train()
    module[5].weight.grad = torch.ones_like(module[5].weight)
    before, drawn = {k: v.clone() for k, v in module.state_dict().items()}, torch.get_rng_state()
    profile_layers(module, torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert torch.equal(module[5].weight.grad, torch.ones(3, 144))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_a_batch_of_inputs_and_targets_gives_the_forward_what_it_needs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
            return self.layer(x + y) * scale

    batch = (torch.ones(1, 2), torch.ones(1, 2), torch.ones(1))
    assert [layer.name for layer in profile_layers(Two(), batch).layers] == ["layer"]
    assert len(profile_layers(Two(), batch, lambda b: b[0]).layers) == 0


def test_attention_is_a_layer() -> None:
    module = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    kinds = {layer.kind for layer in profile_layers(module, torch.rand(2, 3, 8)).layers}
    assert {"MultiheadAttention", "Linear", "LayerNorm"} <= kinds


def test_trace_and_table_are_written(tmp_path: Path) -> None:
    profile_layers(images(), torch.ones(2, 1, 8, 8), trace=tmp_path / "t.json", table=tmp_path / "t.txt")
    names = {event.get("name") for event in json.loads((tmp_path / "t.json").read_text())["traceEvents"]}
    assert {"forward", "aten::addmm"} <= names
    first, *rows = (tmp_path / "t.txt").read_text().splitlines()
    assert first.split()[:3] == ["layer", "kind", "us"]
    assert len(rows) == 6


def excess_of(module: nn.Module, x: Tensor) -> float:
    inputs = LayerInputs(module)
    module(x)
    calls = inputs.stop()
    assert not any(m._forward_pre_hooks for m in module.modules())
    return layer_excess_s(calls, repeats=1)


def test_layers_of_torch_have_no_excess() -> None:
    assert excess_of(images(), torch.ones(2, 1, 8, 8)) == 0.0


def test_a_layer_that_does_more_than_torch_has_an_excess() -> None:
    module = nn.Sequential(nn.Linear(2, 2), Slow(2, 2), nn.ReLU())
    assert excess_of(module, torch.ones(1, 2)) >= 0.015


def test_a_hook_and_a_replaced_forward_are_found() -> None:
    hooked = nn.Sequential(nn.Linear(2, 2))
    hooked[0].register_forward_hook(lambda *_: time.sleep(0.02))
    assert excess_of(hooked, torch.ones(1, 2)) >= 0.015
    patched = nn.Sequential(nn.Linear(2, 2))
    forward = patched[0].forward

    def slow(x: Any) -> Any:
        time.sleep(0.02)
        return forward(x)

    patched[0].forward = slow
    assert excess_of(patched, torch.ones(1, 2)) >= 0.015


def test_an_intervention_draws_from_no_stream_of_the_training() -> None:
    class Noisy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.rand(1)

    module = nn.Sequential(Noisy(2, 2))
    inputs = LayerInputs(module)
    module(torch.ones(1, 2))
    before = torch.get_rng_state()
    layer_excess_s(inputs.stop())
    assert torch.equal(torch.get_rng_state(), before)
