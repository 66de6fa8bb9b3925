"""Takes the pictures in docs/images that show pages: what TensorBoard and `perdqn report` make of a run.

python benchmarks/screenshots.py RUN

RUN is the folder of a run that has everything on, such as of
perdqn fit --config cartpole --config guarded --dashboard.video_every 2

Needs Chromium and its driver: apt-get install chromium chromium-driver
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import tempfile
import time
from io import BytesIO
from pathlib import Path

from PIL import Image
from screens.boards import tensorboard
from screens.chromium import Page, chromium

from perdqn.__main__ import main as perdqn

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
SETTLED_S = 4.0  # until charts are drawn that were asked for
WIDTH, HEIGHT = 1850, 2650


def shoot(page: Page, path: Path) -> None:
    """Write what the browser shows as a PNG of 256 colours, which takes a third of the bytes."""
    time.sleep(SETTLED_S)
    picture = Image.open(BytesIO(page.driver.get_screenshot_as_png())).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(run, Path(scratch, "lightning_logs", run.name))
        with contextlib.chdir(scratch), chromium(Path(scratch, "profile"), WIDTH, HEIGHT) as page:
            shoot_pages(page, Path("lightning_logs", run.name))


def shoot_pages(page: Page, run: Path) -> None:
    page.driver.set_page_load_timeout(120)  # a large picture takes a while to be drawn
    with tensorboard(run.parent, ["custom_scalars"]) as address:
        page.open(f"{address}#custom_scalars&_smoothingWeight=0")
        shoot(page, IMAGES / "tensorboard.png")
    perdqn(["report", str(run), "--out", "report.html"])
    page.open(Path("report.html").resolve().as_uri())
    shoot(page, IMAGES / "report.png")


if __name__ == "__main__":
    main()
