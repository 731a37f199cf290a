"""Benchmarks: figures with their baselines, measured in one run, in one file format."""
