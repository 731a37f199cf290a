"""Simulator environments, the scripted expert, perturbations."""
