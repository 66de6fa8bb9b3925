"""Settings by the names a user types, and what may change while a run goes on."""

import pytest
from lightning.pytorch import Callback
from small_runs import fitted, small

from perdqn.config.values import RANGES


def test_settings_are_named_as_they_are_typed():
    settings = small().advice_settings()
    assert settings["model.learner.n_step"] == 2
    assert settings["model.network"] == {"class_path": "mlp", "init_args": {"hidden_sizes": [16]}}
    assert settings["model.total_env_steps"] == 600


class Adapts(Callback):
    """Changes every setting halfway, and keeps what it could."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx != 10:
            return
        self.settings = pl_module.adaptable_settings()
        self.before = {name: setting.get() for name, setting in self.settings.items()}
        for setting in self.settings.values():
            setting.set(setting.low)


def test_what_may_change_holds_from_then_on():
    adapts = Adapts()
    module = fitted(adapts)
    learner = module.config.learner
    assert adapts.before["model.learner.learning_rate"] == learner.learning_rate
    assert {name: setting.get() for name, setting in adapts.settings.items()} == {
        name: pytest.approx(setting.low) for name, setting in adapts.settings.items()
    }
    assert module.trainer.optimizers[0].param_groups[0]["lr"] == 1e-6
    assert learner.target_update_period == 1
    assert module.experience.epsilon(10_000) == 0.001
    assert module.experience.beta(10_000) == 0.1


def test_bounds_lie_in_the_range_of_the_setting():
    adapts = Adapts()
    fitted(adapts)
    for name, setting in adapts.settings.items():
        allowed = RANGES[name.removeprefix("model.")]
        assert setting.low in allowed
        assert setting.high in allowed
