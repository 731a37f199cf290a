"""Checks of one episode's arrays and instruction."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from embodied.data.source import TIMESTAMP
from embodied.data.validation.report import Kind, Report
from embodied.schema import ACTION, EXECUTED_ACTION

TIME_TOLERANCE = 0.1  # of a frame's duration: float32 seconds of an hour are good to a few per cent of it


def check_columns(report: Report, episode: int, length: int, columns: Mapping[str, np.ndarray], fps: float) -> None:
    """Rows against `length`, finite values, an action that never changes, timestamps one frame apart."""
    for key, values in columns.items():
        if len(values) != length:
            message = f"{key} should have {length} rows, it has {len(values)}"
            report.add(Kind.count_mismatch, message, episode, min(length, len(values)), key)
        if values.dtype.kind == "f":
            _check_finite(report, episode, key, values)
        if key in (ACTION, EXECUTED_ACTION) and len(values) > 1 and (values == values[0]).all():
            report.add(Kind.constant_action, f"{key} is the same in all {len(values)} frames", episode, 0, key)
    if TIMESTAMP in columns:
        check_times(report, episode, columns[TIMESTAMP].reshape(-1).astype(np.float64), fps, TIMESTAMP)


def check_text(report: Report, episode: int, task: str) -> None:
    if not task.strip():
        report.add(Kind.missing_text, "there is no instruction", episode)


def check_times(report: Report, episode: int, times: np.ndarray, fps: float, key: str) -> None:
    """Wrong rate: the usual step is not 1/fps. A jump: one step is not the usual one."""
    steps = np.diff(times)
    if len(steps) == 0 or not np.isfinite(steps).all():
        return
    usual = float(np.median(steps))
    if abs(usual * fps - 1) > TIME_TOLERANCE:
        rate = 1 / usual if usual > 0 else float("inf")
        report.add(Kind.wrong_fps, f"{key} runs at {rate:.3g} frames per second, metadata say {fps:g}", episode, 0, key)
    jumps = np.flatnonzero(np.abs(steps - usual) > TIME_TOLERANCE / fps)
    if len(jumps):
        first = int(jumps[0])
        message = f"{key} goes from {times[first]:.4f} s to {times[first + 1]:.4f} s; {len(jumps)} such steps"
        report.add(Kind.time_jump, message, episode, first + 1, key)


def _check_finite(report: Report, episode: int, key: str, values: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(1))
    if len(bad):
        report.add(Kind.not_finite, f"{key} has {len(bad)} frames with NaN or infinity", episode, int(bad[0]), key)
