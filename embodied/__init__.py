"""embodied-stack: contracts and shared machinery. Imports none of sim, policies, world_models."""

__version__ = "0.1.0"
