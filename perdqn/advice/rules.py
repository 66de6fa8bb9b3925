"""The rules of value-based learning, as data; docs/advice.md is their table.

Knows nothing about how figures are measured. Thresholds were set on the development runs of
benchmarks/observability/faults.py.
"""

from __future__ import annotations

from perdqn.advice.rule import ValueRule

_HALFWAY = "newest(health/progress) > 0.5"
_UNDER_WAY = "newest(health/progress) > 0.2"
_LEARNS = ("newest(health/updates) > 100", _UNDER_WAY)
_UPDATES = "(newest(health/updates) / newest(health/progress))"
_TARGET_MOVES = (
    f"{_UPDATES} * setting(model.learner.target_tau) / setting(model.learner.target_update_period)"
)
_LEARNER, _REPLAY, _EXPLORATION = "model.learner.", "model.replay.", "model.exploration."
_LR = _LEARNER + "learning_rate"

# -- causes: a setting, or a fault in what is learnt from ------------------------------------------

OBS_SCALE = ValueRule(
    name="obs_scale",
    when=["newest(health/obs_abs_max) > 50"],
    priority="critical",
    confidence=0.95,
    message="Inputs of the network reach {0:.0f}; scale observations to about 1 in model.env.wrappers.",
    source="LeCun et al., Efficient BackProp, 4.3",
    expected="gradients of a size that one learning rate fits",
)
OBS_CONSTANT = ValueRule(
    name="obs_constant",
    when=["newest(health/obs_varying_fraction) < 0.000001"],
    priority="critical",
    confidence=0.98,
    message="Observations are all the same; look at the environment's wrappers.",
    source="by definition",
    expected="states can be told apart",
)
REWARD_LARGE = ValueRule(
    name="reward_large",
    when=["newest(health/reward_abs_mean) > 20"],
    priority="critical",
    confidence=0.9,
    message="Rewards are {0:.0f} on average, far beyond where the loss turns linear; clip or scale them.",
    source="doi:10.1038/nature14236, methods; arXiv:1602.07714",
    setting=_LEARNER + "reward_clip",
    propose="1",
    expected="values of a size that weights of a fresh network reach",
)
REWARD_CLIPPED = ValueRule(
    name="reward_clipped_away",
    when=[
        "setting(model.learner.reward_clip) / newest(health/reward_abs_max) < 0.05",
        "setting(model.learner.reward_clip) < 0.1",
    ],
    priority="critical",
    confidence=0.95,
    message="Rewards are cut to {0:.2%} of their size, so that values drown in what weights begin with.",
    source="doi:10.1038/nature14236: bound of 1",
    setting=_LEARNER + "reward_clip",
    propose="1",
    expected="rewards that can be told from 0",
)
REWARDS_DISAGREE = ValueRule(
    name="rewards_disagree",
    when=["newest(health/reward_disagreement) > 0.5"],
    priority="critical",
    confidence=0.98,
    message="Episodes in the replay earn something else than the environment paid, by {0:.0%}: look at sign "
    "and size of what is added.",
    source="by definition",
    expected="what is learnt is what is paid for",
)
TERMINATION_HIDDEN = ValueRule(
    name="termination_hidden",
    when=[
        "newest(health/truncated_early_fraction) > 0.5",
        "newest(health/truncated_fraction) > 0.9",
    ],
    priority="critical",
    confidence=0.9,
    message="{1:.0%} of the episodes end as truncated, most of them before any time limit, so targets "
    "bootstrap through their ends; let the environment report terminations.",
    source="arXiv:1712.00378",
    expected="ends that are to be avoided are avoided",
)
LEARNING_RATE_HIGH = ValueRule(
    name="learning_rate_high",
    when=["max(health/step_limit) > 0.1"],
    priority="critical",
    confidence=0.97,
    message="A step of the optimiser may move weights by {0:.0%} of their size; lower "
    "model.learner.learning_rate.",
    source="arXiv:1412.6980, 2.1: a step is about the learning rate for each weight",
    setting=_LR,
    propose="value * 0.005 / max(health/step_limit)",
    expected="values that follow their targets instead of overshooting",
)
LEARNING_RATE_LOW = ValueRule(
    name="learning_rate_low",
    when=[
        "newest(health/step_limit) < 0.0001",
        "newest(health/step_ratio) < 0.0001",
        "newest(health/weight_norm_growth) < 6",
    ],
    priority="critical",
    confidence=0.9,
    message="A step of the optimiser moves weights by at most {0:.1e} of their size: hardly anything is "
    "learnt.",
    source="arXiv:1412.6980, 2.1",
    setting=_LR,
    propose="value * 0.005 / newest(health/step_limit)",
    expected="values that follow their targets",
)
ADAM_EPS = ValueRule(
    name="adam_eps_large",
    when=["newest(health/adam_eps_fraction) > 0.99", "setting(model.learner.adam_eps) > 0.01"],
    priority="critical",
    confidence=0.95,
    message="Adam's offset is larger than {0:.0%} of what it is added to, so steps shrink with gradients; "
    "lower model.learner.adam_eps.",
    source="arXiv:1412.6980; arXiv:1710.02298: 1.5e-4",
    setting=_LEARNER + "adam_eps",
    propose="0.00000001",
    expected="steps of the size the learning rate means",
)
CLIP_TINY = ValueRule(
    name="clip_tiny",
    when=[
        "median(train/grad_norm) / setting(model.learner.max_grad_norm) > 100",
        "count(train/grad_norm) > 4",
    ],
    priority="high",
    confidence=0.9,
    message="Gradients are {0:.0f} times as long as model.learner.max_grad_norm: all that is left of them "
    "is their direction.",
    source="arXiv:1211.5063; arXiv:1511.06581: 10",
    setting=_LEARNER + "max_grad_norm",
    propose="10",
    expected="batches with more to learn from count for more",
)
WARMUP_LONG = ValueRule(
    name="warmup_long",
    when=["setting(model.learner.warmup_env_steps) / setting(model.total_env_steps) > 0.5"],
    priority="high",
    confidence=0.8,
    message="{0:.0%} of the run are acted without learning.",
    source="doi:10.1038/nature14236: 0.1 %",
    setting=_LEARNER + "warmup_env_steps",
    propose="setting(model.total_env_steps) / 20",
    expected="more updates of the same steps",
)
REPLAY_RATIO_LOW = ValueRule(
    name="replay_ratio_low",
    when=[
        "newest(health/replay_ratio) < 1",
        "setting(model.learner.batch_size) / setting(model.learner.train_every) < 1",
        _UNDER_WAY,
    ],
    priority="high",
    confidence=0.8,
    message="A transition is drawn {0:.2f} times on average.",
    source="arXiv:2007.06700: 8 in DQN",
    setting=_LEARNER + "train_every",
    propose="setting(model.learner.batch_size) / 8",
    expected="more is learnt of the same steps",
)
TARGET_STATIC = ValueRule(
    name="target_static",
    when=[
        "newest(health/updates) > 1000",
        "abs(newest(health/target_norm_growth) - 1) < 0.000001",
        _UNDER_WAY,
    ],
    priority="critical",
    confidence=0.95,
    message="The target network is still the first one after {0:.0f} updates: nothing beyond one step ahead "
    "is learnt.",
    source="doi:10.1038/nature14236: some 10,000 updates of 12 million",
    setting=_LEARNER + "target_update_period",
    propose=f"{_UPDATES} / 20",
    expected="values that look further than a step",
)
TARGET_SLOW = ValueRule(
    name="target_slow",
    when=[f"{_TARGET_MOVES} < 5", "setting(model.learner.target_tau) > 0.999", *_LEARNS],
    priority="high",
    confidence=0.8,
    message="The target network will move {0:.1f} times in this run.",
    source="doi:10.1038/nature14236",
    setting=_LEARNER + "target_update_period",
    propose=f"{_UPDATES} / 20",
    expected="values that look further ahead",
    causes=(WARMUP_LONG, REPLAY_RATIO_LOW),
)
TARGET_TAU_LOW = ValueRule(
    name="target_tau_low",
    when=[f"{_TARGET_MOVES} < 5", "setting(model.learner.target_tau) < 0.999", *_LEARNS],
    priority="high",
    confidence=0.8,
    message="Step by step the target network will go {0:.1f} times the way to the online one in this run: "
    "a share of {1:g} at each of its moves.",
    source="arXiv:1509.02971: tau 0.001 at each of a million updates",
    setting=_LEARNER + "target_tau",
    propose=f"20 * setting(model.learner.target_update_period) / {_UPDATES}",
    expected="values that look further ahead",
    causes=(WARMUP_LONG, REPLAY_RATIO_LOW),
)
TARGET_FAST = ValueRule(
    name="target_fast",
    when=["setting(model.learner.target_update_period) / setting(model.learner.target_tau) < 10"],
    priority="high",
    confidence=0.85,
    message="The target network is the online one of {0:.0f} updates ago: targets move with what chases "
    "them.",
    source="arXiv:1509.02971: tau 0.001; doi:10.1038/nature14236",
    setting=_LEARNER + "target_update_period",
    propose="500 * setting(model.learner.target_tau)",
    expected="targets that stand still while they are learnt",
)
EPSILON_HIGH = ValueRule(
    name="epsilon_high",
    when=["newest(rollout/epsilon) > 0.4", _HALFWAY],
    priority="critical",
    confidence=0.9,
    message="After half of the run {0:.0%} of the actions are still random, so little is seen of what a "
    "good policy sees.",
    source="doi:10.1038/nature14236: 0.1 after 2 % of the run",
    setting=_EXPLORATION + "epsilon_end",
    propose="0.05",
    expected="experience of where the policy leads",
)
EPSILON_LOW = ValueRule(
    name="epsilon_low",
    when=["max(rollout/epsilon) < 0.02", "setting(model.exploration.epsilon_start) < 0.02"],
    priority="critical",
    confidence=0.9,
    message="At most {0:.1%} of the actions were ever random: what the first policy does not try is never "
    "learnt.",
    source="doi:10.1038/nature14236: from 1",
    setting=_EXPLORATION + "epsilon_start",
    propose="1",
    expected="all actions are tried before one is preferred",
)
DISCOUNT_SHORT = ValueRule(
    name="discount_short",
    when=[
        "1 / (1 - setting(model.learner.gamma)) < 10",
        "1 / (1 - setting(model.learner.gamma)) / newest(rollout/length_mean) < 0.5",
    ],
    priority="critical",
    confidence=0.85,
    message="With this discount the agent looks {0:.1f} steps ahead, {1:.0%} of a mean episode.",
    source="Sutton and Barto, Reinforcement Learning, 3.3: horizon 1 / (1 - gamma)",
    setting=_LEARNER + "gamma",
    propose="0.99",
    expected="rewards further away count",
)
N_STEP_LONG = ValueRule(
    name="n_step_long",
    when=["setting(model.learner.n_step) > 10"],
    priority="high",
    confidence=0.85,
    message="Targets sum {0:.0f} rewards of older policies, uncorrected.",
    source="arXiv:1710.02298: 3; arXiv:2007.06700",
    setting=_LEARNER + "n_step",
    propose="3",
    expected="targets of less noise, and of the present policy",
)
REPLAY_SMALL = ValueRule(
    name="replay_small",
    when=["setting(model.replay.capacity) < 2000", "newest(health/overwritten_fraction) > 0.5"],
    priority="critical",
    confidence=0.9,
    message="The replay forgets all but the newest {0:.0f} rows.",
    source="arXiv:1712.01275; arXiv:2007.06700",
    setting=_REPLAY + "capacity",
    propose="50000",
    expected="batches of many episodes, and no forgetting",
)
REPLAY_RATIO_HIGH = ValueRule(
    name="replay_ratio_high",
    when=["newest(health/replay_ratio) > 200", _UNDER_WAY],
    priority="high",
    confidence=0.7,
    message="A transition is drawn {0:.0f} times on average, which overfits the replay.",
    source="arXiv:2205.07802; arXiv:2007.06700: 8 in DQN",
    setting=_LEARNER + "train_every",
    propose="setting(model.learner.batch_size) / 32",
    expected="values that hold for states not replayed, too",
)
BATCH_SMALL = ValueRule(
    name="batch_small",
    when=["setting(model.learner.batch_size) < 8"],
    priority="high",
    confidence=0.9,
    message="Gradients are means over {0:.0f} transitions.",
    source="doi:10.1038/nature14236: 32",
    setting=_LEARNER + "batch_size",
    propose="32",
    expected="steps of less noise",
)
NETWORK_SMALL = ValueRule(
    name="network_small",
    when=["newest(health/num_features) < 8"],
    priority="critical",
    confidence=0.85,
    message="Values are made of {0:.0f} features; give model.network wider layers, 128 say.",
    source="arXiv:2010.14498",
    expected="states can be told apart",
)
DEAD_RELUS = ValueRule(
    name="dead_relus",
    when=["newest(health/dead_fraction) > 0.9"],
    priority="critical",
    confidence=0.85,
    message="{0:.0%} of a layer's units are silent whatever is seen.",
    source="arXiv:1903.06733; arXiv:2302.12902",
    setting=_LR,
    propose="value / 3",
    expected="units that answer; those that are dead need a new start",
    causes=(LEARNING_RATE_HIGH, OBS_SCALE),
)
WEIGHT_INIT = ValueRule(
    name="weight_init_large",
    when=["newest(health/weight_gain_first) > 5", "newest(health/weight_gain) > 5"],
    priority="critical",
    confidence=0.9,
    message="A layer makes what it sees {0:.1f} times as large, and did so from the beginning; begin with "
    "smaller weights.",
    source="doi:10.1109/ICCV.2015.123: 1.4 for ReLUs",
    expected="first values near 0 instead of far beyond any return",
    causes=(LEARNING_RATE_HIGH,),
)
UNTRAINED = ValueRule(
    name="untrained_parameters",
    when=["newest(health/untrained_fraction) > 0.2", "newest(health/updates) > 100"],
    priority="critical",
    confidence=0.95,
    message="{0:.0%} of the network's tensors never had a gradient; let them require one.",
    source="by definition",
    expected="features that are learnt",
    causes=(DEAD_RELUS,),
)
PRIORITIES_FROZEN = ValueRule(
    name="priorities_not_updated",
    when=[
        "newest(health/never_replayed_fraction) > 0.9",
        "newest(health/updates) * setting(model.learner.batch_size) / newest(replay/size) > 1",
    ],
    priority="critical",
    confidence=0.95,
    message="{0:.0%} of the rows never had their priority measured, after {1:.1f} draws for each: draws are "
    "uniform.",
    source="arXiv:1511.05952, algorithm 1, line 12",
    expected="draws follow TD errors",
)
PRIORITIES_UNIFORM = ValueRule(
    name="priorities_uniform",
    when=[
        "newest(health/priority_entropy) > 0.9995",
        "setting(model.replay.alpha) > 0.2",
        "newest(health/updates) * setting(model.learner.batch_size) / newest(replay/size) > 1",
    ],
    priority="high",
    confidence=0.8,
    message="Draws are uniform: the entropy of their distribution is {0:.4f} of what it can be.",
    source="arXiv:1511.05952, 3.3",
    setting=_REPLAY + "priority_eps",
    propose="0.000001",
    expected="draws follow TD errors",
    causes=(PRIORITIES_FROZEN,),
)
ALPHA_HIGH = ValueRule(
    name="alpha_high",
    when=[
        "newest(health/priority_entropy) < 0.9",
        "newest(health/weight_sample_size) < 0.03",
        _UNDER_WAY,
    ],
    priority="high",
    confidence=0.75,
    message="Few rows take most draws: the entropy of their distribution is {0:.2f} of what it can be, and "
    "importance weights leave {1:.1%} of a batch.",
    source="arXiv:1511.05952, 4: alpha 0.6; Kish's effective sample size",
    setting=_REPLAY + "alpha",
    propose="value * 2 / 3",
    expected="batches of more different rows",
    causes=(REPLAY_SMALL,),
)
BETA_LOW = ValueRule(
    name="beta_low",
    when=["newest(replay/beta) < 0.3", "setting(model.replay.alpha) > 0.2", _UNDER_WAY],
    priority="high",
    confidence=0.85,
    message="Importance weights are raised to {0:.2f}, so the bias of prioritized draws is left in.",
    source="arXiv:1511.05952, 3.4: from 0.4 to 1",
    setting=_REPLAY + "beta_end",
    propose="1",
    expected="values that are means over what happens, not over what surprises",
)
HUBER_TINY = ValueRule(
    name="huber_delta_tiny",
    when=["setting(model.learner.huber_delta) < 0.1", "newest(health/td_error_beyond_huber) > 0.75"],
    priority="high",
    confidence=0.9,
    message="{1:.0%} of the TD errors lie where the loss is linear: all pull alike, whatever their size.",
    source="doi:10.1038/nature14236: 1",
    setting=_LEARNER + "huber_delta",
    propose="1",
    expected="estimates that end at means, not at medians",
)
WARMUP_SHORT = ValueRule(
    name="warmup_short",
    when=["setting(model.learner.warmup_env_steps) / setting(model.learner.batch_size) < 2"],
    priority="low",
    confidence=0.5,
    message="The first batches are drawn from {0:.1f} times as many rows, and fit these.",
    source="arXiv:2205.07802",
    setting=_LEARNER + "warmup_env_steps",
    propose="setting(model.learner.batch_size) * 20",
    expected="no early overfitting",
)

TERMINAL_BOOTSTRAP = ValueRule(
    name="terminal_bootstrap",
    when=[
        "min(health/terminal_priority_growth, 3) > 1.2",
        "min(health/terminal_surplus, 3) > 0.2",
        _UNDER_WAY,
    ],
    priority="critical",
    confidence=0.85,
    message="Where episodes end, training found errors e^{0:.1f} times smaller than there are if nothing "
    "follows, and values go beyond the last reward: targets seem to bootstrap through terminations.",
    source="arXiv:1712.00378",
    expected="ends that are to be avoided are avoided",
    causes=(
        *(OBS_SCALE, OBS_CONSTANT, REWARD_LARGE, REWARD_CLIPPED, REWARDS_DISAGREE, LEARNING_RATE_HIGH),
        *(LEARNING_RATE_LOW, ADAM_EPS, TERMINATION_HIDDEN, NETWORK_SMALL, DEAD_RELUS, WEIGHT_INIT),
        *(UNTRAINED, DISCOUNT_SHORT, TARGET_STATIC, REPLAY_SMALL, TARGET_FAST, WARMUP_LONG),
        REPLAY_RATIO_LOW,
    ),
)

# -- symptoms: what several causes may bring about ---------------------------------------------------

_OF_SCALE = (OBS_SCALE, REWARD_LARGE, WEIGHT_INIT, LEARNING_RATE_HIGH)
_OF_TARGETS = (TERMINAL_BOOTSTRAP, TERMINATION_HIDDEN, TARGET_FAST, TARGET_STATIC)

Q_DIVERGENCE = ValueRule(
    name="q_divergence",
    when=["newest(health/q_bound_ratio) > 1.5"],
    priority="critical",
    confidence=0.8,
    message="Values are {0:.1f} times as large as any return can be.",
    source="arXiv:1812.02648: r_max / (1 - gamma)",
    setting=_LR,
    propose="value / 3",
    expected="values within what can be earned",
    causes=(*_OF_SCALE, *_OF_TARGETS, REWARD_CLIPPED),
)
OVERESTIMATION = ValueRule(
    name="overestimation",
    when=["median(health/overestimation, 3) > 1", "newest(health/q_bound_ratio) > 0.1", _HALFWAY],
    priority="medium",
    confidence=0.6,
    message="Values lie {0:.0%} above what the same actions went on to earn.",
    source="arXiv:1509.06461",
    setting=_LEARNER + "target_update_period",
    propose="value * 2",
    expected="values nearer to returns",
    causes=(Q_DIVERGENCE, *_OF_SCALE, *_OF_TARGETS),
)
TD_ERROR_RISING = ValueRule(
    name="td_error_rising",
    when=["growth(health/td_error_relative) > 3", "count(health/td_error_relative) > 5"],
    priority="medium",
    confidence=0.6,
    message="TD errors, relative to values, are {0:.1f} times what they were.",
    source="arXiv:1812.02648",
    setting=_LR,
    propose="value / 3",
    expected="errors that fall",
    causes=(Q_DIVERGENCE, *_OF_SCALE, *_OF_TARGETS),
)
LOSS_LINEAR = ValueRule(
    name="loss_linear",
    when=["min(health/td_error_beyond_huber, 3) > 0.95", _UNDER_WAY],
    priority="medium",
    confidence=0.5,
    message="{0:.0%} of the TD errors lie where the loss is linear.",
    source="arXiv:1602.07714",
    setting=_LEARNER + "huber_delta",
    propose="newest(health/td_error_abs_p50)",
    expected="larger errors count for more",
    causes=(HUBER_TINY, Q_DIVERGENCE, *_OF_SCALE, *_OF_TARGETS),
)
GRADIENT_TAILS = ValueRule(
    name="gradient_tails",
    when=["max(train/grad_norm) / median(train/grad_norm) > 50", "count(train/grad_norm) > 20"],
    priority="medium",
    confidence=0.5,
    message="Single gradients are {0:.0f} times as long as usual.",
    source="arXiv:1211.5063",
    setting=_LEARNER + "max_grad_norm",
    propose="p90(train/grad_norm)",
    expected="no single batch that undoes many",
    causes=(*_OF_SCALE, Q_DIVERGENCE),
)
CLIPPED = ValueRule(
    name="clipped_share",
    when=[
        "median(train/grad_norm) / setting(model.learner.max_grad_norm) > 3",
        "count(train/grad_norm) > 20",
    ],
    priority="low",
    confidence=0.4,
    message="Most gradients are scaled down, the middle one {0:.1f} times.",
    source="arXiv:1211.5063",
    setting=_LEARNER + "max_grad_norm",
    propose="p75(train/grad_norm)",
    expected="batches with more to learn from count for more",
    causes=(CLIP_TINY, *_OF_SCALE, Q_DIVERGENCE),
)
DORMANT = ValueRule(
    name="dormant_units",
    when=["newest(health/dormant_fraction) > 0.8"],
    priority="medium",
    confidence=0.6,
    message="{0:.0%} of a layer's units do next to nothing.",
    source="arXiv:2302.12902",
    setting=_LR,
    propose="value / 2",
    expected="more of the network is used",
    causes=(DEAD_RELUS, *_OF_SCALE, *_OF_TARGETS),
)
RANK_COLLAPSE = ValueRule(
    name="rank_collapse",
    when=["newest(health/feature_rank) < 4", "newest(health/num_features) > 15"],
    priority="medium",
    confidence=0.6,
    message="Features of all states span {0:.0f} of {1:.0f} dimensions.",
    source="arXiv:2010.14498",
    setting=_LR,
    propose="value / 2",
    expected="states can be told apart",
    causes=(DEAD_RELUS, OBS_CONSTANT, *_OF_SCALE, *_OF_TARGETS),
)
WEIGHT_GROWTH = ValueRule(
    name="weight_norm_growth",
    when=["newest(health/weight_norm_growth) > 6"],
    priority="medium",
    confidence=0.5,
    message="Weights are {0:.1f} times as large as at the beginning.",
    source="arXiv:2402.18762",
    setting=_LR,
    propose="value / 2",
    expected="a network that still learns later on",
    causes=(*_OF_SCALE, Q_DIVERGENCE),
)
SAMPLE_SIZE = ValueRule(
    name="weight_sample_size",
    when=["newest(health/weight_sample_size) < 0.03", _UNDER_WAY],
    priority="medium",
    confidence=0.5,
    message="Importance weights leave {0:.1%} of a batch.",
    source="arXiv:1511.05952, 3.4; Kish's effective sample size",
    setting=_REPLAY + "alpha",
    propose="value * 2 / 3",
    expected="batches of which more counts",
    causes=(ALPHA_HIGH, *_OF_SCALE),
)
NEVER_REPLAYED = ValueRule(
    name="never_replayed",
    when=[
        "newest(health/never_replayed_fraction) > 0.5",
        "newest(health/updates) * setting(model.learner.batch_size) / newest(replay/size) > 2",
    ],
    priority="medium",
    confidence=0.5,
    message="{0:.0%} of the rows were never drawn.",
    source="arXiv:1511.05952, 3.3",
    setting=_REPLAY + "alpha",
    propose="value * 2 / 3",
    expected="nothing is forgotten unseen",
    causes=(PRIORITIES_FROZEN, ALPHA_HIGH, REPLAY_RATIO_LOW),
)
PRIORITIES_STALE = ValueRule(
    name="stale_priorities",
    when=["median(health/priority_staleness, 3) > 3", _UNDER_WAY],
    priority="low",
    confidence=0.4,
    message="Stored priorities are off by a factor of e^{0:.1f} in the middle.",
    source="arXiv:1511.05952; arXiv:2007.09569",
    setting=_REPLAY + "capacity",
    propose="value / 2",
    expected="draws follow the errors of now",
    causes=(PRIORITIES_FROZEN, REPLAY_RATIO_LOW, *_OF_SCALE, *_OF_TARGETS),
)
POLICY_CHURN = ValueRule(
    name="policy_churn",
    when=["median(health/policy_churn, 3) > 0.6", _HALFWAY],
    priority="low",
    confidence=0.4,
    message="{0:.0%} of the greedy actions are other ones than at the last look.",
    source="arXiv:2206.00730",
    setting=_LR,
    propose="value / 2",
    expected="a policy that settles",
    causes=(*_OF_SCALE, *_OF_TARGETS, Q_DIVERGENCE),
)
ACTION_GAP = ValueRule(
    name="action_gap",
    when=["newest(health/action_gap) < 0.0005", _HALFWAY],
    priority="low",
    confidence=0.4,
    message="The best action is {0:.3%} better than the next: noise decides.",
    source="arXiv:1512.04860",
    expected="longer training, or a longer n_step",
    causes=(DEAD_RELUS, OBS_CONSTANT, *_OF_SCALE, *_OF_TARGETS),
)
EVALUATION_ABOVE = ValueRule(
    name="evaluation_above_training",
    when=[
        "(newest(eval/return_mean) - newest(rollout/return_mean)) / abs(newest(rollout/return_mean)) > 2",
        "newest(rollout/epsilon) > 0.15",
        _HALFWAY,
    ],
    priority="medium",
    confidence=0.5,
    message="Without random actions the policy earns {0:.1f} times more than training does on top.",
    source="doi:10.1038/nature14236",
    setting=_EXPLORATION + "epsilon_end",
    propose="value / 2",
    expected="experience of where the policy leads",
    causes=(EPSILON_HIGH,),
)

RULES: tuple[ValueRule, ...] = tuple(
    value for value in list(globals().values()) if isinstance(value, ValueRule)
)
