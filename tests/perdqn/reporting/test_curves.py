"""Scalars out of event files: overlapping sittings, thinning."""

import random
from pathlib import Path

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from perdqn.reporting.curves import Curve, merge, read_curves, thin


def write(folder: Path, values: dict[str, dict[int, float]], suffix: str = "") -> None:
    writer = SummaryWriter(str(folder), filename_suffix=suffix)
    for tag, points in values.items():
        for step, value in points.items():
            writer.add_scalar(tag, value, step)
    writer.close()


def test_a_run_that_went_back_shows_what_it_did_then(tmp_path: Path) -> None:
    write(tmp_path, {"a": {10: 1.0, 20: 2.0, 30: 3.0}, "b": {30: 7.0}}, ".0")
    write(tmp_path, {"a": {20: 2.5, 25: 2.75}}, ".1")
    curves = read_curves(tmp_path)
    assert curves["a"].steps.tolist() == [10, 20, 25]
    assert curves["a"].values.tolist() == [1.0, 2.5, 2.75]
    assert "b" not in curves  # it was logged beyond the step the second one began at


def test_merging_equals_the_slow_way() -> None:
    random.seed(3)
    for _ in range(200):
        sittings = []
        for sitting in range(3):
            steps = random.sample(range(20), 5)
            sittings.append([("ab"[step % 2], step, float(sitting), 0.0) for step in sorted(steps)])
        slow = [
            event
            for i, events in enumerate(sittings)
            for event in events
            if all(event[1] <= later[0][1] for later in sittings[i + 1 :])
        ]
        assert merge(sittings) == slow


def test_a_file_that_is_being_written_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    write(tmp_path, {"a": {step: float(step) for step in range(50)}})
    (path,) = tmp_path.glob("events*")
    path.write_bytes(path.read_bytes()[:-7])
    assert read_curves(tmp_path)["a"].steps.tolist() == list(range(49))


def test_scalars_that_are_written_as_tensors_are_read_alike(tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path))
    writer.add_scalar("a", 1.5, 10, new_style=True)
    writer.close()
    assert read_curves(tmp_path)["a"].values.tolist() == [1.5]


def test_a_folder_without_logs_has_no_curves(tmp_path: Path) -> None:
    assert read_curves(tmp_path) == {}


@pytest.mark.parametrize("num", [5, 600, 601, 100_000])
def test_thinning_keeps_ends_and_spikes(num: int) -> None:
    rng = np.random.default_rng(num)
    values = rng.normal(size=num)
    low, high = rng.choice(num, 2, replace=False)
    values[low], values[high] = -100.0, 100.0
    thinned = thin(Curve(np.arange(num), values, np.zeros(num)), num_columns=300)
    assert len(thinned.steps) <= 602
    assert {0, num - 1, low, high} <= set(thinned.steps.tolist())
    assert (np.diff(thinned.steps) > 0).all()


def test_a_curve_of_nans_is_no_error() -> None:
    assert len(thin(Curve(np.arange(1000), np.full(1000, np.nan), np.zeros(1000))).steps) == 2
