"""A tiny run with two generations from before its end, and the state it ended in.

Knows nothing about how a run saves itself: its checkpoints are taken beside that.
"""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from holdfast.checkpoint import save_generation
from holdfast.saving.environment import environment_fingerprint
from holdfast.storage.generations import Generation, GenerationFolder
from lightning.pytorch import Callback

from perdqn.__main__ import main

SETTINGS = {
    "model.env.id": "toys.Counting",
    "model.env.kwargs": '{"length": 7, "spread": 3}',
    "model.env.num_envs": 2,
    "model.total_env_steps": 300,
    "model.replay.capacity": 120,
    "model.replay.beta_env_steps": 300,
    "model.learner.warmup_env_steps": 50,
    "model.learner.batch_size": 8,
    "model.learner.updates_per_step": 4,
    "model.learner.target_update_period": 10,
    "model.exploration.epsilon_env_steps": 200,
    "model.evaluation.every_env_steps": 100,
    "model.evaluation.episodes": 2,
    "model.evaluation.test_episodes": 2,
    "model.evaluation.num_envs": 2,
    "model.network.class_path": "mlp",
    "model.network.init_args.hidden_sizes": "[8]",
}
UPDATES = (16, 32)  # of the two generations


class Keep(Callback):
    """Saves the state before an update to a folder: whole in one file, and as a generation with parts."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        path = self.folder / f"{trainer.global_step}.ckpt"
        if trainer.global_step in UPDATES and not path.exists():
            trainer.save_checkpoint(path)
            folder = GenerationFolder(self.folder / "in-parts" / "checkpoints")
            save_generation(trainer, folder, f"update-{trainer.global_step}", "regular")

    def on_train_end(self, trainer: Any, *_: Any) -> None:
        trainer.save_checkpoint(self.folder / "end.ckpt")


def keeping(folder: Path) -> str:
    """The option that makes a run leave its states in ``folder``."""
    callbacks = [{"class_path": "saved_runs.Keep", "init_args": {"folder": str(folder)}}]
    return f"--trainer.callbacks={json.dumps(callbacks)}"


def make_run(root: Path) -> Path:
    """The folder of a run that has been trained, and looks as if killed after its second generation."""
    options = [f"--{name}={value}" for name, value in SETTINGS.items()]
    quiet = ["--trainer.default_root_dir", str(root), "--trainer.enable_progress_bar=false"]
    assert main(["fit", *options, *quiet, keeping(root / "states")]) == 0
    run = root / "lightning_logs" / "version_0"
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["trainer"]["callbacks"] = None
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "status": "running"}))
    shutil.rmtree(run / "checkpoints")
    for updates in UPDATES:
        add_generation(run, f"update-{updates}", root / "states" / f"{updates}.ckpt")
    return run


def add_generation(run: Path, name: str, source: Path, kind: str = "regular", **facts: Any) -> Generation:
    """A generation that holds the checkpoint ``source``."""
    state = torch.load(source, weights_only=True)["perdqn"]
    counters = {key: state[key] for key in ("env_steps", "update_steps", "episodes")}
    defaults = {"counters": counters, "environment": environment_fingerprint()}
    folder = GenerationFolder(run / "checkpoints")
    return folder.write(name, kind, lambda file: file.write(source.read_bytes()), facts={**defaults, **facts})


def copy_run(run: Path, root: Path) -> Path:
    """The run in another place, for a test to spoil."""
    return Path(shutil.copytree(run, root / "lightning_logs" / "version_0"))


def damage(path: Path) -> None:
    """Change one bit in the middle; of a zip, in that of its largest entry: what pads it has no checksum."""
    content = bytearray(path.read_bytes())
    at = len(content) // 2
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            largest = max(file.infolist(), key=lambda entry: entry.file_size)
            name, extra = struct.unpack_from("<HH", content, largest.header_offset + 26)
            at = largest.header_offset + 30 + name + extra + largest.compress_size // 2
    content[at] ^= 1
    path.write_bytes(content)


@contextmanager
def written_by_another(run: Path) -> Iterator[int]:
    """Another process holds the run's checkpoints meanwhile; its number."""
    script = "import sys\nfrom holdfast.storage.lock import FolderLock\n"
    script += "FolderLock(sys.argv[1]).acquire(); print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script, run / "checkpoints"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield holder.pid
        holder.stdin.close()
