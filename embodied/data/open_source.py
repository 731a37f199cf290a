"""Opens any data set this project reads, by what its folder holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import numpy as np

from embodied.data.cache import FrameCache, is_cache
from embodied.data.importers.lerobot_folder import Angles
from embodied.data.source import Source
from embodied.paths import data_folder


class Format(Enum):
    """auto: by the folder's content."""

    auto = "auto"
    lerobot = "lerobot"
    droid_lerobot = "droid_lerobot"
    droid = "droid"
    libero_hdf5 = "libero_hdf5"
    cache = "cache"
    bag = "bag"


@dataclass
class SourceOptions:
    """How a data set is to be read where its files do not say it.

    mirrored: cameras stored mirrored left to right (LIBERO's sets on the hub). rename: their key -> ours. angles: what
    entries 3 to 5 of a LeRobot state are. tool_offset: metres from DROID's flange to the grip point. contract: file of
    a ROS 2 bag that is no recording of `embodied node`; task: its instruction, where the bag does not say it.
    """

    format: Format = Format.auto
    mirrored: bool = False
    rename: dict[str, str] = field(default_factory=dict)
    angles: Angles = Angles.keep
    tool_offset: float = 0.0
    contract: str = ""
    task: str = ""


class CacheSource:
    """A frame cache read as a source of episodes."""

    def __init__(self, cache: FrameCache) -> None:
        self.cache = cache
        self.name, self.fps = cache.name, cache.fps
        self.cameras, self.columns = cache.cameras, cache.specs
        self.episodes = cache.episodes.infos

    def read_columns(self, episode: int) -> dict[str, np.ndarray]:
        return {key: self.cache.rows(key).take(self._frames(episode)) for key in self.columns}

    def read_frames(self, episode: int, camera: str) -> np.ndarray:
        return self.cache.rows(camera).take(self._frames(episode))

    def _frames(self, episode: int) -> np.ndarray:
        start = int(self.cache.episodes.start[episode])
        return np.arange(start, start + int(self.cache.episodes.length[episode]))


def resolve_path(path: str | Path) -> Path:
    """A folder or file that exists, or the folder of that name under EMBODIED_DATA."""
    found = Path(path).expanduser()
    if found.exists():
        return found
    head, *rest = found.parts or ("",)
    root = None if found.is_absolute() or ".." in found.parts else data_folder(head)
    if root is not None and root.joinpath(*rest).exists():
        return root.joinpath(*rest)
    raise ValueError(f"no data set at {str(path)!r}, nor of that name under EMBODIED_DATA: check the path")


def detect_format(path: Path) -> Format:
    """The format of a data set. ValueError when its folder is none that is known."""
    from embodied.data.importers.droid import is_droid
    from embodied.data.importers.droid_lerobot import is_droid_lerobot
    from embodied.data.importers.libero_hdf5 import is_libero_hdf5
    from embodied.data.lerobot_meta import read_meta
    from embodied.deploy.bag_source import find_bags

    if (path / "meta" / "info.json").is_file():
        return Format.droid_lerobot if is_droid_lerobot(read_meta(path)) else Format.lerobot
    if path.is_dir() and is_cache(path):
        return Format.cache
    if is_droid(path):
        return Format.droid
    parts = sorted(child.name for child in path.iterdir() if is_droid(child)) if path.is_dir() else []
    if parts:
        raise ValueError(f"{path} holds several DROID packages: name one of {', '.join(parts)}")
    if is_libero_hdf5(path):
        return Format.libero_hdf5
    if find_bags(path):
        return Format.bag
    raise ValueError(
        f"{path} should be a LeRobot data set, a frame cache, a DROID package, LIBERO's *.hdf5 files or a ROS 2 bag"
    )


def open_source(path: str | Path, options: SourceOptions | None = None, lenient: bool = False) -> Source:
    """The data set at `path` (or of that name under EMBODIED_DATA) in the item format of `embodied.schema`.

    lenient: also one whose tables and metadata disagree, for repair.
    """
    options = options or SourceOptions()
    found = resolve_path(path)
    kind = detect_format(found) if options.format is Format.auto else options.format
    return _open(found, kind, options, lenient)


def _open(path: Path, kind: Format, options: SourceOptions, lenient: bool) -> Source:
    from embodied.data.importers.droid import DroidSource
    from embodied.data.importers.droid_lerobot import DroidLeRobotSource
    from embodied.data.importers.lerobot_folder import LeRobotFolderSource
    from embodied.data.importers.libero_hdf5 import LiberoHdf5Source

    if kind is Format.lerobot:
        return LeRobotFolderSource(path, options.rename, options.mirrored, options.angles, lenient)
    if kind is Format.droid_lerobot:
        return DroidLeRobotSource(path, options.tool_offset, lenient)
    if kind is Format.droid:
        return DroidSource(path, options.tool_offset)
    if kind is Format.bag:
        from embodied.deploy.bag_source import BagSource

        return BagSource(path, options.contract, options.task)
    return LiberoHdf5Source(path) if kind is Format.libero_hdf5 else CacheSource(FrameCache(path))
