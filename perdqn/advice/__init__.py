"""What the figures of a value-based run say should be changed in it.

Knows nothing about how they are measured, nor how a change is made.
"""

from perdqn.advice.metrics import get_tuning_recommendations
from perdqn.advice.rule import ValueRule, advise
from perdqn.advice.rules import RULES

__all__ = ["RULES", "ValueRule", "advise", "get_tuning_recommendations"]
