"""The compiled step against torch's own: same loss, gradients, clip, Adam, and the same optimiser state."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from perdqn.config import ClassSpec, LearnerConfig
from perdqn.learning import inductor
from perdqn.learning.compiled import CompiledStep
from perdqn.learning.inductor import NotCompilable
from perdqn.learning.networks import TORSOS, QNetwork, build_network
from perdqn.learning.objective import Figures, Report, eager_report, objective
from perdqn.transition import OBS, Column, EnvSpec, TransitionBatch

pytestmark = pytest.mark.timeout(400)  # compiling takes a while

BATCH = 12
VECTOR = EnvSpec((Column(OBS, (4,), np.dtype(np.float32)),), False, 3)
IMAGE = EnvSpec((Column(OBS, (10, 10), np.dtype(np.uint8)),), False, 3, frame_stack=2)
MLP = ClassSpec("mlp", {"hidden_sizes": [16]})


class Pair:
    """An agent that learns by a compiled step and its double that learns by torch."""

    def __init__(self, spec: EnvSpec = VECTOR, network: ClassSpec = MLP, **settings: Any) -> None:
        torch.manual_seed(0)
        self.spec, self.generator = spec, torch.Generator().manual_seed(1)
        self.learner = LearnerConfig(**{"batch_size": BATCH, "learning_rate": 0.01, **settings})
        self.online, self.target = (self._network(network) for _ in range(2))
        self.target.requires_grad_(False)
        self.optimizer = self._adam(self.online)
        self.step = self.compile()
        self.eager = copy.deepcopy((self.online, self.target))
        self.eager_optimizer = self._adam(self.eager[0])

    def _network(self, network: ClassSpec) -> QNetwork:
        return build_network(self.spec, network, ClassSpec("expected"), self.learner)

    def _adam(self, network: nn.Module) -> torch.optim.Adam:
        return torch.optim.Adam(network.parameters(), lr=self.learner.learning_rate, eps=1e-5, fused=True)

    def compile(self, **settings: Any) -> CompiledStep:
        rest = {"double": self.learner.double, "max_grad_norm": self.learner.max_grad_norm, **settings}
        return CompiledStep(self.online, self.target, self.optimizer, self.batch(), **rest)

    def take(self, batch: TransitionBatch) -> Report | None:
        return self.step.finish(self.step.start(batch))

    def batch(self) -> TransitionBatch:
        draw = self.generator

        def observations() -> dict[str, Tensor]:
            column = self.spec.columns[0]
            values = torch.rand(BATCH, *self.spec.obs_shape(column), generator=draw)
            return {column.name: values if column.dtype == np.float32 else (values * 255).to(torch.uint8)}

        return TransitionBatch(
            obs=observations(),
            action=torch.randint(0, self.spec.num_actions, (BATCH,), generator=draw),
            reward=torch.randn(BATCH, generator=draw),
            discount=torch.rand(BATCH, generator=draw).round(),
            next_obs=observations(),
            is_weight=torch.rand(BATCH, generator=draw),
            id=torch.arange(BATCH),
        )

    def learn_eagerly(
        self, batch: TransitionBatch, networks: Any = None, optimizer: torch.optim.Optimizer | None = None
    ) -> tuple[Tensor, Figures]:
        """By the double, unless others are given."""
        networks, optimizer = networks or self.eager, optimizer or self.eager_optimizer
        learned = objective(*networks, batch, self.learner.double)
        optimizer.zero_grad()
        learned.loss.backward()
        parameters = list(networks[0].parameters())
        max_norm = self.learner.max_grad_norm
        norm = None if max_norm is None else nn.utils.clip_grad_norm_(parameters, max_norm)
        figures = eager_report(learned, parameters, norm).figures()
        optimizer.step()
        return learned.priority, figures

    def assert_equal(self) -> None:
        for mine, other in zip(self.online.parameters(), self.eager[0].parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
            state, expected = self.optimizer.state[mine], self.eager_optimizer.state[other]
            assert state.keys() == expected.keys()
            for name in state:
                assert state[name].dtype == expected[name].dtype
                torch.testing.assert_close(state[name], expected[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_grad_norm": None},
        {"max_grad_norm": 0.01},
    ],
    ids=["bound never reached", "no bound", "always scaled"],
)
def test_steps_equal_torchs_own(settings: dict[str, Any]) -> None:
    pair = Pair(**{"max_grad_norm": 1e3, **settings})
    pair.step.begin()
    for _ in range(50):
        batch = pair.batch()
        report = pair.take(batch)
        priority, figures = pair.learn_eagerly(batch)
        assert report is not None
        np.testing.assert_allclose(report.priority, priority, rtol=1e-4, atol=1e-5)
        assert report.loss == report.figures().loss
        np.testing.assert_allclose(report.figures(), figures, rtol=1e-4, atol=1e-5)
    assert pair.step.end() == 50
    pair.assert_equal()


def test_an_image_network_without_double_learning_steps_alike() -> None:
    pair = Pair(IMAGE, ClassSpec("minatar_cnn", {"hidden_size": 8}), double=False, dueling=False)
    pair.step.begin()
    for _ in range(10):
        batch = pair.batch()
        assert pair.take(batch) is not None
        pair.learn_eagerly(batch)
    pair.step.end()
    pair.assert_equal()


def test_eager_steps_go_on_from_compiled_ones_and_the_other_way_round() -> None:
    pair = Pair()
    for turn in range(4):
        batches = [pair.batch() for _ in range(5)]
        if turn % 2:
            for batch in batches:
                pair.learn_eagerly(batch, (pair.online, pair.target), pair.optimizer)
        else:
            pair.step.begin()
            for batch in batches:
                pair.take(batch)
            assert pair.step.end() == 5
        for batch in batches:
            pair.learn_eagerly(batch)
    pair.assert_equal()


def test_another_learning_rate_holds_from_the_next_begin_on() -> None:
    pair = Pair()
    for optimizer in (pair.optimizer, pair.eager_optimizer):
        optimizer.param_groups[0]["lr"] = 0.5
    batch = pair.batch()
    pair.step.begin()
    pair.take(batch)
    pair.step.end()
    pair.learn_eagerly(batch)
    pair.assert_equal()


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    pair = Pair()
    pair.step.begin()
    pair.take(pair.batch())
    pair.step.end()
    before = copy.deepcopy((pair.online.state_dict(), pair.optimizer.state_dict()))
    pair.step.begin()
    bad = replace(pair.batch(), reward=torch.full((BATCH,), torch.inf))
    assert pair.take(bad) is None
    assert pair.step.end() == 0
    torch.testing.assert_close(
        (pair.online.state_dict(), pair.optimizer.state_dict()), before, rtol=0, atol=0
    )


def test_the_same_bits_every_time() -> None:
    weights = []
    for _ in range(2):
        pair = Pair()
        pair.step.begin()
        for _ in range(20):
            pair.take(pair.batch())
        weights.append(pair.online.state_dict())
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_the_same_bits_in_the_background() -> None:
    weights = []
    for in_background in (False, True):
        pair = Pair()
        pair.step = pair.compile(in_background=in_background)
        pair.step.begin()
        for _ in range(20):
            pair.take(pair.batch())
        assert pair.step.end() == 20
        weights.append(pair.online.state_dict())
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_python_goes_on_while_a_step_is_computed_in_the_background() -> None:
    pair = Pair()
    step = pair.compile(in_background=True)
    run, is_running, seen_running = step._run, False, 0

    def noted(inputs: list[Tensor]) -> list[Tensor]:
        nonlocal is_running
        is_running = True
        out = run(inputs)
        is_running = False
        return out

    step._run = noted
    step.begin()
    for _ in range(200):
        started = step.start(pair.batch())
        while not started.done():
            seen_running += is_running
        step.finish(started)
    assert seen_running > 200
    assert step.end() == 200


def test_a_step_under_way_is_waited_for_at_the_end() -> None:
    pair = Pair()
    step = pair.compile(in_background=True)
    step.begin()
    started = step.start(pair.batch())
    assert step.end() == 1
    assert started.done()


def test_what_was_compiled_once_is_loaded_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair()

    def refuse(*_: Any) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(inductor, "_compile", refuse)
    pair.compile()


def test_a_torn_file_is_compiled_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine_code: Path
) -> None:
    Pair()
    tries: list[Path] = []

    def tear_the_first(program: Any, path: Path) -> None:
        content = (machine_code / path.name).read_bytes()
        path.write_bytes(content if tries else content[: len(content) // 2])
        tries.append(path)

    monkeypatch.setenv(inductor.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(inductor, "_compile", tear_the_first)
    Pair()
    assert len(tries) == 2


def test_without_a_compiler_the_reason_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(inductor.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setitem(inductor.OPTIONS, "cpp.cxx", ("no-such-compiler",))
    with pytest.raises(NotCompilable, match="compiler"):
        Pair()
    assert list(tmp_path.iterdir()) == []


class Dropping(nn.Module):
    """A torso that draws random numbers."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(*shape, 8), nn.Dropout(0.5))
        self.num_features = 8

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Branching(Dropping):
    """A torso whose way depends on numbers."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers[0](x)
        return y if y.sum() > 0 else 2 * y


class Noisy(nn.Module):
    """A torso whose noise is another tensor after each draw."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer, self.num_features = nn.Linear(*shape, 8), 8
        self.register_buffer("noise", torch.zeros(8))

    def resample(self, generator: torch.Generator) -> None:
        self.noise = torch.randn(8, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.noise


def test_new_noise_is_seen_in_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TORSOS, "mlp", Noisy)
    pair = Pair(network=ClassSpec("mlp"))
    pair.step.begin()
    for seed in range(10):
        for network in (pair.online, pair.target, *pair.eager):
            network.resample(torch.Generator().manual_seed(seed))
        batch = pair.batch()
        assert pair.take(batch) is not None
        pair.learn_eagerly(batch)
    pair.step.end()
    pair.assert_equal()


@pytest.mark.parametrize(("torso", "why"), [(Dropping, "random"), (Branching, "cannot be traced")])
def test_networks_that_cannot_be_one_graph_are_refused(
    monkeypatch: pytest.MonkeyPatch, torso: type, why: str
) -> None:
    monkeypatch.setitem(TORSOS, "mlp", torso)
    with pytest.raises(NotCompilable, match=why):
        Pair(network=ClassSpec("mlp"))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda p: torch.optim.SGD(p), "not torch.optim.Adam"),
        (lambda p: torch.optim.AdamW(p), "not torch.optim.Adam"),
        (lambda p: torch.optim.Adam(p, amsgrad=True), "amsgrad"),
        (lambda p: torch.optim.Adam(p, weight_decay=0.1), "weight_decay"),
    ],
)
def test_other_optimisers_are_refused(make: Any, why: str) -> None:
    pair = Pair()
    pair.optimizer = make(list(pair.online.parameters()))
    with pytest.raises(NotCompilable, match=why):
        pair.compile()
