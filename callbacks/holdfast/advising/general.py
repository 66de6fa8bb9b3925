"""Rules for any training run, whatever is trained.

Knows nothing about where figures come from. Thresholds "chosen here" are scored by
``benchmarks/observability/general_rules.py``; see docs/observability.md.
"""

from __future__ import annotations

from .advice import Advice
from .expression import Expression
from .names import find_setting
from .rule import Rule
from .signals import Signals
from .threshold import Threshold

KARPATHY = "A. Karpathy: updates of about 1e-3 of the weights; 30 times and a tenth of that were chosen here"
MANN = "Mann-Kendall trend test, Z beyond 3.3 is one in 2,000"

_UNTOUCHED = "newest(learning_rate) > 0.3 * setting(learning_rate)"  # no schedule has lowered it

THRESHOLDS = (
    Threshold(
        name="not_finite",
        when=["share_above(non_finite, 0, 10) > 0"],
        priority="critical",
        message="Loss or gradients are not finite in {0:.0%} of the newest measurements; lower the learning "
        "rate.",
        source="IEEE 754: no arithmetic leads back from there",
        setting="learning_rate",
        propose="value / 10",
        expected="Finite losses, once weights are restored from before.",
        least=1,
        confidence=0.9,
    ),
    Threshold(
        name="loss_diverging",
        when=["shift(loss) > 3", "trend(loss) > 3.3"],
        priority="critical",
        message="The loss rises by {0:.1f} times its noise; lower the learning rate.",
        source=f"{MANN}; shift chosen here",
        setting="learning_rate",
        propose="value / 10",
        expected="A loss that falls.",
        confidence=0.7,
    ),
    Threshold(
        name="loss_above_start",
        when=["median(loss, 20) - newest(loss_start) > 0.5 * abs(newest(loss_start))", "trend(loss) > -3.3"],
        priority="critical",
        message="The loss lies {0:.3g} above where it began, and does not fall; lower the learning rate.",
        source="a loss that training raises is not being minimised; share chosen here",
        setting="learning_rate",
        propose="value / 10",
        expected="A loss below where it began.",
        confidence=0.6,
    ),
    Threshold(
        name="updates_too_large",
        when=["median(update_ratio) > 0.03", "trend(loss) > -3.3", _UNTOUCHED],
        priority="high",
        message="A step changes weights by {0:.1%} of their size and the loss does not fall; lower the "
        "learning rate from {value}.",
        source=KARPATHY,
        setting="learning_rate",
        propose="value / 10",
        expected="A loss that falls further.",
    ),
    Threshold(
        name="first_updates_too_large",
        when=["max(update_ratio) > 0.2"],
        priority="high",
        message="A single step has changed weights by {0:.0%} of their size, which undoes the "
        "initialisation; lower the learning rate from {value}, or warm it up.",
        source=KARPATHY,
        setting="learning_rate",
        propose="value / 10",
        expected="Units that stay alive, and a loss that falls further.",
        confidence=0.6,
    ),
    Threshold(
        name="updates_too_small",
        when=[
            "median(update_ratio) < 1e-4",
            "newest(loss_start) - median(loss) < noise(loss)",
            "median(grad_norm) > 0",
            "median(dead_units) < 0.5",
            _UNTOUCHED,
        ],
        priority="high",
        message="A step changes weights by {0:.1g} of their size and the loss has not fallen; raise the "
        "learning rate from {value}.",
        source=KARPATHY,
        setting="learning_rate",
        propose="value * 10",
        expected="A loss that falls.",
    ),
    Threshold(
        name="loss_spikes",
        when=["spikes(loss) > 0.03", "p99(loss) - median(loss) > 0.3 * abs(newest(loss_start))"],
        priority="medium",
        message="{0:.0%} of losses stand out of those around them; lower the learning rate, or clip "
        "gradients.",
        source="8 noise deviations above those beside it, a third of the first loss; shares chosen here",
        setting="learning_rate",
        propose="value / 3",
        expected="A smoother and lower loss.",
        least=30,
    ),
    Threshold(
        name="grad_norm_tails",
        when=["tail(grad_norm) > 10", "p99(grad_norm) > 2 * newest(grad_norm_start)"],
        priority="medium",
        message="Single gradients are {0:.0f} times as long as those around them; clip them at {proposed}.",
        source="arXiv:2007.14469 clips at a quantile of the history; factor chosen here",
        setting="gradient_clip_val",
        propose="p90(grad_norm)",
        expected="No single batch throws the weights off.",
        least=30,
    ),
    Threshold(
        name="gradients_explode",
        when=["growth(grad_norm) > 10", "trend(grad_norm) > 3.3", "shift(loss) > -1"],
        priority="high",
        message="Gradients have grown {0:.0f}-fold and the loss does not fall; clip them at {proposed}.",
        source=f"{MANN}; arXiv:1211.5063 clips at half to ten times the usual norm; factor chosen here",
        setting="gradient_clip_val",
        propose="p25(grad_norm)",
        expected="Steps of bounded length.",
    ),
    Threshold(
        name="gradients_explode_towards_the_input",
        when=["median(grad_depth_ratio) > 1e3"],
        priority="high",
        message="Gradients of the first layer are {0:.0f} times those of the last; normalise activations or "
        "scale the initialisation down.",
        source="Glorot and Bengio 2010: about alike in all layers; factor chosen here",
        expected="All layers learn at one rate.",
    ),
    Threshold(
        name="gradients_vanish",
        when=["median(grad_depth_ratio) < 1e-3"],
        priority="high",
        message="Gradients of the first layer are {0:.1g} of those of the last; use ReLU-like activations, "
        "normalisation, skip connections, or a larger initialisation.",
        source="Glorot and Bengio 2010: about alike in all layers; factor chosen here",
        expected="The first layers learn.",
    ),
    Threshold(
        name="mostly_clipped",
        when=["median(grad_norm) > 2 * setting(gradient_clip_val)", "share_above(clipped, 0) > 0.9"],
        priority="low",
        message="Gradients are clipped in {1:.0%} of steps, to less than half: clipping has become the "
        "learning rate; raise gradient_clip_val from {value} to {proposed}.",
        source="arXiv:1211.5063: half to ten times the usual norm",
        setting="gradient_clip_val",
        propose="p90(grad_norm)",
        expected="Steps that follow the gradient's length again.",
    ),
    Threshold(
        name="overfitting",
        when=[
            "100 * (median(val_loss, 3) / min(val_loss) - 1) > 20",
            "trend(val_loss) > 1.65",
            "min(val_loss) > 0",
            "shift(loss) < 0",
        ],
        priority="high",
        message="The validation loss is {0:.0f} % above its best while the training loss falls: stop early, "
        "regularise (weight decay, dropout, augmentation) or use more data.",
        source="generalisation loss of Prechelt 1998, Early stopping - but when?; 20 % chosen here",
        setting="weight_decay",
        propose="value * 10",
        expected="A validation loss that stays near its best.",
        least=8,
    ),
    Threshold(
        name="weights_grow",
        when=["growth(weight_norm) > 3", "trend(weight_norm) > 3.3"],
        priority="medium",
        message="Weights have grown {0:.1f}-fold; lower the learning rate, or decay weights.",
        source=f"{MANN}; factor chosen here",
        setting="learning_rate",
        propose="value / 3",
        expected="Weights that settle.",
    ),
    Threshold(
        name="dead_units",
        when=["newest(dead_units) > 0.5"],
        priority="high",
        message="{0:.0%} of a layer's units receive no gradient: dead ReLUs; lower the learning rate, shrink "
        "biases at the start, or use a leaky activation.",
        source="arXiv:2302.12902, dormant units at tau 0; share chosen here",
        setting="learning_rate",
        propose="value / 3",
        expected="Units that learn.",
        least=3,
    ),
    Threshold(
        name="batch_too_small",
        when=["median(gradient_noise_scale) > 10 * setting(batch_size)"],
        priority="low",
        message="The gradient's noise scale is {0:.0f} examples, over ten times the batch: larger batches "
        "with a larger learning rate learn as much per example in fewer steps.",
        source="arXiv:1812.06162: batches below the noise scale are averaged at no loss",
        setting="batch_size",
        propose="value * 2",
        expected="Fewer steps to the same loss.",
        least=3,
    ),
    Threshold(
        name="data_starves",
        when=["median(time/phase_data) > 0.2"],
        priority="medium",
        message="{0:.0%} of the time is spent waiting for data; use more loader workers, or cheaper items.",
        source="Amdahl: at best 1 / (1 - share); share chosen here",
        setting="num_workers",
        propose="value + 2",
        expected="Steps that wait for nothing.",
        gain="1 / (1 - median(time/phase_data))",
        least=5,
    ),
    Threshold(
        name="memory_rises",
        when=["growth(resource/rss_bytes) > 1.3", "trend(resource/rss_bytes) > 5"],
        priority="medium",
        message="Resident memory has grown {0:.2f}-fold and goes on; look for tensors kept with their graph, "
        "lists that only grow, or a replay that is still filling.",
        source=f"{MANN}; growth chosen here",
        expected="A run that does not end by its memory limit.",
        least=30,
    ),
)


class NotShuffled(Rule):
    """Training data come in the order they are stored in; it matters where the loss jumps."""

    name = "not_shuffled"
    _signs = tuple(
        Expression(text)
        for text in ("100 * spikes(loss)", "tail(loss) / 3", "median(val_loss, 3) / median(loss) / 1.3")
    )

    def check(self, signals: Signals) -> Advice | None:
        if find_setting(signals.settings, "shuffle")[1] is not False or len(signals.window("loss")) < 20:
            return None
        signs = {sign.text: sign(signals, window=100) or 0.0 for sign in self._signs}
        return Advice(
            rule=self.name,
            priority="high" if max(signs.values()) > 1 else "low",
            message="Training data are read in the order they are stored in; use DataLoader(shuffle=True).",
            evidence={"sampler": "SequentialSampler", **signs, "any of these >": 1.0},
            source="gradients are unbiased where batches are drawn at random; signs chosen here",
            expected="Batches that are alike; steps that do not undo one another.",
            confidence=0.9,
        )


def general_rules() -> list[Rule]:
    """All of them, in no particular order."""
    return [*THRESHOLDS, NotShuffled()]
