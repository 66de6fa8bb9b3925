"""What the next save will cost: seconds until it is whole, and bytes on the disk.

Knows nothing about who saves, nor who asks.
"""

from __future__ import annotations

from lightning.pytorch import LightningModule

from ..storage.generations import Generation, GenerationFolder
from ..triggers import Pace
from .save import Run

FIRST_SAVE_S = 1.0  # before anything is known


class SaveCosts:
    """Estimates from the saves so far; `seconds` and `num_bytes` may be asked from any thread."""

    def __init__(self, run: Run, folder: GenerationFolder, module: LightningModule, pace: Pace) -> None:
        self._run, self._folder, self._module, self._pace = run, folder, module, pace
        self._num_bytes, self._num_saves = 0, -1

    @property
    def longest_s(self) -> float:
        return self._run.longest_save_s

    def seconds(self) -> float:
        """To the next boundary, and then as long as the longest save took."""
        return (self.longest_s or FIRST_SAVE_S) + self._pace.seconds()

    def num_bytes(self) -> int:
        """What the newest save wrote; before there is one, the weights three times, as with Adam."""
        if self._num_saves != self._run.num_saves:
            self._num_saves = self._run.num_saves
            generations = self._folder.generations()[:2]
            weights = sum(parameter.nbytes for parameter in self._module.parameters())
            self._num_bytes = _new_bytes(generations) or 3 * weights
        return self._num_bytes


def _new_bytes(generations: list[Generation]) -> int:
    """Of the first, what the others do not have too."""
    if not generations:
        return 0
    known = {file.path for older in generations[1:] for file in older.files}
    return sum(file.size for file in generations[0].files if file.path not in known)
