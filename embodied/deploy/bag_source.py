"""Bags as a source of episodes for `embodied data`, through the node's own decoding and alignment.

    embodied data import BAG out=DIR                                  # what `embodied node record=` wrote
    embodied data import BAG out=DIR source.contract=my_robot.yaml    # any other ROS 2 bag

PATH is a bag (a folder with metadata.yaml) or a folder of bags. One bag's episodes are held in memory at a time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from embodied.data.source import ColumnSpec, EpisodeInfo
from embodied.deploy.bag_import import Episode, bag_episodes
from embodied.deploy.contract import Contract, contract_from, load_contract
from embodied.schema import ACTION

BAG_FILE = "metadata.yaml"


def find_bags(path: Path) -> list[Path]:
    """The bag at `path`, or the bags directly in it; none when there are none."""
    if (path / BAG_FILE).is_file():
        return [path]
    return sorted(child for child in path.iterdir() if (child / BAG_FILE).is_file()) if path.is_dir() else []


def recorded_contract(bag: Path) -> Contract | None:
    """The contract in a recording of `embodied node`, None in any other bag."""
    from embodied.deploy.transports import ros_types
    from embodied.deploy.transports.mcap import read_bag

    for topic, type_name, _, data in read_bag(bag):
        if topic.endswith("/recording") and type_name == "std_msgs/msg/String":
            return contract_from(json.loads(ros_types.decode(type_name, data).data)["contract"], f"contract in {bag}")
    return None


class BagSource:
    """contract: a file; empty takes the one that a recording holds. task: replaces what the bag says of it."""

    def __init__(self, path: Path, contract: str = "", task: str = "") -> None:
        bags = find_bags(path)
        if not bags:
            raise ValueError(f"{path} should be a ROS 2 bag (a folder with {BAG_FILE}) or hold some, there is none")
        found = load_contract(Path(contract)) if contract else recorded_contract(bags[0])
        if found is None:
            raise ValueError(f"{bags[0]} holds no contract: add source.contract=FILE, which says what its topics are")
        self.contract, self.task = found, task
        self.name, self.fps = path.resolve().name, float(found.rate_hz)
        self.episodes: list[EpisodeInfo] = []
        self.cameras: dict[str, tuple[int, int]] = {}
        self.columns: dict[str, ColumnSpec] = {}
        self._places: list[tuple[Path, int]] = []
        self._held: tuple[Path, list[Episode]] | None = None
        for bag in bags:
            self._scan(bag)
        if not self.episodes:
            raise ValueError(
                f"{path} should hold commands on {found.action.topic} with an observation at the time, it holds none"
            )

    def read_columns(self, episode: int) -> dict[str, np.ndarray]:
        return {key: np.stack(rows).astype(np.float32) for key, rows in self._episode(episode).columns.items()}

    def read_frames(self, episode: int, camera: str) -> np.ndarray:
        return np.stack(self._episode(episode).images[camera])

    def _scan(self, bag: Path) -> None:
        for part, episode in enumerate(self._read(bag)):
            cameras = {key: (frames[0].shape[0], frames[0].shape[1]) for key, frames in episode.images.items()}
            if self.episodes and cameras != self.cameras:
                raise ValueError(f"{bag} should have cameras {self.cameras} as the bags before it, it has {cameras}")
            self.cameras = cameras
            self.columns = {key: self._spec(key, rows[0]) for key, rows in episode.columns.items()}
            index, source = len(self.episodes), f"{bag.name}/{part}"
            self.episodes.append(EpisodeInfo(index, len(episode), episode.task, source=source))
            self._places.append((bag, part))

    def _spec(self, key: str, row: np.ndarray) -> ColumnSpec:
        names = self.contract.action.names if key == ACTION else self.contract.names(key)
        return ColumnSpec("float32", row.shape, tuple(names))

    def _episode(self, index: int) -> Episode:
        bag, part = self._places[index]
        return self._read(bag)[part]

    def _read(self, bag: Path) -> list[Episode]:
        from embodied.deploy.transports.mcap import read_bag

        if self._held is None or self._held[0] != bag:
            entries: Any = read_bag(bag)
            self._held = (bag, bag_episodes(entries, self.contract, self.task or None))
        return self._held[1]
