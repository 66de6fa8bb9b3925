"""Q-networks, their heads and the mathematics of their targets."""
