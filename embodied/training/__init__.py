"""The training loop shared by policies and world models."""
