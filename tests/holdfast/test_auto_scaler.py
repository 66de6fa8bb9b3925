"""AutoScaler: what it finds on known curves, that it changes no bit, and that its decisions are kept."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from holdfast import AutoScaler, VerifiedCheckpoint
from holdfast.auto_scaler import THREADS, WORKERS
from holdfast.scaling import cache, ordinary
from holdfast.scaling.cache import remembered
from holdfast.scaling.climb import HillClimb, fastest
from holdfast.scaling.knob import Knob
from holdfast.scaling.micro_batch import MICRO_BATCH, micro_batch_of, saved_bytes
from holdfast.scaling.ordinary import threads_of, workers_of
from holdfast.scaling.others import OtherWork
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

LADDER = [1, 2, 4, 8, 16, 32]


def climbed(cost: Any, start: int, noise: float = 0.0, seed: int = 0) -> HillClimb:
    rng, climb = np.random.default_rng(seed), HillClimb(LADDER, start)
    for _ in range(1_000):
        hiccup = 10.0 if noise and rng.random() < 0.1 else 1.0
        climb.note(cost(climb.value) * math.exp(noise * rng.standard_normal()) * hiccup)
    assert climb.is_settled
    return climb


@pytest.mark.parametrize("start", LADDER)
@pytest.mark.parametrize("optimum", LADDER)
def test_a_climb_finds_the_only_minimum_from_anywhere(start: int, optimum: int) -> None:
    assert climbed(lambda value: 1 + abs(math.log2(value / optimum)), start).best == optimum


def test_a_climb_finds_the_minimum_under_noise_and_hiccups() -> None:
    # each step of the ladder is 1.5 times dearer; 5 % noise, and a window in ten takes ten times as long
    found = [climbed(lambda v: 1.5 ** abs(math.log2(v / 8)), 1, 0.05, seed).best for seed in range(100)]
    assert found.count(8) >= 95


def test_a_climb_gets_over_a_value_that_is_no_better_than_its_neighbour() -> None:
    seconds = dict(zip(LADDER, [1.0, 1.1, 0.5, 0.6, 0.3, 0.4], strict=True))
    assert climbed(seconds.__getitem__, 1).best == climbed(seconds.__getitem__, 32).best == 16


def test_a_gain_too_small_to_matter_moves_nothing() -> None:
    assert climbed(lambda value: 1 - 0.01 * math.log2(value), 4).best == 4


def test_a_climb_goes_on_where_it_was_saved() -> None:
    first = HillClimb(LADDER, 1)
    for _ in range(20):
        first.note(1 / first.value)
    second = HillClimb(LADDER, 1)
    second.load_state_dict(first.state_dict())
    assert second.best == first.best > 1
    other = HillClimb([100], 100)
    other.load_state_dict(first.state_dict())
    assert other.best == 100


def test_the_fastest_is_kept_only_where_it_gains() -> None:
    assert fastest([1, 2, 4], 1, {1: 1.0, 2: 0.5, 4: 0.7}.__getitem__) == 2
    assert fastest([1, 2, 4], 1, {1: 1.0, 2: 0.97, 4: 2.0}.__getitem__) == 1


def test_what_was_measured_is_remembered_by_its_question(tmp_path: Path) -> None:
    asked = []

    def decide() -> int:
        asked.append(1)
        return 7

    assert [remembered(tmp_path, "a", [1], decide) for _ in range(3)] == [7, 7, 7]
    assert len(asked) == 1
    assert remembered(tmp_path, "a", [2], decide) == 7
    assert len(asked) == 2
    for path in tmp_path.rglob("*.json"):
        path.write_text("{")  # torn
    assert remembered(tmp_path, "a", [1], decide) == 7
    assert len(asked) == 3


def test_what_was_decided_beside_other_work_holds_for_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_MOST_OTHER_WORK", 0.1)  # conftest allows any
    shares = iter([0.4, 0.05])
    monkeypatch.setattr(OtherWork, "share", lambda _: next(shares))
    with pytest.warns(UserWarning, match="num_threads was decided while others took 40%"):
        assert remembered(tmp_path, "num_threads", [1], lambda: 1) == 1
    assert [remembered(tmp_path, "num_threads", [1], lambda: 2) for _ in range(2)] == [2, 2]


class Clock:
    """Passes as work is done, at a cost that depends on a setting."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def __deepcopy__(self, memo: Any) -> Clock:  # the copy of a module that is measured is on the same one
        return self


class Grouped(LightningModule):
    """Its ``group`` changes what a step costs, and no result; ``width`` would change results."""

    def __init__(self, clock: Clock, is_plain: bool = True) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
        self.group, self.width, self.done, self.clock = 1, 1, 0, clock
        self.data: Dataset[Any] = TensorDataset(torch.arange(256.0).reshape(64, 4) / 256)
        self.data = self.data if is_plain else Drawing()
        self.seen: list[int] = []
        self.generator: torch.Generator | None = None

    def scalable_settings(self) -> dict[str, Knob]:
        def put(name: str) -> Any:
            return lambda value: setattr(self, name, value)

        costs = {1: 3.0, 2: 2.0, 4: 5.0}
        return {
            "group": Knob(lambda: self.group, put("group"), 1, 16, True, lambda: self.done),
            "width": Knob(lambda: self.width, put("width"), 1, 4, measure=costs.__getitem__),
        }

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.done += 1
        self.seen.append(self.group)
        self.clock.now += 1 + abs(math.log2(self.group / 4))
        return self.layer(batch[0]).pow(2).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)

    def train_dataloader(self) -> Any:
        return DataLoader(self.data, batch_size=4, shuffle=True, generator=self.generator)


class Drawing(Dataset):  # type: ignore[type-arg]
    """Its items draw random numbers."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Any:
        return [torch.rand(4)]


def fit(
    *callbacks: Any, epochs: int = 6, is_plain: bool = True, kind: type[Grouped] = Grouped, **options: Any
) -> Grouped:
    torch.manual_seed(0)
    clock = next((c._clock for c in callbacks if isinstance(c, AutoScaler)), Clock())
    module = kind(clock, is_plain)
    ckpt_path = options.pop("ckpt_path", None)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    has_checkpoints = any(isinstance(c, VerifiedCheckpoint) for c in callbacks)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=list(callbacks),
        enable_checkpointing=has_checkpoints,
        **quiet,
        **options,
    )
    trainer.fit(module, ckpt_path=ckpt_path)
    return module


def scaler(tmp_path: Path, **bounds: Any) -> AutoScaler:
    held = {WORKERS: (0, 0)}
    return AutoScaler({**held, **bounds}, window=2, cache_dir=tmp_path / "cache", clock=Clock())


def test_what_a_module_declares_is_turned_to_its_optimum_and_changes_no_bit(tmp_path: Path) -> None:
    own = scaler(tmp_path)
    scaled, plain = fit(own), fit()
    assert own.decisions["group"] == scaled.group == 4
    assert set(scaled.seen) == {1, 2, 4, 8, 16}  # larger ones were tried, and left again
    assert torch.equal(scaled.layer.weight, plain.layer.weight)


def test_bounds_hold_a_knob(tmp_path: Path) -> None:
    assert set(fit(scaler(tmp_path, group=(1, 2))).seen) == {1, 2}
    assert set(fit(scaler(tmp_path, group=(1, 1))).seen) == {1}


def test_what_changes_results_is_left_alone_unless_named_and_then_decided_once(tmp_path: Path) -> None:
    assert fit(scaler(tmp_path)).width == 1
    own = scaler(tmp_path, width=(1, 4))
    assert fit(own).width == own.decisions["width"] == 2
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 1


def test_a_resumed_run_keeps_its_decisions_and_decides_nothing_anew(tmp_path: Path) -> None:
    keep = VerifiedCheckpoint(tmp_path / "saves", every={"steps": 10})
    own = scaler(tmp_path, width=(1, 4))
    first = fit(own, keep, epochs=5)
    assert (first.width, first.group) == (2, 4)
    for path in (tmp_path / "cache").rglob("*.json"):
        path.unlink()
    again = scaler(tmp_path, width=(1, 4))
    resumed = fit(
        again, VerifiedCheckpoint(tmp_path / "saves", every={"steps": 10}), epochs=6, ckpt_path="last"
    )
    assert again.decisions == own.decisions
    assert resumed.width == 2
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").rglob("*.json"))
    assert torch.equal(resumed.layer.weight, fit(epochs=6).layer.weight)


def test_a_resumed_run_that_was_saved_without_a_scaler_decides_nothing_that_changes_it(
    tmp_path: Path,
) -> None:
    fit(VerifiedCheckpoint(tmp_path / "saves", every={"steps": 10}), epochs=1)
    own = scaler(tmp_path, width=(1, 4))
    resumed = fit(own, VerifiedCheckpoint(tmp_path / "saves"), epochs=2, ckpt_path="last")
    assert resumed.width == 1


def test_workers_are_turned_by_themselves_only_where_items_draw_nothing(tmp_path: Path) -> None:
    plain = AutoScaler({"group": (1, 1), WORKERS: (0, 1)}, cache_dir=tmp_path, clock=Clock())
    fit(plain, epochs=1)
    assert plain.decisions[WORKERS] == 0
    drawing = AutoScaler({"group": (1, 1)}, cache_dir=tmp_path, clock=Clock())
    fit(drawing, epochs=1, is_plain=False)
    assert WORKERS not in drawing.decisions


def test_workers_are_left_alone_where_a_sampler_shares_its_generator() -> None:
    # RandomSampler draws once more at its very end, which only workers reach
    data = TensorDataset(torch.zeros(8, 1))
    shared = DataLoader(data, shuffle=True, generator=torch.Generator())
    alone = DataLoader(data, shuffle=True)
    found = [workers_of([loader], lambda: 0, Clock()) for loader in (shared, alone)]
    assert [knob is not None and knob.keeps_result for knob in found] == [False, True]


def test_torchs_random_sampler_draws_once_more_at_its_very_end() -> None:
    # what the test above rests on; as Lightning reads, which stops at the last batch, and as workers do
    def state_after(num_indices: int | None) -> Any:
        generator = torch.Generator().manual_seed(0)
        indices = iter(RandomSampler(range(8), generator=generator))
        list(itertools.islice(indices, num_indices))
        return generator.get_state().tolist()

    assert state_after(1) == state_after(8)
    assert state_after(8) != state_after(None)


@pytest.mark.filterwarnings("ignore:.*arithmetic may differ because. threads of torch")  # compared earlier
def test_threads_are_kept_when_a_run_goes_on_and_by_a_fork(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        own = scaler(tmp_path, **{THREADS: (1, 1)})
        fit(own, VerifiedCheckpoint(tmp_path / "saves", every={"steps": 10}), epochs=1)
        assert torch.get_num_threads() == own.decisions[THREADS] == 1
        (newest,) = sorted((tmp_path / "saves").glob("*.ckpt"))[-1:]
        for folder in ("saves", "fork"):
            torch.set_num_threads(2)
            again = AutoScaler(
                {WORKERS: (0, 0), THREADS: (1, 2)}, 2, cache_dir=tmp_path / "other", clock=Clock()
            )
            fit(again, VerifiedCheckpoint(tmp_path / folder), epochs=2, ckpt_path=newest)
            assert torch.get_num_threads() == again.decisions[THREADS] == 1
        assert not (tmp_path / "other").exists()  # nothing was measured
    finally:
        torch.set_num_threads(before)


def test_workers_change_at_the_end_of_an_epoch_and_no_bit_with_them(tmp_path: Path) -> None:
    own = AutoScaler({"group": (1, 1), WORKERS: (0, 1)}, cache_dir=tmp_path, clock=Clock())
    used: list[int] = []
    fit_one = Grouped.training_step

    class Watching(Grouped):
        pass

    def step(self: Grouped, batch: Any, batch_idx: int) -> Any:
        loader = self.trainer.train_dataloader
        used.append(loader.num_workers)
        self.clock.now -= loader.num_workers * 0.5  # cheaper with a worker
        return fit_one(self, batch, batch_idx)

    Grouped.training_step = step  # type: ignore[method-assign]
    try:
        scaled = fit(own, epochs=12)
    finally:
        Grouped.training_step = fit_one  # type: ignore[method-assign]
    assert own.decisions[WORKERS] == 1
    assert {used[i] for i in range(16)} == {0}  # an epoch has 16 batches
    assert torch.equal(scaled.layer.weight, fit(epochs=12).layer.weight)


def test_threads_are_measured_on_a_copy_that_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        own = AutoScaler(
            {"group": (1, 1), WORKERS: (0, 0), THREADS: (1, before)}, cache_dir=tmp_path, clock=Clock()
        )
        scaled = fit(own, epochs=1)
        assert 1 <= own.decisions[THREADS] <= before
        torch.set_num_threads(before)
        assert torch.equal(scaled.layer.weight, fit(epochs=1).layer.weight)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"bounds": {"group": (4, 1)}}, r"bounds\['group'\] must be lowest and highest"),
        ({"window": 0}, "window must be at least 1"),
        ({"min_gain": 1.5}, "min_gain must lie in"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        AutoScaler(**options)


def test_bounds_outside_of_a_knob_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"bounds\['group'\] must lie in \[1, 16\]"):
        fit(scaler(tmp_path, group=(1, 64)))


@pytest.mark.timeout(300)
def test_ranks_decide_as_the_first_measures(tmp_path: Path) -> None:
    """By the second rank's own clock one is the best group and four the best width."""
    program = f"""
        import json, os, sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_auto_scaler import Grouped, fit, math, scaler

        class Torn(Grouped):
            def training_step(self, batch, batch_idx):
                now, loss = self.clock.now, super().training_step(batch, batch_idx)
                self.clock.now = self.clock.now if self.global_rank == 0 else now + 1 + math.log2(self.group)
                return loss

        folder, rank = Path({str(tmp_path)!r}), os.environ.get("LOCAL_RANK", "0")
        own = scaler(folder / rank, width=(1, 4) if rank == "0" else (4, 4))
        module = fit(own, epochs=12, kind=Torn, strategy="ddp", devices=2, default_root_dir=folder)
        (folder / f"rank{{rank}}.json").write_text(json.dumps([own.decisions, module.seen]))
    """
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(program))
    done = subprocess.run([sys.executable, "-W", "ignore", path], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first[0] == {"group": 4, "width": 2, WORKERS: 0}


def test_a_process_pinned_to_a_core_gets_no_more_workers_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch warns of more, and they are no faster."""
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3}, raising=False)
    loader = DataLoader(TensorDataset(torch.zeros(8, 1)))
    knob = workers_of([loader], lambda: 0, Clock())
    assert knob is not None
    assert knob.high == 1
    assert threads_of(None, [loader]).high == torch.get_num_threads()


def test_bounds_of_what_is_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"bounds\['grop'\] names nothing that this .*; it has group"):
        fit(scaler(tmp_path, grop=(1, 2)))


class Pieces(Grouped):
    """Notes how large its batches are, and what they cost by that."""

    costs: ClassVar = {1: 9.0, 2: 1.0, 4: 8.0}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.clock.now += self.costs[len(batch[0])]
        self.seen.append(len(batch[0]))
        return self.layer(batch[0]).pow(2).mean()


class Scheduled(Pieces):
    """Asks for the number of steps while its optimiser is made, when Lightning asks for the loader."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        num_steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, num_steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


HELD = {"group": (1, 1), MICRO_BATCH: (1, 4)}


@pytest.mark.parametrize("kind", [Pieces, Scheduled])
def test_a_batch_goes_through_in_pieces_and_a_step_is_the_same_up_to_rounding(
    tmp_path: Path, kind: type[Grouped]
) -> None:
    own = scaler(tmp_path, **HELD)
    scaled, plain = fit(own, epochs=2, kind=kind), fit(epochs=2, kind=kind)
    assert own.decisions[MICRO_BATCH] == 2
    assert set(scaled.seen) == {2}
    assert set(plain.seen) == {4}
    assert scaled.trainer.global_step == plain.trainer.global_step == 32
    rates = [module.trainer.optimizers[0].param_groups[0]["lr"] for module in (scaled, plain)]
    assert rates[0] == rates[1]
    torch.testing.assert_close(scaled.layer.weight, plain.layer.weight, rtol=1e-5, atol=1e-7)
    assert scaled.trainer.accumulate_grad_batches == 1  # as the user left it
    loader: Any = scaled.trainer.train_dataloader
    assert loader.batch_size == loader.batch_sampler.batch_size == 4


def test_a_size_is_judged_by_its_time_for_a_whole_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pieces, "costs", {1: 3.0, 2: 7.0, 4: 10.0})
    own = scaler(tmp_path, **HELD)
    fit(own, epochs=1, kind=Pieces)
    assert own.decisions[MICRO_BATCH] == 4


def test_gradients_that_were_accumulated_already_are_so_in_pieces_as_well(tmp_path: Path) -> None:
    scaled = fit(scaler(tmp_path, **HELD), epochs=2, kind=Pieces, accumulate_grad_batches=2)
    plain = fit(epochs=2, kind=Pieces, accumulate_grad_batches=2)
    assert scaled.trainer.global_step == plain.trainer.global_step == 16
    torch.testing.assert_close(scaled.layer.weight, plain.layer.weight, rtol=1e-5, atol=1e-7)


def test_a_trainer_that_fits_again_decides_from_the_whole_batch_again(tmp_path: Path) -> None:
    scaled = fit(scaler(tmp_path, **HELD), epochs=1, kind=Pieces)
    trainer = scaled.trainer
    assert trainer.fit_loop.max_epochs is not None
    trainer.fit_loop.max_epochs += 1
    trainer.fit(scaled)
    assert set(scaled.seen) == {2}
    assert trainer.global_step == 32


@pytest.mark.parametrize("named", [HELD, {"group": (1, 1)}], ids=["named again", "not named any more"])
def test_pieces_are_kept_on_resume_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: dict[str, Any]
) -> None:
    through = fit(scaler(tmp_path, **HELD), epochs=3, kind=Pieces)
    keep = VerifiedCheckpoint(tmp_path / "saves", every={"steps": 8})
    fit(scaler(tmp_path, **HELD), keep, kind=Pieces, max_steps=24, epochs=3)
    for path in (tmp_path / "cache").rglob("*.json"):
        path.unlink()
    monkeypatch.setattr(Pieces, "costs", {1: 1.0, 2: 9.0, 4: 9.0})  # would decide otherwise
    again = VerifiedCheckpoint(tmp_path / "saves")
    resumed = fit(scaler(tmp_path, **named), again, kind=Pieces, epochs=3, ckpt_path="last")
    assert set(resumed.seen) == {2}
    assert torch.equal(resumed.layer.weight, through.layer.weight)


def test_a_piece_that_does_not_fit_is_never_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pieces, "costs", {1: 9.0, 2: 3.0, 4: 1.0})
    monkeypatch.setattr("holdfast.scaling.micro_batch.saved_bytes", lambda *_: 100)
    tried: list[int] = []
    time_them = ordinary.time_steps

    def note(module: Any, loaders: Any, *rest: Any) -> float:
        tried.append(loaders[0].batch_size)
        return time_them(module, loaders, *rest)

    monkeypatch.setattr("holdfast.scaling.micro_batch.time_steps", note)
    monkeypatch.setattr("holdfast.scaling.micro_batch.free_bytes", lambda device: 300.0)
    own = scaler(tmp_path, **HELD)
    fit(own, epochs=1, kind=Pieces)
    assert own.decisions[MICRO_BATCH] == 2
    assert set(tried) == {1, 2}


def test_a_piece_that_runs_out_of_memory_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pieces, "costs", {1: 9.0, 2: 3.0, 4: 1.0})
    step = Pieces.training_step

    def fail(self: Pieces, batch: Any, batch_idx: int) -> Any:
        if len(batch[0]) == 4:
            raise torch.OutOfMemoryError("too large")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Pieces, "training_step", fail)
    own = scaler(tmp_path, **HELD)
    fit(own, epochs=1, kind=Pieces)
    assert own.decisions[MICRO_BATCH] == 2


def test_what_a_forward_pass_keeps_is_counted_without_parameters() -> None:
    module, loader = Grouped(Clock()), DataLoader(TensorDataset(torch.zeros(8, 4)), batch_size=4)
    module._trainer = SimpleNamespace(  # type: ignore[assignment]
        strategy=SimpleNamespace(batch_to_device=lambda batch: batch),
        precision_plugin=SimpleNamespace(train_step_context=contextlib.nullcontext),
    )
    # the input, 4 examples of 4 floats, and the layer's output, 4 of 1, for the square
    assert saved_bytes(module, [loader]) == 4 * 4 * 4 + 4 * 4


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (
            {"limit_train_batches": 3},
            "needs trainer.limit_train_batches 1.0, got",
        ),
        ({"val_check_interval": 0.5}, "needs trainer.val_check_interval 1.0, got"),
        ({"callbacks": [GradientAccumulationScheduler({0: 2})]}, "GradientAccumulationScheduler"),
    ],
)
def test_pieces_are_refused_where_batches_count(tmp_path: Path, options: Any, named: str) -> None:
    more = options.pop("callbacks", [])
    with pytest.raises(ValueError, match=named):
        fit(scaler(tmp_path, **HELD), *more, **options)


def test_pieces_are_refused_where_the_last_batch_is_shorter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Drawing, "__len__", lambda self: 62)
    with pytest.raises(ValueError, match="got 62 examples for batches of 4; use drop_last=True"):
        fit(scaler(tmp_path, **HELD), is_plain=False)


@pytest.mark.parametrize(
    ("num_examples", "drop_last", "sizes"), [(64, False, (1, 2, 4)), (65, True, (2, 4)), (67, True, (4,))]
)
def test_pieces_divide_a_batch_and_leave_over_what_it_leaves(
    num_examples: int, drop_last: bool, sizes: tuple[int, ...]
) -> None:
    loader = DataLoader(TensorDataset(torch.zeros(num_examples, 1)), batch_size=4, drop_last=drop_last)
    expected = [index for batch in loader.batch_sampler or () for index in batch]
    assert micro_batch_of(fit(epochs=1).trainer, [loader]).choices == sizes
    for size in sizes:
        loader.batch_sampler.batch_size = size  # type: ignore[union-attr]
        assert [index for batch in loader.batch_sampler or () for index in batch] == expected


def test_bounds_between_two_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must enclose one of \(1, 2, 4\), got \[3, 3\]"):
        fit(scaler(tmp_path, **{**HELD, MICRO_BATCH: (3, 3)}))
