"""Prioritized replay: a sum over priorities, rings of rows, and the two together."""
