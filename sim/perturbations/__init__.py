"""Perturbed episodes, plus-style and pro-style: our own ranges and implementations on unmodified hf-libero.

Named after the published benchmarks whose axes they follow (LIBERO-plus, LIBERO-PRO); they are not those benchmarks and
their numbers must not be reported as such. docs/SIMULATORS.md lists every axis and key.
"""

from sim.perturbations.names import Perturbation, axes, parse

__all__ = ["Perturbation", "axes", "parse"]
