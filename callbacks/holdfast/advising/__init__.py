"""What the numbers of a run say should be changed in it.

Knows nothing about where the numbers come from, nor how a change is made.
"""
