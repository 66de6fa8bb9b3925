"""The environment: plain values of this process, and sentences where two differ."""

from __future__ import annotations

import json

import torch
from holdfast.saving.environment import compare, environment_fingerprint


def test_fingerprint_is_plain_and_names_what_arithmetic_depends_on() -> None:
    found = environment_fingerprint()
    assert json.loads(json.dumps(found)) == found
    assert found["torch"] == torch.__version__
    assert found["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert found["cpu"]


def test_the_same_environment_differs_in_nothing() -> None:
    assert compare(environment_fingerprint(), environment_fingerprint()) == []


def test_threads_chosen_anew_are_noticed() -> None:
    before, threads = environment_fingerprint(), torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        (sentence,) = compare(before, environment_fingerprint())
    finally:
        torch.set_num_threads(threads)
    assert sentence == f"threads of torch: {threads} then, {threads + 1} now"


def test_what_one_side_does_not_know_is_said_too() -> None:
    assert compare({"cpu": "A"}, {"cpu": "A", "gpu": "B", "later": 1}) == [
        "GPU: not recorded then, B now",
        "later: not recorded then, 1 now",
    ]
