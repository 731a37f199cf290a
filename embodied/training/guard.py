"""Batches whose loss or gradient is not finite: skipped, counted, and named when they come in a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

SHOWN = 8


class BadBatchError(ValueError):
    """Training stopped: too many batches in a row gave a loss or gradient that is not finite."""


class Guard:
    """Counts skipped batches; the `limit`-th in a row raises BadBatchError with its episodes and frames."""

    def __init__(self, limit: int) -> None:
        self.limit, self.row = limit, 0

    def good(self) -> None:
        self.row = 0

    def bad(self, step: int, loss: float, norm: float, batches: list[dict[str, Any]]) -> None:
        self.row += 1
        if self.row >= self.limit:
            raise BadBatchError(
                f"{self.row} batches in a row gave a loss or gradient that is not finite; the last, at step {step}, "
                f"had loss {loss:g}, gradient norm {norm:g} and {describe(batches)}. "
                "If values are not finite, run `embodied data validate`; else lower stage.lr or stage.clip_norm"
            )


def describe(batches: list[dict[str, Any]]) -> str:
    """Names the samples that hold values which are not finite, or else the first samples."""
    bad: list[str] = []
    every: list[str] = []
    for batch in batches:
        names = sample_names(batch)
        every += names
        for key, value in batch.items():
            rows = _bad_rows(value, len(names))
            bad += [f"{names[row]} ({key})" for row in rows]
    if bad:
        return f"values that are not finite in {_listed(bad)}"
    return f"only finite inputs, from {_listed(every)}"


def sample_names(batch: Mapping[str, Any]) -> list[str]:
    """ "data set D episode E frame F" per sample, from the numbers that the windows add."""
    episodes = _numbers(batch.get("episode_index"))
    frames = _numbers(batch.get("frame_index"))
    sets = _numbers(batch.get("dataset_index"))
    names = [f"episode {e} frame {f}" for e, f in zip(episodes, frames, strict=True)]
    return [f"data set {d} {name}" for d, name in zip(sets, names, strict=True)] if len(sets) else names


def _numbers(value: Any) -> list[int]:
    return [] if value is None else [int(v) for v in value]


def _bad_rows(value: Any, count: int) -> list[int]:
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or len(value) != count:
        return []
    finite = torch.isfinite(value.reshape(count, -1)).all(dim=1)
    return torch.nonzero(~finite).flatten().tolist()


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
