"""A browser, and a run to look at with everything on; tests that need them are skipped without Chromium."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import pytest

from perdqn.__main__ import main

if TYPE_CHECKING:
    from screens.chromium import Page

ENV_ID, STEP_S = "Unhurried-v0", 0.005
SETTINGS: dict[str, Any] = {
    "model": {
        "env": {"id": ENV_ID},
        "replay": {"capacity": 1000, "beta_env_steps": 600},
        "learner": {"batch_size": 16, "warmup_env_steps": 100, "target_update_period": 20},
        "exploration": {"epsilon_env_steps": 300},
        "evaluation": {"every_env_steps": 200, "episodes": 4, "test_episodes": 3, "num_envs": 4},
        "network": {"class_path": "mlp", "init_args": {"hidden_sizes": [16]}},
        "total_env_steps": 600,
    },
    "dashboard": {"video_every": 1},
    "watch": {"resources": False, "performance": False},  # but for those below
    "trainer": {
        "log_every_n_steps": 10,
        "enable_progress_bar": False,
        "callbacks": [
            {
                "class_path": "holdfast.ResourceMonitor",
                "init_args": {"interval_s": 0.05, "log_every_seconds": 0.05},
            },
            {
                "class_path": "holdfast.PerformanceMonitor",
                "init_args": {"report_every_steps": 1, "window_steps": 2, "every_s": 0.01, "max_cost": 0.5},
            },
        ],
    },
}


class Unhurried(gymnasium.Wrapper[Any, Any, Any, Any]):
    """So that a run of a few hundred steps lasts for seconds, and every curve has more than two points."""

    def step(self, action: Any) -> Any:
        time.sleep(STEP_S)
        return super().step(action)


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    pytest.importorskip("selenium", reason="selenium is not installed")
    from screens.chromium import BROWSER, DRIVER, chromium

    if BROWSER is None or DRIVER is None:
        pytest.skip("no chromium and chromedriver here: apt-get install chromium chromium-driver")
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="session")
def run(page: Page, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has ended; not made where there is no browser."""
    root = tmp_path_factory.mktemp("run")
    settings = root / "settings.yaml"
    settings.write_text(json.dumps(SETTINGS))  # JSON is YAML
    gymnasium.register(ENV_ID, lambda **kwargs: Unhurried(gymnasium.make("CartPole-v1", **kwargs)))
    assert main(["fit", "--config", str(settings), "--trainer.default_root_dir", str(root)]) == 0
    return root / "lightning_logs" / "version_0"
