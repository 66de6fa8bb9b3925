"""What to try where a run of PERDQN spends its time: settings, by holdfast's name of the bottleneck.

Knows nothing about how one is found.
"""

REMEDIES = {
    "environment": "more environments side by side (model.env.num_envs), each in a process of its own where "
    "a step is slow (model.env.vectorization async), or cheaper wrappers",
    "compute": "model.learner.backend compiled, a smaller model.network, or the torch threads that suit this "
    "machine (scaler.bounds)",
    "transfer": "model.replay.device learner, which draws batches where the networks are",
    "logging": "a larger trainer.log_every_n_steps",
    "disk": "a larger checkpoint.every, or a faster disk",
    "cpu_throttled": "a larger quota, or fewer model.learner.num_threads and environments in processes",
    "memory_pressure": "a larger memory limit, a smaller model.replay.capacity, or model.replay.storage lz4 "
    "for images",
    "validation": "a larger model.evaluation.every_env_steps, or fewer model.evaluation.episodes",
}
