"""Behaviour cloning: the baseline."""
