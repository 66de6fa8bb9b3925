"""The comparisons with other libraries run, on our side alone and for a short while.

Knows nothing about how fast anything is.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import peers
import pytest
from peers.items import EPISODE, VECTORS, Items
from peers.window import Window

pytestmark = pytest.mark.timeout(400)  # compiling takes a while

BENCHMARKS = Path(peers.__file__).parents[1]


def run_quickly(script: str, out: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, str(BENCHMARKS / script), "--quick", "--out", str(out), *options]
    subprocess.run(command, check=True, cwd=out.parent)
    return json.loads(out.read_text())


def test_replay_measures_every_cell(tmp_path: Path) -> None:
    found = run_quickly("replay.py", tmp_path / "r.json")
    cells = {name: cell for name, cell in found.items() if "us" in cell}
    assert len(cells) == 2 + 3 * 3 + 6
    assert all(cell["us"]["perdqn"]["median"] > 0 for cell in cells.values())


def test_throughput_tells_updates_by_env_step_of_every_variant(tmp_path: Path) -> None:
    options = ["--sides", "perdqn", "perdqn-often", "--ours-set", "env.num_envs=2"]
    more = ["--variant", "often", "learner.train_every=1"]
    sides = run_quickly("throughput.py", tmp_path / "t.json", *options, *more)["c4, 1 threads"]["sides"]
    assert sides["perdqn"]["env_steps_per_update"]["median"] == pytest.approx(4, rel=0.05)
    assert sides["perdqn-often"]["env_steps_per_update"]["median"] == pytest.approx(1, rel=0.05)


def test_memory_names_bytes_and_what_they_were_measured_on(tmp_path: Path) -> None:
    (result,) = run_quickly("memory.py", tmp_path / "m.json").values()
    assert result["sides"]["perdqn"]["bytes_per_transition"]["median"] > 84 * 84
    assert {"command", "commit", "machine", "versions"} <= result.keys()
    assert result["versions"]["perdqn"]["torch"]


def test_scaling_measures_every_size(tmp_path: Path) -> None:
    found = run_quickly("scaling.py", tmp_path / "s.json")
    assert [*found["replay"]] == ["16384", "32768"]
    assert [*found["acting"]] == ["1", "2"]
    assert all(cell["median"] > 0 for part in ("replay", "acting") for cell in found[part].values())


@pytest.mark.parametrize("script", ["acting.py", "frames.py"])
def test_what_measures_ourselves_runs(script: str, tmp_path: Path) -> None:
    options = [] if script == "acting.py" else ["--out", str(tmp_path / "out.json")]
    subprocess.run([sys.executable, str(BENCHMARKS / script), "--quick", *options], check=True, cwd=tmp_path)


def test_bottlenecks_are_injected_named_and_scored(tmp_path: Path) -> None:
    found = run_quickly("observability/bottlenecks.py", tmp_path / "b.json")
    (run,) = found["each"]
    assert (run["kind"], found["runs"], found["healthy_runs"]) == ("data", 1, 1)
    assert run["measured"] > 1.2  # half of the step is injected
    assert sum(found["confusion"]["data"].values()) == 1


def test_preflight_is_compared_with_what_a_run_takes(tmp_path: Path) -> None:
    case = run_quickly("observability/preflight.py", tmp_path / "p.json")["cases"]["quick"]
    what = ("memory", "disk", "checkpoint", "save_s", "training_s", "training_cpu_s")
    assert all(case[name]["predicted"] > 0 and case[name]["measured"] > 0 for name in what)
    assert case["disk"]["ratio"] < 1  # an upper bound
    low, expected, high = case["training_cpu_s"]["interval"]
    assert low < expected < high


def test_what_the_scaler_chooses_is_timed_beside_what_was_given(tmp_path: Path) -> None:
    options = ["--only", "pieces"]
    case = run_quickly("observability/scaler.py", tmp_path / "s.json", *options)["cases"]["pieces"]
    assert 512 % case["chosen"][0] == 0
    assert {"512", str(case["chosen"][0])} <= case["seconds"].keys()
    assert case["gain"]["median"] > 0


def test_general_rules_are_scored_case_by_case(tmp_path: Path) -> None:
    options = ["dev", "--only", "learning rate"]
    scored = run_quickly("observability/general_rules.py", tmp_path / "g.json", *options)["dev"]
    assert [row["case"] for row in scored["rows"]] == ["learning rate x100", "learning rate /1000"]
    assert scored["faults named"]["of"] == 2
    assert "dead_units" in scored["rows"][0]["standing"]  # what so large steps do to ReLUs


def test_watchers_are_dropped_into_two_ranks_and_one_is_interrupted(tmp_path: Path) -> None:
    found = run_quickly("observability/drop_in.py", tmp_path / "d.json")["quick"]
    assert [row["faults"] for row in found["cells"]] == [[], []]
    assert found["cells"][1]["code"] not in (0, "hung")


def test_a_side_that_is_not_there_is_refused_by_name() -> None:
    command = [sys.executable, str(BENCHMARKS / "replay.py"), "--sides", "nobody"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "there is no nobody; there are perdqn, cpprb" in done.stderr


def test_a_side_that_fails_says_why(tmp_path: Path) -> None:
    side = peers.Side("perdqn", BENCHMARKS / "memory.py", tmp_path)
    with side, pytest.raises(RuntimeError, match=r"perdqn failed:(.|\n)*nowhere.npy"):
        side.ask(side="perdqn", frames="nowhere.npy", rows=10)


def test_an_environment_is_made_once_and_with_torch_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[Any]] = []

    def note(command: list[Any], **_: Any) -> None:
        commands.append(command)
        (tmp_path / "cpprb").mkdir(exist_ok=True)

    monkeypatch.setattr(subprocess, "run", note)
    first, second = (peers.python_of("cpprb", tmp_path) for _ in range(2))
    assert first == second == str(tmp_path / "cpprb" / "bin" / "python")
    assert len(commands) == 3
    assert commands[1][-1] == peers.TORCH
    assert commands[2][-2:] == [peers.TORCH, *peers.PACKAGES["cpprb"]]


def test_a_window_counts_only_what_happens_inside_it() -> None:
    window = Window(begin=100, seconds=0.0)
    assert [window.see(*counters) for counters in ((90, 1), (101, 10), (141, 20), (999, 99))] == [
        False,
        False,
        True,
        True,
    ]
    result = window.result()
    assert (result["env_steps"], result["updates"], result["env_steps_per_update"]) == (40, 10, 4.0)


def test_items_side_by_side_are_steps_of_as_many_environments() -> None:
    items = Items(VECTORS)
    single = next(items.chunks(64))
    step = next(items.side_by_side(64))
    assert {k: v.shape for k, v in step.items()} == {k: v.shape for k, v in single.items()}
    steps = items.side_by_side(64)
    before, after = next(steps), next(steps)
    assert np.array_equal(before["next_obs"], after["obs"])
    ended = [before["done"], after["done"], *(next(steps)["done"] for _ in range(EPISODE[VECTORS] - 2))]
    assert np.array_equal(np.sum(ended, axis=0), np.ones(64))


def test_gpu_runs_without_one_and_tells_whether_the_replays_agree(tmp_path: Path) -> None:
    (result,) = run_quickly("gpu.py", tmp_path / "g.json", "--device", "cpu").values()
    assert result["replay_has_same_bits"] == {"alpha 1.0": True, "alpha 0.6": True}
    rates = {name: side["updates_per_second"]["median"] for name, side in result["sides"].items()}
    assert set(rates) == {"perdqn-host-eager-fp32", "perdqn-device-eager-fp32"}
    assert min(rates.values()) > 0


def test_faults_put_into_runs_are_judged_and_not_run_again(tmp_path: Path) -> None:
    script = str(BENCHMARKS / "observability" / "faults.py")
    command = [sys.executable, "-W", "ignore", script, "--quick", "--out", str(tmp_path / "f.jsonl")]
    done = subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, text=True)
    lines = [json.loads(line) for line in (tmp_path / "f.jsonl").read_text().splitlines()]
    assert [line["key"].split(" | ")[0] for line in lines] == [
        "beta left at 0",
        "learning rate low",
        "healthy",
    ]
    assert "| beta left at 0 | 1/1 | beta_low 1" in done.stdout
    again = subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, text=True)
    assert again.stdout.strip() == done.stdout[done.stdout.index("2 of 2") :].strip()
