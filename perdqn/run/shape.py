"""Which settings a run keeps for life, and which of these a fork may change.

Knows nothing about what they mean.
"""

# what a saved state fits to; a name that ends in a dot stands for all below it
FOR_LIFE = (
    "model.env.id",
    "model.env.kwargs",
    "model.env.num_envs",
    "model.env.vectorization",
    "model.env.wrappers",
    "model.env.frame_stack",
    "model.env.stack_padding",
    "model.replay.capacity",
    "model.network.",
    "model.head.",
    "model.learner.dueling",
    "model.seed",
)
OF_REPLAY = ("model.env.num_envs", "model.env.vectorization", "model.replay.capacity")  # at its price
SEED = "model.seed"  # random streams begin anew
FORKABLE = (*OF_REPLAY, SEED)


def fits_fork(setting: str) -> bool:
    """Whether a fork may have another value of it than its run."""
    return setting.startswith(FORKABLE) or not setting.startswith(FOR_LIFE)
