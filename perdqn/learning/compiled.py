"""The learning step as one compiled graph: loss, gradients, clip and Adam, on torch's own optimiser state.

Knows nothing about Lightning, replay or when to compile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from perdqn.learning.inductor import NotCompilable, load, trace, tracing
from perdqn.learning.networks import QNetwork
from perdqn.learning.objective import Figures, Learned, Report, objective
from perdqn.transition import TransitionBatch

_CLIP_OFFSET = 1e-6  # as in torch.nn.utils.clip_grad_norm_
Context = Callable[[], AbstractContextManager[Any]]
Started = list[Tensor] | Future[list[Tensor]]


class CompiledStep:
    """Gradient steps, bit for bit the same in every process on one machine.

    Adam's moments and step counts are those of ``optimizer.state``, so checkpoints, another learning rate and
    going on without this class work as ever.

    Args:
        online, target: networks of one architecture, where they are trained.
        optimizer: `torch.optim.Adam` with one group over parameters of ``online``.
        batch: one to trace with; later ones have its shapes and dtypes.
        double: see `perdqn.learning.objective`.
        max_grad_norm: gradients are scaled down to this norm; None leaves them alone.
        forward_context: entered around the forward pass, as for mixed precision.
        on_compile: called before compiling, which takes a while; not where the machine code is on disk.
        in_background: compute in a thread of its own, so that Python goes on between `start` and `finish`.

    Raises:
        NotCompilable: something rules a compiled graph out; says what.
    """

    def __init__(
        self,
        online: QNetwork,
        target: QNetwork,
        optimizer: torch.optim.Optimizer,
        batch: TransitionBatch,
        double: bool,
        max_grad_norm: float | None,
        forward_context: Context = nullcontext,
        in_background: bool = False,
        on_compile: Callable[[], None] = lambda: None,
    ) -> None:
        _refuse_other_optimizers(optimizer)
        update = _Update(online, target, optimizer, batch, double, forward_context)
        self._optimizer, self._update = optimizer, update
        self._max_grad_norm = math.inf if max_grad_norm is None else max_grad_norm
        dtype = torch.promote_types(optimizer.param_groups[0]["params"][0].dtype, torch.float32)
        self._adam = torch.zeros(7, dtype=dtype, device=batch.action.device)
        self._state: list[Tensor] = []
        self._counts: list[Tensor] = []
        self._num_before = self._num_taken = 0
        self.begin()
        inputs = [*self._state, *_columns(batch)]
        program = load(trace(update, inputs), inputs, on_compile)
        self._run: Callable[[list[Tensor]], list[Tensor]] = program.run
        self._pending: Future[list[Tensor]] | None = None
        self._thread: ThreadPoolExecutor | None = None
        if in_background and batch.action.device.type == "cpu":
            self._run = program.unlocked(len(inputs))
            threads = torch.get_num_threads()  # a new thread has its own
            self._thread = ThreadPoolExecutor(1, "learning", torch.set_num_threads, (threads,))

    def start(self, batch: TransitionBatch) -> Started:
        """Begin one step, between `begin` and `end`; until it is finished, batch and weights are its own."""
        if self._update.is_stochastic:
            self._bind()  # new noise may be in new tensors
        self._set_numbers(self._num_before + self._num_taken + 1)
        inputs = [*self._state, *_columns(batch)]
        if self._thread is None:
            return self._run(inputs)
        self._pending = self._thread.submit(self._run, inputs)
        return self._pending

    def finish(self, started: Started) -> Report | None:
        """Wait for a step's end.

        Returns:
            None where loss or gradients are not finite; weights and optimiser are as they were then.
        """
        (out,) = started if isinstance(started, list) else started.result()
        self._pending = None
        told = out.cpu().numpy()
        numbers = told[-len(Figures._fields) :].tolist()
        if not math.isfinite(numbers[0] + numbers[1]):
            return None
        self._num_taken += 1
        return Report(numbers[0], told[: -len(Figures._fields)], partial(Figures, *numbers))

    def begin(self) -> None:
        """Before some steps: see where weights and optimiser state lie, and how many steps were taken."""
        self._bind()
        self._num_before, self._num_taken = int(self._counts[0]), 0

    def _bind(self) -> None:
        trained, others = self._update.weights()
        states = [_adam_state(self._optimizer, parameter) for parameter in trained]
        self._counts = [state["step"] for state in states]
        self._state = [
            *(parameter.detach() for parameter in trained),
            *(state["exp_avg"] for state in states),
            *(state["exp_avg_sq"] for state in states),
            *(other.detach() for other in others),
            self._adam,
        ]

    def _set_numbers(self, count: int) -> None:
        """What Adam's step ``count`` needs; here, since the graph would take powers for each weight."""
        group = self._optimizer.param_groups[0]
        beta1, beta2 = group["betas"]
        numbers = (
            group["lr"] / (1 - beta1**count),
            1 - beta1,
            beta2,
            1 - beta2,
            math.sqrt(1 - beta2**count),
            group["eps"],
            self._max_grad_norm,
        )
        if self._adam.device.type == "cpu":
            self._adam.numpy()[:] = numbers
        else:
            self._adam.copy_(torch.tensor(numbers, dtype=self._adam.dtype).pin_memory(), non_blocking=True)

    def end(self) -> int:
        """After some steps: write their number into the optimiser's state, and return it."""
        if self._pending is not None:
            self.finish(self._pending)  # acting failed meanwhile
        num_taken, self._num_taken = self._num_taken, 0
        if num_taken:
            torch._foreach_add_(self._counts, num_taken)
        return num_taken


class _Update(nn.Module):
    """The graph's source: tensors in as `CompiledStep.begin` lists them, new weights and moments in place."""

    def __init__(
        self,
        online: QNetwork,
        target: QNetwork,
        optimizer: torch.optim.Optimizer,
        batch: TransitionBatch,
        double: bool,
        forward_context: Context,
    ) -> None:
        super().__init__()
        self._networks = {"online": online, "target": target}  # a dict hides them: all weights are inputs
        self._double, self._context, self._like = double, forward_context, batch
        self._places = _places(self._networks)
        optimized = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
        named = self._named()
        self._trained = [name for name, tensor in named.items() if id(tensor) in optimized]
        with tracing(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            leaves = [mode.from_tensor(named[name].detach()).requires_grad_() for name in self._trained]
            others = [mode.from_tensor(tensor) for name, tensor in named.items() if name not in self._trained]
            columns = [mode.from_tensor(column) for column in _columns(batch)]
            learned = self._learn(leaves, others, columns)
            gradients = torch.autograd.grad(learned.loss, leaves, allow_unused=True)
        reached = zip(self._trained, gradients, strict=True)
        self._trained = [name for name, gradient in reached if gradient is not None]

    def _named(self) -> dict[str, Tensor]:
        """Parameters and buffers of both networks, as they are now."""
        return {name: owner[key] for name, (owner, key) in self._places.items()}

    @property
    def is_stochastic(self) -> bool:
        return any(network.stochastic_modules() for network in self._networks.values())

    def weights(self) -> tuple[list[Tensor], list[Tensor]]:
        """Parameters that take gradients, and all other tensors of the networks."""
        named = self._named()
        return [named.pop(name) for name in self._trained], list(named.values())

    def _learn(
        self, leaves: Sequence[Tensor], others: Sequence[Tensor], columns: Sequence[Tensor]
    ) -> Learned:
        names = [name for name in self._named() if name not in self._trained]
        tensors = dict(zip([*self._trained, *names], [*leaves, *others], strict=True))
        batch = _batch(self._like, columns)
        with torch.enable_grad(), self._context():
            return functional_call(_Objective(self._networks, self._double), tensors, (batch,))

    def forward(self, *inputs: Tensor) -> Tensor:
        """float32 [batch + figures]: priorities, then `Figures`."""
        num, rest = len(self._trained), len(self._named()) - len(self._trained)
        weights, exp_avgs, exp_avg_sqs = inputs[:num], inputs[num : 2 * num], inputs[2 * num : 3 * num]
        others, adam = inputs[3 * num : 3 * num + rest], inputs[3 * num + rest]
        leaves = [weight.detach().requires_grad_() for weight in weights]
        learned = self._learn(leaves, others, inputs[3 * num + rest + 1 :])
        gradients = torch.autograd.grad(learned.loss, leaves)
        with torch.no_grad():
            step_size, rest1, beta2, rest2, correction, eps, max_norm = adam.unbind()
            loss = learned.loss.detach()
            norm = torch.stack([gradient.float().square().sum() for gradient in gradients]).sum().sqrt()
            scale = (max_norm / (norm + _CLIP_OFFSET)).clamp(max=1.0)
            scale = torch.where(torch.isfinite(loss + norm), scale, torch.nan)
            # A reduction is computed once; what is not, inductor would repeat within the loops over weights.
            scale = scale.expand(16).amin()
            is_finite = scale == scale
            parts = zip(weights, exp_avgs, exp_avg_sqs, gradients, strict=True)
            for weight, exp_avg, exp_avg_sq, gradient in parts:
                gradient = gradient * scale
                mean = exp_avg + rest1 * (gradient - exp_avg)
                square = beta2 * exp_avg_sq + rest2 * gradient * gradient
                moved = weight - step_size * mean / (square.sqrt() / correction + eps)
                weight.copy_(torch.where(is_finite, moved, weight))
                exp_avg.copy_(torch.where(is_finite, mean, exp_avg))
                exp_avg_sq.copy_(torch.where(is_finite, square, exp_avg_sq))
            error = learned.td_error.abs()
            numbers = torch.stack(
                [x.to(adam.dtype) for x in (loss, norm, error.mean(), error.max(), learned.q_values.mean())]
            )
            return torch.cat([learned.priority.to(adam.dtype), numbers])


def _places(networks: dict[str, QNetwork]) -> dict[str, tuple[dict[str, Any], str]]:
    """By name, where each tensor of the networks hangs; one that hangs in two places is named once."""
    found: dict[str, tuple[dict[str, Any], str]] = {}
    seen: set[int] = set()
    for which, network in networks.items():
        for path, part in network.named_modules(prefix=which):
            for owner in (part._parameters, part._buffers):
                for key, tensor in owner.items():
                    if tensor is not None and id(tensor) not in seen:
                        seen.add(id(tensor))
                        found[f"{path}.{key}"] = (owner, key)
    return found


class _Objective(nn.Module):
    """Both networks under one roof, for `functional_call`."""

    def __init__(self, networks: dict[str, QNetwork], double: bool) -> None:
        super().__init__()
        self.online, self.target = networks["online"], networks["target"]
        self._double = double

    def forward(self, batch: TransitionBatch) -> Learned:
        return objective(self.online, self.target, batch, self._double)


def _columns(batch: TransitionBatch) -> list[Tensor]:
    return [
        *batch.obs.values(),
        *batch.next_obs.values(),
        batch.action,
        batch.reward,
        batch.discount,
        batch.is_weight,
    ]


def _batch(like: TransitionBatch, columns: Sequence[Tensor]) -> TransitionBatch:
    """The reverse of `_columns`."""
    num = len(like.obs)
    action, reward, discount, is_weight = columns[2 * num :]
    return TransitionBatch(
        obs=dict(zip(like.obs, columns[:num], strict=True)),
        action=action,
        reward=reward,
        discount=discount,
        next_obs=dict(zip(like.obs, columns[num : 2 * num], strict=True)),
        is_weight=is_weight,
        id=like.id,
    )


def _refuse_other_optimizers(optimizer: torch.optim.Optimizer) -> None:
    if type(optimizer) is not torch.optim.Adam or len(optimizer.param_groups) != 1:
        raise NotCompilable("the optimizer is not torch.optim.Adam with one group of parameters")
    group = optimizer.param_groups[0]
    differing = [
        name for name in ("weight_decay", "amsgrad", "maximize", "decoupled_weight_decay") if group[name]
    ]
    if differing:
        raise NotCompilable(f"Adam's {differing[0]} is set to {group[differing[0]]}")


def _adam_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """As Adam itself makes it at its first step."""
    state: dict[str, Tensor] = optimizer.state[parameter]
    if not state:
        is_fused = optimizer.param_groups[0]["fused"]
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device if is_fused else "cpu")
        state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return state
