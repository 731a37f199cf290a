"""Tiny data sets in every format, with values a test can compute."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from embodied.data.lerobot_layout import Layout
from embodied.data.lerobot_writer import EpisodeWriter, encode_episode
from embodied.data.video_writer import VideoCodec, VideoSettings
from embodied.schema import ACTION, ACTION_NAMES, IMAGE, STATE, STATE_NAMES

SIZE = 64
FPS = 10


def pictures(length: int, seed: int) -> np.ndarray:
    """Frames (length, 64, 64, 3) whose brightness tells frame and episode: 40 * seed + 3 * frame, plus a ramp."""
    ramp = np.linspace(0, 60, SIZE)[None, :, None, None]
    level = (40 * seed + 3 * np.arange(length))[:, None, None, None]
    return np.broadcast_to(ramp + level, (length, SIZE, SIZE, 3)).clip(0, 255).astype(np.uint8)


def write_v3(root: Path, lengths: list[int], columns: dict[str, tuple[str, ...]] | None = None) -> Path:
    """A LeRobot v3 data set; state (frame + 100 * episode, ...), action moving; task "task N"."""
    names = columns or {STATE: STATE_NAMES, ACTION: ACTION_NAMES}
    layout = Layout({IMAGE: (SIZE, SIZE)}, names, {}, FPS, video=VideoSettings(VideoCodec.h264))
    with EpisodeWriter.open(root, layout) as writer:
        for episode, length in enumerate(lengths):
            base = (np.arange(length) + 100 * episode)[:, None]
            values = {key: (base + np.arange(len(n))).astype(np.float32) for key, n in names.items()}
            folder = writer.staging / str(episode)
            images = {IMAGE: pictures(length, episode)}
            writer.append(encode_episode(folder, layout, values, images, f"task {episode}", {}))
        writer.finalize()
    return root


def to_v21(source: Path, root: Path) -> Path:
    """The same episodes as a LeRobot v2.1 folder: a parquet file and a video each, JSON-lines metadata."""
    import shutil

    import pyarrow.parquet as pq

    info = json.loads((source / "meta/info.json").read_text())
    table = pq.read_table(source / "data/chunk-000/file-000.parquet")
    rows = []
    for episode in range(info["total_episodes"]):
        part = table.filter(np.asarray(table["episode_index"]) == episode)
        path = root / f"data/chunk-000/episode_{episode:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(part, path)
        video = root / f"videos/chunk-000/{IMAGE}/episode_{episode:06d}.mp4"
        video.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / f"videos/{IMAGE}/chunk-000/file-{episode:03d}.mp4", video)
        rows.append({"episode_index": episode, "tasks": [f"task {episode}"], "length": len(part)})
    info |= {
        "codebase_version": "v2.1",
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    (root / "meta").mkdir()
    (root / "meta/info.json").write_text(json.dumps(info))
    (root / "meta/episodes.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    tasks = [{"task_index": i, "task": f"task {i}"} for i in range(len(rows))]
    (root / "meta/tasks.jsonl").write_text("\n".join(json.dumps(row) for row in tasks))
    return root


def write_libero_hdf5(folder: Path, demos: int = 2, length: int = 5) -> Path:
    """A file as LIBERO's create_dataset.py writes it: bottom-up images, orientations that flip sign."""
    import h5py

    path = folder / "libero_spatial" / "pick_up_the_bowl_demo.hdf5"
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": "pick up the black bowl"})
        data.attrs["bddl_file_name"] = "libero/libero/bddl_files/libero_spatial/pick_up_the_bowl.bddl"
        for demo in range(demos):
            group = data.create_group(f"demo_{demo}")
            t = np.arange(length)
            flips = np.where(t % 2 == 0, 1, -1)[:, None] * np.array([[np.pi - 0.01, 0.0, 0.0]])
            images = np.zeros((length, SIZE, SIZE, 3), np.uint8)
            images[:, -1] = 255  # the last stored row is the top one
            arrays = {
                "actions": np.stack([t + demo] * 7, 1).astype(np.float64) / 10,
                "states": np.zeros((length, 92)),
                "rewards": np.r_[np.zeros(length - 1), 1].astype(np.uint8),
                "obs/agentview_rgb": images,
                "obs/eye_in_hand_rgb": images,
                "obs/ee_pos": np.stack([t, t, t], 1) / 100,
                "obs/ee_ori": flips,
                "obs/gripper_states": np.stack([np.full(length, 0.04), np.full(length, -0.04)], 1),
                "obs/joint_states": np.zeros((length, 7)),
            }
            for key, values in arrays.items():
                group.create_dataset(key, data=values)
    return path


def write_droid_hub(root: Path, length: int = 6) -> Path:
    """DROID in LeRobot form: its keys, instruction and success in the frame rows, no task."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pose = ("x", "y", "z", "roll", "pitch", "yaw")
    names = {"observation.state.cartesian_position": pose, "observation.state.gripper_position": ("g",)}
    names["action.gripper_position"] = ("g",)
    camera = "observation.images.exterior_1_left"
    layout = Layout({camera: (SIZE, SIZE)}, names, {"has_task": "bool"}, 15, video=VideoSettings(VideoCodec.h264))
    t = np.arange(length, dtype=np.float32)
    roll = np.where(t % 2 == 0, np.pi - 0.1, -np.pi + 0.1)
    values = {
        "observation.state.cartesian_position": np.stack([0.1 * t, 0 * t, 0 * t, roll, 0 * t, 0 * t], 1),
        "observation.state.gripper_position": (t / length)[:, None],
        "action.gripper_position": np.ones((length, 1), np.float32),
    }
    values = {key: value.astype(np.float32) for key, value in values.items()}
    with EpisodeWriter.open(root, layout) as writer:
        episode = encode_episode(
            writer.staging / "0", layout, values, {camera: pictures(length, 0)}, "", {"has_task": False}
        )
        writer.append(episode)
        writer.finalize()
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    table = table.append_column("language_instruction", pa.array(["fold the towel"] * length))
    table = table.append_column("is_episode_successful", pa.array([True] * length))
    pq.write_table(table, path)
    info = json.loads((root / "meta/info.json").read_text())
    info["features"] |= {
        "language_instruction": {"dtype": "string", "shape": [1], "names": None},
        "is_episode_successful": {"dtype": "bool", "shape": [1], "names": None},
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


def write_hub_libero(root: Path, length: int = 4) -> Path:
    """A v2.0 folder with PNG images in its table, whose true top left corner is white, stored top right."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    stored = np.zeros((SIZE, SIZE, 3), np.uint8)
    stored[0, :] = stored[:, -1] = 255
    buffer = io.BytesIO()
    Image.fromarray(stored).save(buffer, "PNG")
    images = [{"bytes": buffer.getvalue(), "path": "../../etc/passwd"}] * length
    steps = np.arange(length)
    table = pa.table(
        {
            "image": images,
            "wrist_image": images,
            "state": np.zeros((length, 8), np.float32).tolist(),
            "actions": np.repeat(steps[:, None], 7, 1).astype(np.float32).tolist(),
            "timestamp": (steps / FPS).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.zeros(length, np.int64),
            "index": steps,
            "task_index": np.zeros(length, np.int64),
        }
    )
    path = root / "data/chunk-000/episode_000000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(table, path)
    image = {"dtype": "image", "shape": [SIZE, SIZE, 3], "names": ["height", "width", "channel"]}
    features = {"image": image, "wrist_image": image}
    features |= {"state": {"dtype": "float32", "shape": [8]}, "actions": {"dtype": "float32", "shape": [7]}}
    features |= {"timestamp": {"dtype": "float32", "shape": [1]}, "task_index": {"dtype": "int64", "shape": [1]}}
    info = {"codebase_version": "v2.0", "fps": FPS, "features": features, "total_episodes": 1, "total_frames": length}
    info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    (root / "meta").mkdir()
    (root / "meta/info.json").write_text(json.dumps(info))
    (root / "meta/episodes.jsonl").write_text(
        json.dumps({"episode_index": 0, "tasks": ["stack the bowls"], "length": 4})
    )
    (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "stack the bowls"}))
    return root
