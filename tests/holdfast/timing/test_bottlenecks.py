"""What is named, and what is not, in windows written down by hand."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from holdfast.advising.advice import PRIORITIES
from holdfast.timing.bottlenecks import (
    _REMEDIES,
    LABELS,
    advice_on,
    estimate,
    find_bottlenecks,
)
from holdfast.timing.kernel import Waits
from holdfast.timing.windows import Record

HEALTHY = {"data": 0.01, "forward": 0.4, "backward": 0.4, "optimiser": 0.15, "loop": 0.04}


def record(noise: float = 0.0, seconds: float = 1.0, **lost: float) -> Record:
    """A healthy interval of 100 steps, of which some phases took more."""
    more = sum(lost.values())
    shares = {name: share * (1 - more) for name, share in HEALTHY.items()}
    for name, share in lost.items():
        shares[name] = shares.get(name, 0.0) + share + noise
    cpu_s = {"forward": 0.004 * (1 + noise), "backward": 0.004, "environment": 0.0}
    return Record(seconds, 100, shares, cpu_s=cpu_s)


def several(num: int = 12, spread: float = 0.01, **lost: float) -> list[Record]:
    draw = random.Random(0)
    return [record(draw.uniform(-spread, spread), **lost) for _ in range(num)]


@pytest.mark.parametrize(
    ("phase", "label"),
    [
        ("data", "data"),
        ("transfer", "transfer"),
        ("logging/loggers", "logging"),
        ("checkpoint", "disk"),
        ("callbacks/Slow", "callbacks"),
    ],
)
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_what_need_not_be_in_the_way_is_named_with_its_share(phase: str, label: str, share: float) -> None:
    (found,) = find_bottlenecks(several(**{phase: share}))
    assert found.label == label
    assert found.share == pytest.approx(share, abs=0.02)
    assert found.low < found.share < found.high
    assert found.speed_up == pytest.approx(1 / (1 - found.share))
    assert found.confidence >= 0.975


def test_a_healthy_run_has_no_bottleneck() -> None:
    healthy = several()
    assert find_bottlenecks(healthy, healthy[:5]) == []


def test_little_evidence_is_none() -> None:
    assert find_bottlenecks(several(4, data=0.6)) == []
    spiky = [record(data=0.9), *(record() for _ in range(11))]  # one window alone says so
    assert find_bottlenecks(spiky) == []


def test_rare_and_long_events_are_named_by_their_mean() -> None:
    records = [record(checkpoint=0.5) if index % 3 == 0 else record() for index in range(30)]
    (found,) = find_bottlenecks(records)
    assert found.label == "disk"
    assert found.share == pytest.approx(0.5 / 3, abs=0.01)


def test_work_is_named_where_it_grows_beyond_the_earliest_windows() -> None:
    normal = several()
    slow = [
        replace(each, cpu_s={**each.cpu_s, "forward": each.cpu_s["forward"] + 0.004}, seconds=1.4)
        for each in normal
    ]
    (found,) = find_bottlenecks(slow, normal[:5])
    assert found.label == "compute"
    assert found.share == pytest.approx(0.4 / 1.4, abs=0.02)  # 4 ms in each of 100 steps


def test_a_machine_that_got_slower_altogether_is_no_bottleneck() -> None:
    normal = several()
    slow = [
        replace(
            each,
            seconds=1.5,
            probe_s=1.5,
            cpu_s={name: 1.5 * seconds for name, seconds in each.cpu_s.items()},
        )
        for each in normal
    ]
    assert find_bottlenecks(slow, normal[:5]) == []


def test_a_machine_that_got_faster_altogether_is_no_bottleneck() -> None:
    normal = several()
    faster = [replace(each, probe_s=0.5) for each in normal]
    assert find_bottlenecks(faster, normal[:5]) == []


@pytest.mark.parametrize(("phase", "label"), [("forward", "compute"), ("environment", "environment")])
def test_work_that_waits_is_named(phase: str, label: str) -> None:
    waiting = [replace(each, blocked={phase: 0.2}) for each in several()]
    (found,) = find_bottlenecks(waiting, waiting[:5])
    assert (found.label, found.share) == (label, pytest.approx(0.2, abs=0.01))
    assert found.evidence["waiting_share"] == pytest.approx(0.2)


def test_layers_beyond_torchs_own_are_compute() -> None:
    slow = [replace(each, layer_excess_s=0.003) for each in several()]
    (found,) = find_bottlenecks(slow, slow[:5])
    assert (found.label, found.share) == ("compute", pytest.approx(0.3, abs=0.01))


@pytest.mark.parametrize(
    ("category", "share"), [("environment", 0.4), ("optimiser", 0.5), ("validation", 0.4)]
)
def test_what_must_be_done_is_named_once_it_takes_a_good_part(category: str, share: float) -> None:
    assert [found.label for found in find_bottlenecks(several(**{category: share}))] == [category]


def test_work_that_takes_a_usual_part_is_not_named() -> None:
    assert find_bottlenecks(several(environment=0.2)) == []


def test_throttling_and_stalls_for_memory_are_named_from_what_the_kernel_counts() -> None:
    (found,) = find_bottlenecks(several(throttled=0.3))
    assert (found.label, found.share) == ("cpu_throttled", pytest.approx(0.3, abs=0.01))
    stalled = [replace(each, waits=Waits(memory_stalled_s=0.25, major_faults=500)) for each in several()]
    (found,) = find_bottlenecks(stalled)
    assert (found.label, found.share) == ("memory_pressure", pytest.approx(0.25))
    waits = Waits(thread_system_s=0.1, major_faults=500)
    (found,) = find_bottlenecks([replace(each, faulted=0.4, waits=waits) for each in several()])
    assert (found.label, found.share) == ("memory_pressure", pytest.approx(0.5))
    elsewhere = [replace(each, waits=Waits(memory_stalled_s=0.25)) for each in several()]
    assert find_bottlenecks(elsewhere) == []  # another process of the machine stalls


def test_the_standard_error_is_that_of_a_ratio() -> None:
    draw = np.random.default_rng(1)
    seconds = draw.uniform(1, 3, 4000)
    shares = draw.uniform(0, 0.4, 4000)
    few = [estimate(shares[i : i + 20], seconds[i : i + 20]) for i in range(0, 4000, 20)]
    spread = np.std([each.share for each in few])
    assert np.mean([each.error for each in few]) == pytest.approx(spread, rel=0.15)  # fixed seed


def test_every_label_has_a_remedy_and_advice_is_ordered() -> None:
    assert LABELS.keys() == _REMEDIES.keys()
    found = find_bottlenecks(several(data=0.3, callbacks=0.1))
    advice = [advice_on(each) for each in found]
    assert [each.rule for each in advice] == ["bottleneck/data", "bottleneck/callbacks"]
    assert advice[0].priority == "high"
    assert all(each.priority in PRIORITIES for each in advice)
    assert advice[0].gain == pytest.approx(found[0].speed_up)
    values: dict[str, Any] = advice[0].as_dict()
    assert "num_workers" in values["message"]
