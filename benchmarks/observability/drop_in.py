"""Every watcher of holdfast in three ordinary Lightning programs: what it changes, which is nothing.

    python benchmarks/observability/drop_in.py

Image classifier, GAN (manual optimisation) and language model of ``tests/holdfast/programs``, in one process
and in two (DDP), first bare, then with each watcher alone, all together, and all beside the callbacks that
save and recover. Knows nothing of reinforcement learning: it runs in an environment of its own, with torch
and holdfast installed and neither gymnasium nor perdqn. In each cell, on each rank, nothing may be warned of
that the bare program does not warn of; weights, optimisers and random streams must be the bare program's bits
(in adapt mode: the same on both ranks); files and logged keys must be there; threads, file descriptors,
child processes and signal handlers must be as before. Then a rank fails, and one gets SIGTERM.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import venv
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
sys.path += [str(HERE.parents[1]), str(ROOT / "tests" / "holdfast")]

from peers import ENVIRONMENTS, RESULTS, TORCH, get_provenance, record  # noqa: E402

PROGRAMS = ("image_classifier", "gan", "transformer")
WATCHERS = ("ResourceMonitor", "PerformanceMonitor", "TuningAdvisor", "AutoScaler")
SETS = {
    **{name: (name,) for name in WATCHERS},
    "TuningAdvisor (adapt)": ("adapt",),
    "all watchers": WATCHERS,
    "all, beside those that save": (*WATCHERS, "saving"),
}
WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
ACCIDENTS = ("fails", "interrupted")  # the last rank, at its third step
ABSENT = ("gymnasium", "perdqn")
FILES = {
    "ResourceMonitor": "resources{rank}.jsonl",
    "PerformanceMonitor": "performance_report.json",
    "TuningAdvisor": "advice.jsonl",
    "adapt": "advice.jsonl",
}
KEYS = {
    "ResourceMonitor": "resource/",
    "PerformanceMonitor": "time/phase_",
    "TuningAdvisor": "advice/",
    "adapt": "advice/setting/",
}
TIMEOUT_S = 600


# -- one process: a program with every set of callbacks --------------------------------------------


def make(name: str, folder: Path) -> list[Any]:
    """The callbacks of a set's member; eager, since programs are short."""
    from holdfast import (
        AutoScaler,
        EmergencyCheckpoint,
        ErrorRecovery,
        PerformanceMonitor,
        ResourceMonitor,
        TuningAdvisor,
        VerifiedCheckpoint,
    )
    from holdfast.advising.threshold import Threshold

    always = ["share_above(grad_norm, -1) > 0"]
    change = Threshold("drop_in", always, "high", "{value}", "us", "learning_rate", "value / 2", least=3)
    eager = {"rules": [change], "every_n_steps": 1, "num_samples": 8}
    return {
        "ResourceMonitor": lambda: [ResourceMonitor(0.05, 0.05, 0.05)],
        "PerformanceMonitor": lambda: [
            PerformanceMonitor(3, window_steps=1, every_s=1e-6, max_cost=0.99, interventions=True)
        ],
        "TuningAdvisor": lambda: [TuningAdvisor(**eager)],
        "adapt": lambda: [TuningAdvisor("adapt", **eager)],
        "AutoScaler": lambda: [AutoScaler(cache_dir=folder / "cache")],
        "saving": lambda: [
            VerifiedCheckpoint(folder / "checkpoints", every={"steps": 2}),
            EmergencyCheckpoint(folder / "emergency", check_every_n_steps=2),
            ErrorRecovery(),
        ],
    }[name]()


def left_open() -> dict[str, Any]:
    """What a run that is over must have given back."""
    import psutil

    gc.collect()
    handlers = {
        name: repr(signal.getsignal(name)) for name in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    }
    process = psutil.Process()
    return {
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "files": sorted(file.path for file in process.open_files()),
        "descriptors": process.num_fds(),
        "children": len(process.children()),
        "signals": handlers,
    }


def train(name: str, folder: Path, members: tuple[str, ...], devices: int, more: tuple[Any, ...] = ()) -> Any:
    """A run's outcome, and the warnings it gave."""
    from programs import build, run

    ddp = "ddp_find_unused_parameters_true" if name == "gan" else "ddp"
    many = {"strategy": ddp, "devices": devices} if devices > 1 else {}
    own = [callback for member in members for callback in make(member, folder)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        settings = {**many, "max_epochs": 5, "enable_checkpointing": "saving" in members}
        outcome = run(build(name), folder, make_callbacks=lambda *_: [*own, *more], **settings)
    return outcome, {f"{each.category.__name__}: {each.message}" for each in caught}


def is_json(path: Path) -> bool:
    """Whether it is there, whole, and with something in it."""
    text = path.read_text() if path.is_file() else ""
    documents = [text] if path.suffix == ".json" else text.splitlines()
    return bool(text) and all(isinstance(json.loads(each), dict) for each in documents)


def faults_of(
    members: tuple[str, ...], folder: Path, rank: int, bare: Any, watched: Any, before: Any
) -> list[str]:
    """In what a cell is not as it must be."""
    from programs import differences

    faults = sorted(watched[1] - bare[1])
    if "saving" in members:  # whoever saves says how exact that is
        faults = [each for each in faults if "resuming this run is not exact" not in each]
    if "adapt" not in members:
        for part in ("weights", "optimizers", "schedulers", "rng", "steps"):
            faults += differences(bare[0].state[part], watched[0].state[part], part)[:2]
    mark = f"-rank{rank}" if rank else ""
    for member in members:
        if member in FILES and (rank == 0 or "{rank}" in FILES[member]):
            path = folder / "monitor" / FILES[member].format(rank=mark)
            if not is_json(path):
                faults.append(f"no {path.name}")
        keys = {key for _, line in watched[0].lines for key in line}
        if rank == 0 and member in KEYS and not any(key.startswith(KEYS[member]) for key in keys):
            faults.append(f"nothing logged as {KEYS[member]}")
    after = left_open()
    for name in before:
        if name == "descriptors" and after[name] > before[name]:
            faults.append(f"{after[name] - before[name]} descriptors left open")
        elif name != "descriptors" and after[name] != before[name]:
            faults.append(f"{name} {before[name]} became {after[name]}")
    return faults


def run_sets(name: str, folder: Path, devices: int, sets: list[str]) -> None:
    """One line a cell and rank, in a file of the rank."""
    rank = int(os.environ.get("LOCAL_RANK", 0))
    bare = train(name, folder / "bare", (), devices)
    train(name, folder / "bare again", (), devices)  # what is opened once in a process is open now
    for index, title in enumerate(sets):
        before, place = left_open(), folder / str(index)
        begun, watched = time.perf_counter(), train(name, place, SETS[title], devices)
        weights = {key: value.tolist() for key, value in watched[0].state["weights"].items()}
        line = {
            "set": title,
            "faults": faults_of(SETS[title], place, rank, bare, watched, before),
            "weights": hash(json.dumps({k: v for k, v in weights.items() if "running" not in k})),
            "seconds": time.perf_counter() - begun,
        }
        with (folder / f"rank{rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


def run_accident(name: str, folder: Path, accident: str) -> None:
    """Everything on in two ranks, and the last of them fails or gets a signal."""
    from lightning.pytorch import Callback

    class Accident(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_rank == 1 and trainer.fit_loop.epoch_loop.total_batch_idx == 2:
                if accident == "fails":
                    raise RuntimeError("as was asked for")
                os.kill(os.getpid(), signal.SIGTERM)

    train(name, folder, SETS["all, beside those that save"], 2, (Accident(),))


def hide_or_refuse(quick: bool) -> None:
    """No reinforcement learning is installed; for a quick look it is enough that it cannot be imported."""
    for name in ABSENT:
        if quick:
            sys.modules[name] = None  # type: ignore[assignment]
        elif importlib.util.find_spec(name) is not None:
            raise SystemExit(f"{name} can be imported; use an environment without it")


# -- all processes ---------------------------------------------------------------------------------


def python_with_holdfast(folder: Path) -> str:
    """Of an environment with torch and holdfast; holdfast is installed anew each time."""
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "install", "-q"]
    if not (folder / "ready").exists():
        print(f"making {folder}", file=sys.stderr, flush=True)
        venv.create(folder, clear=True, with_pip=True)
        for packages in ([TORCH], [TORCH, ROOT / "callbacks"]):
            subprocess.run([*pip, *packages], check=True)
        (folder / "ready").touch()
    subprocess.run([*pip, "--no-deps", "--force-reinstall", ROOT / "callbacks"], check=True)
    return str(python)


def start(python: str, *options: str) -> tuple[int | str, str]:
    """A process of this file to its end: its code, or that it hung; and what it said last."""
    process = subprocess.Popen(
        [python, "-P", str(HERE), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
    )
    try:
        said = process.communicate(timeout=TIMEOUT_S)[1]
        return process.returncode, said[-2000:]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return "hung", process.communicate()[1][-2000:]


def cells_of(start: Callable[..., Any], name: str, devices: int, sets: list[str]) -> list[dict[str, Any]]:
    """A row for each set of callbacks."""
    with tempfile.TemporaryDirectory() as place:
        code, said = start("--cell", name, place, str(devices), *sets)
        lines: list[dict[str, dict[str, Any]]] = []
        for rank in range(devices):
            path = Path(place, f"rank{rank}.jsonl")
            found = map(json.loads, path.read_text().splitlines() if path.exists() else [])
            lines.append({line["set"]: line for line in found})
    rows = []
    for title in sets:
        faults = [] if code == 0 else [f"the process ended with {code}: {said}"] * (title not in lines[0])
        of_ranks = [ranks[title] for ranks in lines if title in ranks]
        faults += [f"rank {rank}: {fault}" for rank, line in enumerate(of_ranks) for fault in line["faults"]]
        if len(of_ranks) != devices:
            faults.append("not every rank ended")
        elif len({line["weights"] for line in of_ranks}) > 1:
            faults.append("weights differ among ranks")
        rows.append({"program": name, "processes": devices, "callbacks": title, "faults": faults})
    if code != 0 and not any(row["faults"] for row in rows):
        rows[-1]["faults"].append(f"the process ended with {code}: {said}")
    return rows


def accident_of(start: Callable[..., Any], name: str, accident: str) -> dict[str, Any]:
    """A row for a run that cannot end well: it must end, not well, and say why or save."""
    with tempfile.TemporaryDirectory() as place:
        code, said = start("--accident", name, place, accident)
        saved = list(Path(place).rglob("emergency-*.ckpt"))
    faults = [f"ended with {code}: {said}"] if code in (0, "hung") else []
    if accident == "interrupted" and not saved:
        faults.append(f"nothing was saved: {said}")
    title = f"all, beside those that save; a rank {'is ' * (accident != 'fails')}{accident}"
    return {"program": name, "processes": 2, "callbacks": title, "code": code, "faults": faults}


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown: callbacks by programs."""
    columns = list(dict.fromkeys((row["program"], row["processes"]) for row in rows))
    lines = [
        "| callbacks | " + " | ".join(f"{p}, {n}" for p, n in columns) + " |",
        "|-|" + "-|" * len(columns),
    ]
    for title in dict.fromkeys(row["callbacks"] for row in rows):
        cells = {(r["program"], r["processes"]): r["faults"] for r in rows if r["callbacks"] == title}
        words = [
            ("fails" if cells[column] else "as it must") if column in cells else "" for column in columns
        ]
        lines.append(f"| {title} | " + " | ".join(words) + " |")
    return "\n".join(lines)


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--environment", type=Path, default=ENVIRONMENTS / "drop_in", help="is made")
    parser.add_argument("--out", type=Path, default=RESULTS / "drop_in.json")
    parser.add_argument("--quick", action="store_true", help="two cells, in this environment")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=PROGRAMS)
    parser.add_argument("--cell", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--accident", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cell or given.accident:
        hide_or_refuse(given.quick)
        if given.cell:
            name, place, devices, *sets = given.cell
            run_sets(name, Path(place), int(devices), sets)
        else:
            name, place, accident = given.accident
            run_accident(name, Path(place), accident)
        return 0
    python = sys.executable if given.quick else python_with_holdfast(given.environment)
    rows: list[dict[str, Any]] = []

    def begin(*options: str) -> tuple[int | str, str]:
        return start(python, *options, *["--quick"] * given.quick)

    def note(found: list[dict[str, Any]]) -> None:
        rows.extend(found)
        for row in found:
            told = f"{row['callbacks']}: {row['faults'] or 'as it must'}"
            print(row["program"], row["processes"], told, file=sys.stderr, flush=True)

    if given.quick:
        note(cells_of(begin, "gan", 2, list(SETS)[-1:]))
        note([accident_of(begin, "image_classifier", "interrupted")])
    else:
        for name in given.programs:
            for devices in (1, 2):
                note(cells_of(begin, name, devices, list(SETS)))
            for accident in ACCIDENTS:
                note([accident_of(begin, name, accident)])
    print(table(rows))
    num_bad = sum(bool(row["faults"]) for row in rows)
    print(f"{len(rows) - num_bad} of {len(rows)} cells are as they must be")
    result = {"cells": rows, "bad": num_bad, "provenance": get_provenance("observability/drop_in.py")}
    record(given.out, {"quick" if given.quick else "whole": result})
    return min(num_bad, 100)


if __name__ == "__main__":
    sys.exit(main())
