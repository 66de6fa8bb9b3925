"""What TensorBoard is given: the layout, the run in words, and films that disturb nothing."""

from __future__ import annotations

import re
import time
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from holdfast import PerformanceMonitor, ResourceMonitor
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from perdqn.module import PERDQN
from perdqn.run import dashboard
from perdqn.run.dashboard import FILM, LAYOUT, Dashboard

from .small_runs import assert_same, fingerprint, small, trainer


class Dice(gymnasium.Env):
    """Rolls of numpy's global dice, which no seed of an episode sets; draws itself."""

    metadata: ClassVar = {"render_modes": ["rgb_array"]}
    observation_space = gymnasium.spaces.Box(0.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode, self.num_rolls = render_mode, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.num_rolls = 0
        return self._roll(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.num_rolls += 1
        return self._roll(), 1.0, self.num_rolls == 9, False, {}

    def _roll(self) -> Any:
        return np.random.random(2).astype(np.float32)

    def render(self) -> Any:
        return np.full((200, 200, 3), np.random.randint(256), np.uint8)


class Blind(Dice):
    """Cannot draw itself."""

    def render(self) -> None:
        return None


def run(root: Path, *callbacks: Dashboard, env: str = "Dice", logger: Any = None) -> PERDQN:
    """600 env steps with three evaluations."""
    np.random.seed(1)
    module = small(env={"id": f"{__name__}.{env}"})
    logger = TensorBoardLogger(root, "", "") if logger is None else logger
    trainer(*callbacks, logger=logger).fit(module)
    return module


def events_of(root: Path) -> EventAccumulator:
    return EventAccumulator(str(root), size_guidance={"images": 0}).Reload()


def test_a_film_follows_every_nth_evaluation(tmp_path: Path) -> None:
    run(tmp_path / "each", Dashboard(1))
    run(tmp_path / "other", Dashboard(2))
    assert [image.step for image in events_of(tmp_path / "each").Images(FILM)] == [200, 400, 600]
    (image,) = events_of(tmp_path / "other").Images(FILM)
    assert (image.step, image.width, image.height) == (400, 200, 200)
    with Image.open(BytesIO(image.encoded_image_string)) as film:
        assert (film.format, film.n_frames) == ("GIF", 10)


def test_films_change_no_bit_of_a_run_whose_environment_draws_from_global_streams(tmp_path: Path) -> None:
    filmed, plain = run(tmp_path / "filmed", Dashboard(1)), run(tmp_path / "plain", Dashboard())
    assert_same(fingerprint(filmed), fingerprint(plain))
    assert filmed.online.training
    assert "images" not in {kind for kind, tags in events_of(tmp_path / "plain").Tags().items() if tags}


def test_a_film_shows_the_network_as_evaluations_see_it(tmp_path: Path, monkeypatch: Any) -> None:
    modes = []

    def film(module: PERDQN, **_: Any) -> Any:
        modes.append(any(part.training for part in module.online.modules()))
        raise ValueError("seen")

    monkeypatch.setattr(dashboard, "film", film)
    with pytest.warns(UserWarning, match="no video in TensorBoard: seen"):
        run(tmp_path, Dashboard(1))
    assert modes == [False]


def test_an_environment_that_cannot_draw_is_named_once_and_the_run_goes_on(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        module = run(tmp_path, Dashboard(1), env="Blind")
    texts = [str(warning.message) for warning in said]
    assert len([text for text in texts if "no video in TensorBoard" in text and "Blind" in text]) == 1
    assert module.env_steps == 600


def test_a_signal_cuts_a_film_short(tmp_path: Path, monkeypatch: Any) -> None:
    asked = []

    def film(module: PERDQN, *, seed: int, is_stopped: Any) -> Any:
        asked.append(is_stopped())
        module.abort_evaluation()
        asked.append(is_stopped())
        module.trainer.should_stop = True
        raise ValueError("seen")

    monkeypatch.setattr(dashboard, "film", film)
    with pytest.warns(UserWarning, match="seen"):
        run(tmp_path, Dashboard(1))
    assert asked == [False, True]


@pytest.mark.parametrize("kind", ["csv", "none"])
def test_without_tensorboard_nothing_is_filmed(tmp_path: Path, monkeypatch: Any, kind: str) -> None:
    monkeypatch.setattr(dashboard, "film", None)  # a call would fail
    logger = CSVLogger(tmp_path) if kind == "csv" else False
    assert run(tmp_path, Dashboard(1, lambda: {"run/a": "b"}), logger=logger).env_steps == 600


def test_texts_are_shown_as_they_stand(tmp_path: Path) -> None:
    run(tmp_path, Dashboard(texts=lambda: {"run/origin": "command  perdqn fit\nchanges  none"}))
    (text,) = events_of(tmp_path).Tensors("run/origin/text_summary")
    assert text.tensor_proto.string_val == [b"```\ncommand  perdqn fit\nchanges  none\n```"]


def test_a_period_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="video_every must be at least 1, got 0; use null"):
        Dashboard(0)


def wait_for(figure: str, resources: ResourceMonitor) -> None:
    """Of a difference there is none before a second look, which a busy machine may take its time for."""
    while figure not in resources.stats:
        time.sleep(0.01)


def test_every_curve_of_the_layout_is_logged_where_everything_is_on(tmp_path: Path) -> None:
    resources = ResourceMonitor(interval_s=0.02, log_every_seconds=0.02)
    performance = PerformanceMonitor(report_every_steps=1, window_steps=2, every_s=1e-3, max_cost=0.5)
    logger = TensorBoardLogger(tmp_path, "", "")
    until_read_twice = LambdaCallback(on_train_start=lambda *_: wait_for("resource/cpu_share", resources))
    watchers = (resources, performance, until_read_twice)
    fit = trainer(Dashboard(), *watchers, logger=logger, log_every_n_steps=5)
    fit.fit(small(learner={"updates_per_step": 1}))
    logged = events_of(tmp_path).Tags()["scalars"]
    shown = {tag for charts in LAYOUT.values() for _, tags in charts.values() for tag in tags}
    assert {tag for tag in shown if not any(re.match(tag, key) for key in logged)} == set()
