"""One training batch: left out where it is not finite, tried again where memory ran out.

Knows nothing about checkpoints, loggers, nor what follows from either.

The seams are methods that Lightning calls through an instance, so this one Trainer can have others:

- ``strategy.backward``: every loss passes here, in automatic and (`manual_backward`) manual optimisation.
  One that is not finite is not propagated. In manual optimisation the rest of the training step is left
  too, by a `BaseException` that the step's own handlers do not catch.
- ``strategy.optimizer_step``: where nothing finite was propagated, an exception leaves the optimiser's
  closure, which every optimiser of torch evaluates before it touches weights or state. Lightning's counters
  and schedulers go on, as they do for a step that returns None.
- ``update_watch`` of a module that has this attribute: one that makes updates of its own, as one compiled
  graph, asks `Attempts.must_see_next` before each and tells `note_loss` after it. Where it must, or the loss
  is not finite, it calls `mark` and makes the update by ``manual_backward``.
- ``run`` of the two optimisation loops: what is tried again. Random streams of torch, buffers, gradients and
  what was logged by `self.log` are put back to the start of the batch, or to the last optimiser step in it.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.memory import is_oom_error
from torch import Tensor

from .resources.release import free_memory

_LARGE = 2**14  # elements from which one pass that only reads is the cheaper check
_FIRST_LOOKS, _LOOK_EVERY = 8, 64  # losses
_MOST_BYTES = 2**24  # buffers above are not copied before each batch
Ranges = list[tuple[int, int]]


class _Leave(BaseException):
    """Out of what cannot be finished; never seen outside this file."""


class Attempts:
    """Stands around every batch of a fit, from `install` to `remove`.

    Args:
        check_gradients: whether to look at gradients too; a finite loss seldom has others.
        oom_retries: how often one batch is tried again.
        on_skip: told why, each time a loss or a set of gradients is left out.
        on_retry: told why, before a batch is tried again.
        on_loss: told of every finite loss, or None.
    """

    def __init__(
        self,
        trainer: Trainer,
        check_gradients: bool,
        oom_retries: int,
        on_skip: Callable[[str], None],
        on_retry: Callable[[str], None],
        on_loss: Callable[[float], None] | None = None,
    ) -> None:
        self.num_losses = 0  # seen, the ones left out too
        self.leave_out: Ranges = []  # of these, first and last
        self._trainer = trainer
        self._check_gradients = check_gradients
        self._oom_retries = oom_retries
        self._on_skip, self._on_retry, self._on_loss = on_skip, on_retry, on_loss
        self._removals: list[Callable[[], None]] = []
        self._buffers: dict[str, tuple[dict[str, Any], str]] = {}
        self._finite: list[tuple[dict[str, Any], str]] = []  # buffers that were when training began
        self._copies: dict[str, tuple[Tensor, Tensor]] = {}
        self._copied: Collection[str] = ()
        self._logged: list[tuple[Any, dict[str, Any]]] = []
        self.draws = False  # whether batches have been seen to move torch's random stream
        self.moving: list[str] = []  # buffers that they have been seen to change
        self.next_look = 0  # at both, in losses
        self._is_looking = False
        self._rng: Tensor | None = None
        self._cuda_rng: list[int] = []  # how far each stream is
        self._has_left_out = self._is_stepping = self._has_propagated = False
        self._is_waiting: bool | None = None  # gradients for a step; None: a checkpoint may have brought some
        self._was_waiting = False  # as the batch began
        self._num_zeroed, self._zeroed = 0, self._zero_grad.total
        self._has_cuda = self._has_scaler = self._are_small = False

    def install(self) -> None:
        loop, strategy = self._trainer.fit_loop.epoch_loop, self._trainer.strategy
        self._around(loop.automatic_optimization, "run", self._run)
        self._around(loop.manual_optimization, "run", self._run)
        if not self._module.automatic_optimization:
            self._around(strategy, "training_step", self._training_step)
        self._around(strategy, "backward", self._backward)
        self._around(strategy, "optimizer_step", self._optimizer_step)
        self._around(loop._results, "update_metrics", self._update_metrics)
        if hasattr(self._module, "update_watch"):
            self._module.update_watch = self
            self._removals.append(partial(setattr, self._module, "update_watch", None))

    def remove(self) -> None:
        while self._removals:
            self._removals.pop()()

    def find_buffers(self) -> None:
        """Once the module is where it is trained."""
        owners = {name: part._buffers for name, part in self._module.named_modules()}
        found = [(path, owner, name) for path, owner in owners.items() for name in owner]
        tensors = {f"{path}.{name}": (owner, name) for path, owner, name in found if owner[name] is not None}
        self._buffers = {key: at for key, at in tensors.items() if at[0][at[1]].nbytes <= _MOST_BYTES}
        self._finite = [(owner, name) for owner, name in tensors.values() if _is_finite_float(owner[name])]
        self.moving = [key for key in self.moving if key in self._buffers]  # as a checkpoint had them
        self._copies, self._copied, self._is_looking = {}, (), False
        self._is_waiting = None
        self._zeroed = self._zero_grad.total
        self._are_small = _are_alike_and_small(list(self._module.parameters()))
        self._has_scaler = getattr(self._trainer.precision_plugin, "scaler", None) is not None
        self._has_cuda = torch.cuda.is_initialized()

    @property
    def _module(self) -> Any:
        return self._trainer.lightning_module

    def _around(self, owner: Any, name: str, around: Callable[..., Any]) -> None:
        before = vars(owner).get(name)
        setattr(owner, name, partial(around, getattr(owner, name)))
        put_back = partial(delattr, owner, name) if before is None else partial(setattr, owner, name, before)
        self._removals.append(put_back)

    # -- one batch -------------------------------------------------------------------------------

    def _run(self, run: Callable[..., Any], *args: Any) -> Any:
        if self._is_waiting is None:
            self._is_waiting = any(p.grad is not None for p in self._module.parameters())
        self._was_waiting = self._is_waiting
        self._has_left_out = self._is_stepping = self._has_propagated = False
        self._num_zeroed = self._zeroed.completed
        self.mark()
        try:
            result = run(*args)
        except Exception as error:
            result = self._try_again(error, run, args)
        if self._is_looking:
            self._look()
        return result

    def _try_again(self, error: Exception, run: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        for _ in range(self._oom_retries):
            if not is_out_of_memory(error) or not self._can_undo(args):
                break
            traceback.clear_frames(error.__traceback__)  # they hold the tensors that did not fit
            self._on_retry(str(error))
            self._undo_batch()
            free_memory(self._trainer)
            try:
                return run(*args)
            except Exception as again:
                error = again
        raise error

    def has_finite_state(self) -> bool:
        """Weights, and buffers that were finite when training began: one may have begun to move unseen."""
        buffers = [owner[name] for owner, name in self._finite if owner.get(name) is not None]
        tensors = [*self._module.parameters(), *buffers]
        return are_finite(tensor.detach().clone() for tensor in tensors)  # the check writes to what it reads

    def _look(self) -> None:
        """Copies of what no batch changes are left out: one of the random stream alone costs 7 us."""
        self._is_looking = False
        self.draws |= not torch.equal(self._rng, torch.default_generator.get_state())  # type: ignore[arg-type]
        for key in sorted(set(self._copied).difference(self.moving)):
            (owner, name), (tensor, copy) = self._buffers[key], self._copies[key]
            if owner[name] is not tensor or not torch.equal(tensor, copy):
                self.moving.append(key)
        if self.num_losses >= _FIRST_LOOKS:
            self.next_look = self.num_losses + _LOOK_EVERY

    def _can_undo(self, args: tuple[Any, ...]) -> bool:
        """Whether the batch can be had again, and nothing it has changed is beyond putting back."""
        has_fetched = "any" in args[-1]  # training_step(self, dataloader_iter) has taken it from the data
        is_mixed_up = self._has_propagated and self._was_waiting
        return not (has_fetched or self._is_stepping or is_mixed_up)

    def mark(self) -> None:
        """What is undone later is undone to here."""
        if self._is_looking:
            self._look()
        self._is_looking = self.num_losses >= self.next_look
        looks = self._is_looking or self.draws
        self._rng = torch.default_generator.get_state() if looks else None
        if self._has_cuda:
            self._cuda_rng = [generator.get_offset() for generator in torch.cuda.default_generators]
        self._copied = self._buffers if self._is_looking else self.moving
        if self._copied:
            self._copy_buffers()
        if self._logged:
            self._logged = []

    def _undo(self) -> None:
        if self._rng is not None:
            torch.default_generator.set_state(self._rng)
        for generator, offset in zip(torch.cuda.default_generators, self._cuda_rng, strict=False):
            generator.set_offset(offset)
        with torch.no_grad():
            for key in self._copied:
                (owner, name), (tensor, copy) = self._buffers[key], self._copies[key]
                tensor.copy_(copy)
                owner[name] = tensor
        while self._logged:
            metric, before = self._logged.pop()
            vars(metric).update(before)
        for parameter, requires_grad in self._module._param_requires_grad_state.items():
            parameter.requires_grad = requires_grad  # left in the middle of toggle_optimizer
        self._module._param_requires_grad_state = {}

    def _undo_batch(self) -> None:
        self._undo()
        if self._has_propagated:
            self._drop_gradients()
        self._module._current_fx_name = None
        progress, zeroed = self._zero_grad, self._zero_grad.total.completed - self._num_zeroed
        for tracker in (progress.total, progress.current):
            tracker.completed -= zeroed
            tracker.started = tracker.ready = tracker.completed
        step = self._trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step
        step.total.ready, step.current.ready = step.total.completed, step.current.completed
        self._has_left_out = self._has_propagated = False

    def _copy_buffers(self) -> None:
        live = [(key, *self._buffers[key]) for key in self._copied]
        known = self._copies
        if any(key not in known or known[key][0] is not owner[name] for key, owner, name in live):
            for key, owner, name in live:
                known[key] = (owner[name], owner[name].detach().clone())
            return
        with torch.no_grad():
            torch._foreach_copy_([known[key][1] for key, _, _ in live], [known[key][0] for key, _, _ in live])

    def _update_metrics(self, update_metrics: Callable[..., None], key: str, *args: Any) -> None:
        metric = self._trainer.fit_loop.epoch_loop._results[key]
        if metric.is_tensor:  # Lightning adds to new tensors, so the old ones can be kept
            names = ("value", "cumulated_batch_size", "_forward_cache", "_update_count", "_computed")
            before = {name: vars(metric)[name] for name in names if name in vars(metric)}
            self._logged.append((metric, {**before, "has_reset": not metric.update_called}))
        update_metrics(key, *args)

    # -- updates that do not pass the seams ------------------------------------------------------

    def must_see_next(self) -> bool:
        """Whether the next update must be made by ``manual_backward`` and an optimiser step."""
        return self._check_gradients or (bool(self.leave_out) and self._leaves_out(self.num_losses + 1))

    def note_loss(self, loss: float) -> None:
        """An update was made elsewhere, with this finite loss."""
        self.num_losses += 1
        if self._on_loss is not None:
            self._on_loss(loss)

    # -- what is not finite ----------------------------------------------------------------------

    def _training_step(self, training_step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return training_step(*args, **kwargs)
        except _Leave:
            return None

    def _backward(self, backward: Callable[..., Any], loss: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.num_losses += 1
        value = loss.item() if loss.numel() == 1 else loss.sum().item()
        if self.leave_out or not math.isfinite(value) or self._trainer.world_size > 1:
            reason = self._reason_against(value)
            if reason is not None:
                return self._leave(loss, reason)
        if self._on_loss is not None:
            self._on_loss(value)
        self._has_propagated = self._is_waiting = True
        return backward(loss, *args, **kwargs)

    def _reason_against(self, value: float) -> str | None:
        """Every rank's: backward is a collective."""
        if self._leaves_out(self.num_losses):
            return "left out after a rollback"
        is_finite = math.isfinite(value)
        if self._trainer.world_size > 1:
            is_finite = self._trainer.strategy.reduce_boolean_decision(is_finite, all=True)
        return None if is_finite else f"loss is {value}"

    def _leaves_out(self, number: int) -> bool:
        return any(first <= number <= last for first, last in self.leave_out)

    def _leave(self, loss: Tensor, reason: str) -> Tensor:
        self._has_left_out = True
        self._undo()
        self._on_skip(reason)
        if not self._module.automatic_optimization:
            raise _Leave
        return loss.detach()

    def _optimizer_step(
        self,
        optimizer_step: Callable[..., Any],
        optimizer: Any,
        closure: Callable[[], Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        def checked() -> Any:
            result = closure()
            if self._has_left_out and not _has_gradients(optimizer):
                raise _Leave
            if self._check_gradients and not self._has_finite_gradients(optimizer):
                self._drop_gradients(optimizer)
                self._undo()
                self._on_skip("gradients are not finite")
                raise _Leave
            self._is_stepping = True
            return result

        result = None
        try:  # noqa: SIM105 - on the path of every step
            result = optimizer_step(optimizer, checked, *args, **kwargs)
        except _Leave:
            pass
        self._is_waiting = False
        if not self._module.automatic_optimization:  # what follows in this training step is another attempt
            self._has_left_out = False
            self.mark()
        return result

    def _has_finite_gradients(self, optimizer: Any) -> bool:
        if self._has_scaler:
            return True  # it leaves such steps out itself, to find its scale
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        is_finite = _all_finite(gradients) if self._are_small else are_finite(gradients)
        if self._trainer.world_size > 1:
            is_finite = self._trainer.strategy.reduce_boolean_decision(is_finite, all=True)
        return is_finite

    def _drop_gradients(self, *optimizers: Any) -> None:
        for optimizer in optimizers or self._trainer.optimizers:
            optimizer.zero_grad(set_to_none=True)

    @property
    def _zero_grad(self) -> Any:
        loop = self._trainer.fit_loop.epoch_loop
        return loop.automatic_optimization.optim_progress.optimizer.zero_grad


def are_finite(tensors: Iterable[Tensor | None]) -> bool:
    """Whether no element is NaN or infinite; None are passed over."""
    small: dict[int, list[Tensor]] = {}
    for tensor in tensors:
        if tensor is None:
            continue
        if _is_small(tensor):
            small.setdefault(tensor.get_device(), []).append(tensor)
        elif not _is_finite(tensor):
            return False
    return all(_all_finite(group) for group in small.values())


def _is_finite(tensor: Tensor) -> bool:
    values = tensor.coalesce().values() if tensor.is_sparse else tensor
    # a sum of finite numbers may overflow, so one that is not finite is looked at closely
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


def _is_finite_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and _is_finite(tensor)


def _is_small(tensor: Tensor) -> bool:
    return tensor.numel() < _LARGE and tensor.dtype in _SMALL_TYPES and tensor.layout is torch.strided


def _are_alike_and_small(parameters: list[Tensor]) -> bool:
    """Whether gradients of these can be looked at in one call."""
    is_one_device = len({parameter.device for parameter in parameters}) == 1
    return is_one_device and all(map(_is_small, parameters))


def _all_finite(tensors: list[Tensor]) -> bool:
    """As GradScaler asks: one call for many tensors, multiplied by one on the way."""
    if not tensors:
        return True
    device = tensors[0].device
    if device not in _checks:
        _checks[device] = (torch.zeros(1, device=device), torch.ones(1, device=device))
    is_any_infinite, one = _checks[device]
    try:
        torch._amp_foreach_non_finite_check_and_unscale_(tensors, is_any_infinite, one)
    except RuntimeError:  # sparse ones, or those of a graph
        return all(map(_is_finite, tensors))
    if is_any_infinite.item():
        is_any_infinite.zero_()
        return False
    return True


_SMALL_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_checks: dict[torch.device, tuple[Tensor, Tensor]] = {}  # what the call writes to, and the factor


def _has_gradients(optimizer: Any) -> bool:
    gradients = (p.grad for group in optimizer.param_groups for p in group["params"])
    return any(gradient is not None and bool(gradient.any()) for gradient in gradients)


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or is_oom_error(error)
