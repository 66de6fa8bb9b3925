"""What TensorBoard shows beside the scalars: layout, the run in words, episodes to watch, hparams, result.

Knows nothing about other loggers; Lightning gives them the hyperparameters as it does always.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from holdfast import BoundaryCallback
from holdfast.exact.rng import get_global_rng, set_global_rng
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from perdqn.acting.environment import episode_seed
from perdqn.recording import Film, film

# A tag is a regular expression that begins as a metric's key does. TensorBoard puts charts with a margin
# last, and of two curves in one chart may cut off one that has far fewer points.
LAYOUT = {
    "return": {
        "training": ["Multiline", ["rollout/return_mean"]],
        "episode length": ["Multiline", ["rollout/length_mean"]],
        "evaluation with its 95 % interval": [
            "Margin",
            ["eval/return_mean", "eval/return_low", "eval/return_high"],
        ],
    },
    "learning": {
        "Q against realised return": ["Multiline", ["health/q_taken_mean", "health/realised_return_mean"]],
        "Q of the batch": ["Multiline", ["train/q_mean"]],
        "TD error: median and 99th percentile": ["Multiline", ["health/td_error_abs_p"]],
        "TD error of the batch": ["Multiline", ["train/td_error_abs_mean", "train/loss"]],
        "gradient norm": ["Multiline", ["train/grad_norm"]],
        "dormant units": ["Multiline", ["health/dormant_fraction", "health/dead_fraction"]],
        "rank of the features": ["Multiline", ["health/feature_rank_fraction"]],
    },
    "replay": {
        "epsilon and beta": ["Multiline", ["rollout/epsilon", "replay/beta"]],
        "entropy of the priorities": ["Multiline", ["health/priority_entropy"]],
        "effective sample size": ["Multiline", ["replay/effective_sample_size"]],
        "largest priority": ["Multiline", ["replay/priority_max"]],
        "replay ratio": ["Multiline", ["health/replay_ratio"]],
        "age of the batch": ["Multiline", ["replay/age_mean"]],
        "size": ["Multiline", ["replay/size"]],
    },
    "speed": {
        "env steps per second": ["Multiline", ["time/env_steps_per_second"]],
        "share of the time by phase": ["Multiline", ["time/phase_"]],
    },
    "resources": {
        "memory, share of the limit": ["Multiline", ["resource/memory_share"]],
        "memory of the process": ["Multiline", ["resource/rss_bytes"]],
        "processor, share of what may be used": ["Multiline", ["resource/cpu_share"]],
        "disk, free": ["Multiline", ["resource/disk_free_bytes"]],
    },
}
FILM = "eval/episode"


class Dashboard(BoundaryCallback):  # whose idle hooks cost nothing
    """Adds layout and texts as training starts, and films now and then; `log_result` adds the rest.

    A film is one greedy episode, the same seed each time, which neither training nor evaluations play. Only
    TensorBoard shows it, so without its logger none is made. It changes no bit of the run.

    Args:
        video_every: evaluations from one film to the next; None films nothing.
        texts: gives plain texts by name, as training starts.

    Raises:
        ValueError: video_every is below 1.
    """

    def __init__(
        self,
        video_every: int | None = None,
        texts: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        if video_every is not None and video_every < 1:
            raise ValueError(f"video_every must be at least 1, got {video_every}; use null for no video")
        self.video_every, self.texts = video_every, texts
        self._num_seen = 0  # evaluations
        self._cannot_film = False

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._num_seen = len(pl_module.evaluations)
        loggers = _tensorboards(trainer)
        texts = self.texts() if loggers else {}
        for logger in loggers:
            logger.experiment.add_custom_scalars(LAYOUT)
            for name, text in texts.items():
                _add_text(logger, name, text, pl_module.env_steps)

    def on_boundary(self, trainer: Trainer, pl_module: Any) -> None:
        """Here rather than as an evaluation ends, so that a signal that cuts a film short cuts no save."""
        num = len(pl_module.evaluations)
        if self.video_every is None or num == self._num_seen:
            return
        self._num_seen = num
        if num % self.video_every == 0 and not self._cannot_film and (loggers := _tensorboards(trainer)):
            self._film(loggers, pl_module)

    def _film(self, loggers: list[TensorBoardLogger], module: Any) -> None:
        seed = episode_seed(module.config.seed, "record", 0, 0)
        try:
            with _undisturbed(module):
                filmed = film(module, seed=seed, is_stopped=lambda: module.is_evaluation_aborted)
        except ValueError as error:
            self._cannot_film = True
            rank_zero_warn(f"no video in TensorBoard: {error}")
            return
        for logger in loggers:
            _add_film(logger, filmed, module.env_steps)


def log_result(
    trainer: Trainer, hparams: Mapping[str, Any], score: float | None, table: str, env_steps: int
) -> None:
    """The result in words, and hyperparameters beside the final score; once, as TensorBoard keeps the first.

    Args:
        table: plain text.
    """
    metrics = {} if score is None else {"final/return_mean": score}
    for logger in _tensorboards(trainer):
        _add_text(logger, "run/result", table, env_steps)
        logger.log_hyperparams(dict(hparams), metrics, step=env_steps)
        logger.save()


def _tensorboards(trainer: Trainer) -> list[TensorBoardLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def _add_text(logger: TensorBoardLogger, name: str, text: str, env_steps: int) -> None:
    logger.experiment.add_text(name, f"```\n{text}\n```", env_steps)


def _add_film(logger: TensorBoardLogger, filmed: Film, env_steps: int) -> None:
    """As an image summary: `add_video` needs moviepy, and fails with its version 2."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    image = Summary.Image(
        height=filmed.height, width=filmed.width, colorspace=3, encoded_image_string=filmed.gif
    )
    summary = Summary(value=[Summary.Value(tag=FILM, image=image)])
    logger.experiment._get_file_writer().add_summary(summary, env_steps)


@contextmanager
def _undisturbed(module: Any) -> Iterator[None]:
    """The network as in evaluations, and random streams that environments may draw from as they were."""
    rng = get_global_rng()
    modes = [(part, part.training) for part in module.online.modules()]
    module.online.eval()
    try:
        yield
    finally:
        set_global_rng(rng)
        for part, mode in modes:
            part.training = mode
