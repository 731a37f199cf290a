"""What a LeRobotDataset v3 folder looks like: paths, meta/info.json, and the tables of frames, episodes and tasks.

Written from LeRobot 0.6.1's reader (lerobot/datasets: dataset_reader.py, dataset_metadata.py, io_utils.py), so that
data sets are written without importing it. Arrays are (T, D): T frames of one episode.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embodied.data.video_writer import VideoSettings
from embodied.schema import (
    ACTION,
    ACTION_NAMES,
    CONTROL_HZ,
    EXECUTED_ACTION,
    IMAGE_AGE,
    IMAGE_KEYS,
    STATE,
    STATE_NAMES,
)

if TYPE_CHECKING:
    import pyarrow as pa

CODEBASE_VERSION = "v3.0"
CHUNK_FILES = 1000  # files in a chunk folder
TABLE_EPISODES = 100  # episodes in one parquet file of frames or episodes; a video file holds one episode
INFO = "meta/info.json"
STATS = "meta/stats.json"
TASKS = "meta/tasks.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
INDEX_COLUMNS = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64"}
INDEX_COLUMNS["task_index"] = "int64"
METADATA_TYPES = {"str": str, "int": int, "float": float, "bool": bool}
COLLECTION_METADATA = {
    "record": "str",
    "suite": "str",
    "task_index": "int",
    "seed": "int",
    "success": "bool",
    "noise": "float",
}


@dataclass
class Layout:
    """What every episode of a data set has. `images`: key -> (height, width); `columns`: key -> names of the entries.

    Columns are float32. `metadata`: further columns of the table of episodes, name -> str, int, float or bool.
    """

    images: dict[str, tuple[int, int]]
    columns: dict[str, tuple[str, ...]]
    metadata: dict[str, str] = field(default_factory=dict)
    fps: int = CONTROL_HZ
    robot_type: str = "panda"
    video: VideoSettings = field(default_factory=VideoSettings)
    image_every: int = 1

    def to_json(self) -> dict[str, Any]:
        plain = asdict(self)
        if self.image_every == 1:
            del plain["image_every"]  # as data sets were described before there was a choice
        plain["video"]["codec"] = self.video.codec.name
        return json.loads(json.dumps(plain))

    def features(self) -> dict[str, dict[str, Any]]:
        """The `features` of meta/info.json."""
        images = {
            key: {
                "dtype": "video",
                "shape": [height, width, 3],
                "names": ["height", "width", "channel"],
                "info": self.video.info(height, width, self.fps),
            }
            for key, (height, width) in self.images.items()
        }
        columns = {
            key: {"dtype": "float32", "shape": [len(names)], "names": list(names)}
            for key, names in self.columns.items()
        }
        index = {key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in INDEX_COLUMNS.items()}
        return {**images, **columns, **index}

    def info(self, episodes: int, frames: int, tasks: int) -> dict[str, Any]:
        """meta/info.json: the file that says how many episodes the data set has."""
        return {
            "codebase_version": CODEBASE_VERSION,
            "fps": self.fps,
            "features": self.features(),
            "total_episodes": episodes,
            "total_frames": frames,
            "total_tasks": tasks,
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH,
            "robot_type": self.robot_type,
            "splits": {"train": f"0:{episodes}"},
        }


def simulation_layout(size: int, video: VideoSettings | None = None, image_every: int = 1) -> Layout:
    """The layout of collected demonstrations: two cameras of size x size, state, action and executed action.

    image_every: pictures are new every so many-th row; above 1 the layout has the column that gives their age.
    """
    if image_every < 1:
        raise ValueError(f"image_every should be 1 or more, got {image_every}")
    age = {IMAGE_AGE: (IMAGE_AGE,)} if image_every > 1 else {}
    return Layout(
        images=dict.fromkeys(IMAGE_KEYS, (size, size)),
        columns={STATE: STATE_NAMES, ACTION: ACTION_NAMES, EXECUTED_ACTION: ACTION_NAMES, **age},
        metadata=dict(COLLECTION_METADATA),
        image_every=image_every,
        video=video or VideoSettings(),
    )


def table_file(episode: int) -> tuple[int, int]:
    """Chunk and file of the parquet files that hold an episode's rows."""
    return divmod(episode // TABLE_EPISODES, CHUNK_FILES)


def video_file(episode: int) -> tuple[int, int]:
    """Chunk and file of an episode's videos."""
    return divmod(episode, CHUNK_FILES)


def table_path(root: Path, template: str, episode: int) -> Path:
    chunk, file = table_file(episode)
    return root / template.format(chunk_index=chunk, file_index=file)


def video_path(root: Path, key: str, episode: int) -> Path:
    chunk, file = video_file(episode)
    return root / VIDEO_PATH.format(video_key=key, chunk_index=chunk, file_index=file)


def index_columns(frames: int, fps: int, episode: int, start: int, task: int) -> dict[str, np.ndarray]:
    """LeRobot's own columns of an episode whose first frame has index `start` in the data set."""
    steps = np.arange(frames)
    return {
        "timestamp": (steps / fps).astype(np.float32),
        "frame_index": steps,
        "episode_index": np.full(frames, episode),
        "index": steps + start,
        "task_index": np.full(frames, task),
    }


def frames_table(layout: Layout, columns: Mapping[str, np.ndarray]) -> pa.Table:
    """The rows of one episode: vectors as fixed-size lists of float32, single entries as scalars."""
    import pyarrow as pa

    arrays: dict[str, Any] = {}
    for key, names in layout.columns.items():
        flat = pa.array(np.ascontiguousarray(columns[key], np.float32).ravel())
        arrays[key] = flat if len(names) == 1 else pa.FixedSizeListArray.from_arrays(flat, len(names))
    for key, dtype in INDEX_COLUMNS.items():
        arrays[key] = pa.array(columns[key], type=getattr(pa, dtype)())
    return pa.table(arrays).replace_schema_metadata({"huggingface": json.dumps(_hub_features(layout))})


def _hub_features(layout: Layout) -> dict[str, Any]:
    """The column types as the `datasets` library writes them, for viewers that do not know LeRobot."""
    number = {"dtype": "float32", "_type": "Value"}
    vectors = {
        key: number if len(names) == 1 else {"feature": number, "length": len(names), "_type": "List"}
        for key, names in layout.columns.items()
    }
    index = {key: {"dtype": dtype, "_type": "Value"} for key, dtype in INDEX_COLUMNS.items()}
    return {"info": {"features": {**vectors, **index}}}


def episode_row(
    layout: Layout, episode: int, frames: int, start: int, task: str, metadata: Mapping[str, Any]
) -> dict[str, Any]:
    """One row of meta/episodes, without statistics. A video file holds one episode, so it starts at 0 s."""
    chunk, file = table_file(episode)
    row: dict[str, Any] = {
        "episode_index": episode,
        "tasks": [task],
        "length": frames,
        "data/chunk_index": chunk,
        "data/file_index": file,
        "dataset_from_index": start,
        "dataset_to_index": start + frames,
    }
    for key in layout.images:
        video_chunk, video_index = video_file(episode)
        row[f"videos/{key}/chunk_index"] = video_chunk
        row[f"videos/{key}/file_index"] = video_index
        row[f"videos/{key}/from_timestamp"] = 0.0
        row[f"videos/{key}/to_timestamp"] = frames / layout.fps
    row.update({name: METADATA_TYPES[kind](metadata[name]) for name, kind in layout.metadata.items()})
    row["meta/episodes/chunk_index"] = chunk
    row["meta/episodes/file_index"] = file
    return row


def tasks_table(tasks: Sequence[str]) -> pa.Table:
    """meta/tasks.parquet: task_index, indexed by the instruction (as pandas stores an index)."""
    import pandas as pd
    import pyarrow as pa

    frame = pd.DataFrame({"task_index": range(len(tasks))}, index=pd.Index(list(tasks), name="task"))
    return pa.Table.from_pandas(frame)
