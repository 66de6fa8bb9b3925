"""One save of a trainer: what is in it, when it is due, how it ranks, what it costs."""
