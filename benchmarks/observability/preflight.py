"""How close the pre-flight comes: what it says before short runs of the shipped configs, and what they take.

    python benchmarks/observability/preflight.py                 # all cases, one after the other
    python benchmarks/observability/preflight.py cartpole image  # those whose name begins so
    python benchmarks/observability/preflight.py --table         # the results once more

Each case is one run from the command line, with ``--preflight always``, in a process of its own. From within,
it is measured what the run takes of memory (peak of resident memory, above what the process took as the
pre-flight looked at what is free), how long it trains (as its summary says, final evaluation excluded) and
how much CPU time that takes, and how long a regular save takes; from without, how large its folder grows.

Beside other work, CPU time is what can be compared: the same calibration is made a second time with the
process's CPU clock, and predicts that. Linux only. Results go to ``benchmarks/results/preflight.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results" / "preflight.json"
COMMON = {
    "preflight": "always",
    "trainer.enable_progress_bar": False,
    "checkpoint.every": "{minutes: 0.1}",  # a short run shall save, too
    "model.evaluation.stop_at_return": "null",
    "model.evaluation.test_episodes": 1,
    "model.learner.backend": "eager",
    "model.learner.num_threads": 1,
    "model.exploration.epsilon_env_steps": 2_000,
}
CARTPOLE = {"config": "cartpole", "model.replay.capacity": 8_000, "model.total_env_steps": 16_000}
IMAGE = {
    "config": "atari",
    "model.replay.capacity": 3_000,
    "model.learner.warmup_env_steps": 1_000,
    "model.learner.target_update_period": 100,
    "model.total_env_steps": 3_000,
    "model.evaluation.every_env_steps": "null",
}
SILENT = {"model.evaluation.every_env_steps": "null"}
CASES: dict[str, dict[str, Any]] = {
    "cartpole": CARTPOLE,
    "cartpole, compiled": {**CARTPOLE, "model.learner.backend": "compiled", "model.total_env_steps": 60_000},
    "cartpole, not evaluated": {**CARTPOLE, **SILENT},
    "cartpole, 8 environments": {**CARTPOLE, **SILENT, "model.env.num_envs": 8},
    "acrobot": {"config": "acrobot", "model.replay.capacity": 8_000, "model.total_env_steps": 12_000},
    "lunarlander, not evaluated": {
        "config": "lunarlander",
        "model.replay.capacity": 8_000,
        "model.total_env_steps": 18_000,
        **SILENT,
    },
    "minatar": {
        "config": "minatar",
        "model.replay.capacity": 8_000,
        "model.total_env_steps": 12_000,
        "model.evaluation.every_env_steps": 4_000,
        "model.evaluation.max_episode_steps": 1_000,
    },
    "image, 8 environments": IMAGE,
    "image, compressed": {**IMAGE, "model.replay.storage": "lz4", "model.env.num_envs": 1},
}
QUICK = {**CARTPOLE, **SILENT, "model.replay.capacity": 1_500, "model.total_env_steps": 2_000}
WHAT = ("memory", "disk", "checkpoint", "save_s", "training_s", "training_cpu_s")


# -- the run, in a process of its own


def run_inside(arguments: list[str], out: Path) -> int:
    """Train as the command line does; what was seen goes to ``out``."""
    from holdfast.storage.generations import GenerationFolder

    from perdqn import assembly
    from perdqn.__main__ import main
    from perdqn.preflight import predict
    from perdqn.run.record import RunRecord

    seen: dict[str, Any] = {"saves_s": []}
    get_room, calibrate = assembly.get_room, assembly.calibrate
    begin, stop = RunRecord.on_train_start, RunRecord.stop_clock

    def look_at_room(root: Path) -> Any:
        seen["before_bytes"] = _status("VmRSS")
        return get_room(root)

    def calibrate_twice(settings: Any, folder: Path, **options: Any) -> Any:
        seen["by_cpu"] = calibrate(settings, folder, clock=time.process_time, **options)
        return calibrate(settings, folder, **options)

    def on_train_start(record: Any, trainer: Any, module: Any) -> None:
        begin(record, trainer, module)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the calibration's peak is over
        seen["begun_bytes"], seen["cpu_s"] = _status("VmRSS"), -time.process_time()

    def stop_clock(record: Any) -> None:
        if "peak_bytes" not in seen:
            seen["cpu_s"] += time.process_time()
            seen["peak_bytes"] = _status("VmHWM")
        stop(record)

    assembly.get_room, assembly.calibrate = look_at_room, calibrate_twice
    RunRecord.on_train_start, RunRecord.stop_clock = on_train_start, stop_clock  # type: ignore[method-assign]
    _note_saves(seen["saves_s"])
    clis = _note_clis(assembly.RunCLI)
    if code := main(["fit", *arguments]):
        return code
    cli = clis[-1]
    folder, keeping = cli.folder, assembly.get_keeping(cli.config_dump)
    by_cpu = predict(cli.settings, cli.spec, cli.preflight.room, keeping, seen.pop("by_cpu"))
    newest = next(one for one in GenerationFolder(folder.checkpoints).generations() if one.is_resumable)
    seen["checkpoint_bytes"] = sum(file.size for file in newest.files)
    seen["predicted"] = json.loads(folder.preflight.read_text())
    seen["predicted"]["training_cpu_s"] = by_cpu.training_s
    seen["seconds"] = folder.read_summary()["seconds"]
    out.write_text(json.dumps(seen))
    return 0


def _note_saves(seconds: list[float]) -> None:
    """Of regular saves that were due, each with its wait for what saved before it."""
    from holdfast.saving.schedule import Schedule

    saved = Schedule.saved

    def note(schedule: Any, trainer: Any, module: Any, took: float = 0.0) -> None:
        saved(schedule, trainer, module, took)
        seconds.extend([took] if took else [])

    Schedule.saved = note  # type: ignore[method-assign]


def _note_clis(kind: Any) -> list[Any]:
    made: list[Any] = []
    look_ahead: Callable[..., None] = kind._look_ahead

    def note(cli: Any, *arguments: Any) -> None:
        made.append(cli)
        look_ahead(cli, *arguments)

    kind._look_ahead = note
    return made


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


# -- predicted against measured


def measure(settings: Mapping[str, Any]) -> dict[str, Any]:
    """One case: of each figure, what was predicted and measured."""
    with tempfile.TemporaryDirectory() as root:
        out = Path(root) / "seen.json"
        own = {
            "model.replay.beta_env_steps": settings["model.total_env_steps"],
            "trainer.default_root_dir": root,
        }
        given = {"config": settings["config"], **COMMON, **settings, **own}
        arguments = [f"--{name}={value}" for name, value in given.items()]
        command = [sys.executable, __file__, "--inside", str(out), *arguments]
        with watching_size(Path(root) / "lightning_logs") as largest:
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return compare(json.loads(out.read_text()), largest())


@contextlib.contextmanager
def watching_size(folder: Path) -> Iterator[Callable[[], int]]:
    """How large the folder was at most, by looks twice a second."""
    largest, is_over = [0], threading.Event()

    def look() -> int:
        total = 0
        for path in folder.rglob("*"):
            with contextlib.suppress(OSError):  # it went away
                status = path.lstat()
                total += max(status.st_size, 512 * status.st_blocks)  # a reserve has no length
        largest[0] = max(largest[0], total)
        return largest[0]

    def keep_looking() -> None:
        while not is_over.wait(0.5):
            look()

    thread = threading.Thread(target=keep_looking)
    thread.start()
    try:
        yield look
    finally:
        is_over.set()
        thread.join()


def compare(seen: Mapping[str, Any], disk_bytes: int) -> dict[str, Any]:
    said = seen["predicted"]
    predicted = {
        "memory": sum(said["memory"].values()),
        "disk": sum(said["disk"].values()),
        "checkpoint": said["checkpoint_bytes"],
        "save_s": said["save_s"],
        "training_s": said["training_s"],
        "training_cpu_s": said["training_cpu_s"],
    }
    measured = {
        "memory": seen["peak_bytes"] - seen["before_bytes"],
        "disk": disk_bytes,
        "checkpoint": seen["checkpoint_bytes"],
        "save_s": statistics.median(seen["saves_s"]) if seen["saves_s"] else None,
        "training_s": seen["seconds"],
        "training_cpu_s": seen["cpu_s"],
    }
    return {name: _compare_one(predicted[name], measured[name]) for name in WHAT} | {
        "parts": {name: said[name] for name in ("memory", "disk")},
        "calibration": said["calibration"],
        "saves_s": seen["saves_s"],
        "memory_as_it_began": seen["begun_bytes"] - seen["before_bytes"],
    }


def _compare_one(predicted: Any, measured: float | None) -> dict[str, Any]:
    """Measured over predicted; whether an interval covers it, where there is one."""
    low, expected, high = predicted if isinstance(predicted, list) else (None, predicted, None)
    found = {"predicted": expected, "interval": predicted if low is not None else None, "measured": measured}
    found["ratio"] = measured / expected if measured is not None and expected else None
    found["is_covered"] = None if low is None or measured is None else low <= measured <= high
    return found


def table(cases: Mapping[str, Any]) -> str:
    heading = ("", "memory", "disk", "checkpoint", "save", "training, wall", "training, CPU")
    lines = ["| " + " | ".join(heading) + " |", "|-" * len(heading) + "|"]
    for name, case in cases.items():
        cells = [_spell(what, case[what]) for what in WHAT]
        lines.append("| " + " | ".join((name, *cells)) + " |")
    return "\n".join(lines)


def _spell(what: str, found: Mapping[str, Any]) -> str:
    if found["ratio"] is None:
        return "-"
    as_text = _seconds if what.endswith("_s") else lambda size: f"{size / 2**20:.1f} MiB"
    said, is_in = as_text(found["predicted"]), ""
    if found["interval"] is not None:
        low, _, high = found["interval"]
        said = f"{said} ({low:.3g} to {high:.3g})"
        is_in = "" if found["is_covered"] else " **outside**"
    return f"{said}, {as_text(found['measured'])}: {found['ratio']:.2f}{is_in}"


def _seconds(value: float) -> str:
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cases", nargs="*", help="beginnings of their names; all by default")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="one short run, to see that all works")
    parser.add_argument("--table", action="store_true", help="show the results there are, measure nothing")
    given = parser.parse_args()
    found = json.loads(given.out.read_text()) if given.out.is_file() else {"cases": {}}
    chosen = {"quick": QUICK} if given.quick else CASES
    if given.cases:
        chosen = {name: case for name, case in chosen.items() if name.startswith(tuple(given.cases))}
    for name, settings in {} if given.table else chosen.items():
        load = os.getloadavg()[0]
        found["cases"][name] = {**measure(settings), "load": load, "settings": settings}
        found |= describe()
        given.out.write_text(json.dumps(found, indent=2) + "\n")
        print(table({name: found["cases"][name]}).splitlines()[-1], flush=True)
    print(table(found["cases"]))
    return 0


def describe() -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent
    )
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, nice {os.nice(0)}",
        "versions": {name: version(name) for name in ("torch", "lightning", "gymnasium", "numpy")},
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        sys.exit(run_inside(sys.argv[3:], Path(sys.argv[2])))
    sys.exit(main())
