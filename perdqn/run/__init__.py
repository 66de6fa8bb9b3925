"""What a run shows while it trains and leaves when it ends.

Knows nothing about how an agent is trained.
"""
