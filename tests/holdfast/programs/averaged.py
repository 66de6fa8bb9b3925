"""Lightning's own EMA callback, which swaps weights for validation, an early stop, and a run by steps."""

from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.weight_averaging import EMAWeightAveraging
from torch.utils.data import DataLoader

from . import Program
from .augmented import Noisy
from .regression import Regression


def build() -> Program:
    train, val = DataLoader(Noisy(10, 1), batch_size=2, shuffle=True), DataLoader(Noisy(4, 2), batch_size=2)
    settings = {"max_steps": 40, "val_check_interval": 3, "check_val_every_n_epoch": None}
    stop = EarlyStopping("val_loss", patience=1, min_delta=10.0)
    return Program(Regression(), train, val, settings, [EMAWeightAveraging(decay=0.8), stop])
