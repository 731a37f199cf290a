"""Evaluation: runner, records, statistics, report."""
