"""Fitting a run to its machine: what can be set, what it costs, and which value is best."""
