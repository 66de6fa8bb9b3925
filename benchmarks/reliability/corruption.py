"""Damages a folder of generations in every way that bits allow, and sees whether anything loads regardless.

    python benchmarks/reliability/corruption.py --flips 10000

Every file is cut at each multiple of 4 KiB, and random single bits of all files are turned over. The newest
valid generation must then be the old one or hold what was saved, bit for bit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from holdfast import VerifiedCheckpoint
from holdfast.storage.generations import Generation, GenerationFolder
from small_run import train

BLOCK = 4096


def save_two(root: Path) -> Path:
    """A folder of two generations, as a run leaves it."""
    folder = root / "checkpoints"
    train(root, [VerifiedCheckpoint(dirpath=folder, every={"steps": 4}, keep=2)], steps=8)
    return folder


def digest(generation: Generation) -> dict[str, str]:
    """SHA-256 of what a generation's files hold now."""
    return {
        file.path: hashlib.sha256((generation.folder / file.path).read_bytes()).hexdigest()
        for file in generation.files
    }


def is_harmed(folder: Path, saved: dict[int, dict[str, str]]) -> bool:
    """Whether the damage was let through: nothing is left, or what is left is not what was saved."""
    found = GenerationFolder(folder).newest_valid()
    return found is None or saved.get(found.sequence) != digest(found)


def truncations(folder: Path) -> Iterator[str]:
    """Cut each file at each block; the damage is undone afterwards."""
    for path in files_of(folder):
        whole = path.read_bytes()
        for size in range(0, len(whole), BLOCK):
            path.write_bytes(whole[:size])
            yield f"{path.name} cut at {size}"
        path.write_bytes(whole)


def flips(folder: Path, number: int, seed: int) -> Iterator[str]:
    """Turn one bit over at a time, any bit of any file being as likely."""
    rng, paths = random.Random(seed), files_of(folder)
    sizes = [path.stat().st_size for path in paths]
    for path in rng.choices(paths, sizes, k=number):
        bit = rng.randrange(8 * path.stat().st_size)
        flip(path, bit)
        yield f"{path.name} bit {bit}"
        flip(path, bit)


def flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def files_of(folder: Path) -> list[Path]:
    """Every file; the convenience link shares its bytes with a generation and is left out."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in ("last.ckpt", ".lock"))


def sweep(number_of_flips: int, seed: int = 0) -> dict[str, int]:
    """How many damages were made, and how many got through."""
    scratch = Path(tempfile.mkdtemp(prefix="corruption-"))
    try:
        folder = save_two(scratch)
        saved = {
            generation.sequence: digest(generation) for generation in GenerationFolder(folder).generations()
        }
        assert len(saved) == 2
        counts = {}
        for kind, damages in {
            "truncations": truncations(folder),
            "bit_flips": flips(folder, number_of_flips, seed),
        }.items():
            harmed = [is_harmed(folder, saved) for _ in damages]
            counts |= {kind: len(harmed), f"{kind}_let_through": sum(harmed)}
        return {"seed": seed, **counts}
    finally:
        shutil.rmtree(scratch)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flips", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    figures = sweep(args.flips, args.seed)
    print(json.dumps(figures))
    sys.exit(bool(figures["truncations_let_through"] or figures["bit_flips_let_through"]))


if __name__ == "__main__":
    main()
