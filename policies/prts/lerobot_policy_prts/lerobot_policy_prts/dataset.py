"""What PRTS reads of a LeRobot data set beside its batches: steps to go, success, action chunks, statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embodied.data.lerobot_reader import LeRobotSource
from embodied.data.statistics import column_statistics
from embodied.schema import ACTION
from policies.prts.model import FIT_CHUNKS

FIT_EPISODES = 512


class Labels:
    """Steps to go and success of frames, by their number in the data set; from its metadata alone."""

    def __init__(self, root: str | Path) -> None:
        self.source = LeRobotSource(root)
        known = [-1 if info.success is None else int(info.success) for info in self.source.episodes]
        self.success = np.array(known, np.int8)

    def of(self, index_B: np.ndarray, episode_B: np.ndarray) -> dict[str, np.ndarray]:
        """steps_to_go (B,), 0 at an episode's last frame, and success (B,): 1, 0, -1 unknown. ValueError outside."""
        index, episode = np.asarray(index_B, np.int64).ravel(), np.asarray(episode_B, np.int64).ravel()
        steps = self.source.starts[episode + 1] - 1 - index
        if len(steps) and (steps.min() < 0 or (index < self.source.starts[episode]).any()):
            raise ValueError(
                f"{self.source.root}: frames should lie in their episodes, frame {index[0]} of episode {episode[0]} "
                "does not: run `embodied data validate`"
            )
        return {"steps_to_go": steps, "success": self.success[episode]}

    def chunks(self, length: int) -> np.ndarray:
        """Up to FIT_CHUNKS action chunks (N, length, A), spread evenly over up to FIT_EPISODES episodes."""
        total = len(self.source.episodes)
        chosen = np.unique(np.linspace(0, total - 1, min(total, FIT_EPISODES)).astype(int))
        parts = [_windows(self.source.read_columns(int(i))[ACTION], length) for i in chosen]
        every = np.concatenate(parts)
        return every[np.unique(np.linspace(0, len(every) - 1, min(len(every), FIT_CHUNKS)).astype(int))]

    def statistics(self, keys: Sequence[str]) -> dict[str, dict[str, list[float]]]:
        """Exact statistics of some columns, quantiles included, as JSON values: every episode is read."""
        episodes = [self.source.read_columns(i) for i in range(len(self.source.episodes))]
        return {key: column_statistics([columns[key] for columns in episodes]).to_json() for key in keys}


def _windows(actions_TA: np.ndarray, length: int) -> np.ndarray:
    """The chunk that starts at every frame; the last action stands in after the end: (T, length, A)."""
    steps = np.arange(len(actions_TA))[:, None] + np.arange(length)
    return actions_TA[np.minimum(steps, len(actions_TA) - 1)]


def plain_statistics(stats: Mapping[str, Any], keys: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Mean, std, min and max of some columns out of LeRobot's statistics, as JSON values. Its quantiles are not read:
    of a whole data set they are averages of the episodes' quantiles (`Labels.statistics` has exact ones)."""
    missing = [key for key in keys if key not in stats]
    if missing:
        raise ValueError(f"the data set's statistics should hold {missing[0]}, got {sorted(stats)}: write it again")
    names = ("mean", "std", "min", "max")
    return {key: {name: np.asarray(stats[key][name], np.float64).tolist() for name in names} for key in keys}
