"""Where the time of a run goes, and what of it could be saved.

Knows nothing about what is trained.
"""
