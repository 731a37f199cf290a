"""LIBERO's original demonstrations: SUITE/TASK_demo.hdf5, one file a task, data/demo_i an episode.

Images are stored bottom-up and are turned upright; the orientation is robosuite's axis-angle and its branch is made
continuous; actions are already the schema's. The instruction stands in the attribute problem_info of "data".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from embodied.data.rotations import axis_angle_to_matrix, continuous_axis_angle
from embodied.data.source import ColumnSpec, EpisodeInfo
from embodied.schema import ACTION, ACTION_DIM, ACTION_NAMES, CONTROL_HZ, IMAGE, STATE, STATE_DIM, STATE_NAMES
from embodied.schema import WRIST_IMAGE as WRIST

CAMERAS = {IMAGE: "obs/agentview_rgb", WRIST: "obs/eye_in_hand_rgb"}
STATE_PARTS = {"obs/ee_pos": 3, "obs/ee_ori": 3, "obs/gripper_states": 2}
JOINTS = "observation.joint_position"


class LiberoHdf5Source:
    """All *.hdf5 files of a folder (searched in depth), or one file. Episodes in the order of task name and number."""

    fps = float(CONTROL_HZ)

    def __init__(self, root: str | Path) -> None:
        path = Path(root)
        self.root = path
        self._files = [path] if path.is_file() else sorted(path.rglob("*.hdf5"))
        if not self._files:
            raise ValueError(f"{path} should be or hold LIBERO's *.hdf5 files, there is none: check the path")
        self.name = path.resolve().stem
        self._places: list[tuple[Path, str]] = []
        self.episodes: list[EpisodeInfo] = []
        self.cameras: dict[str, tuple[int, int]] = {}
        for number, file in enumerate(self._files):
            self._scan(file, number)
        self.columns = {
            STATE: ColumnSpec("float32", (STATE_DIM,), STATE_NAMES),
            ACTION: ColumnSpec("float32", (ACTION_DIM,), ACTION_NAMES),
            JOINTS: ColumnSpec("float32", (7,)),
        }

    def read_columns(self, episode: int) -> dict[str, np.ndarray]:
        parts = {key: self._read(episode, key) for key in (*STATE_PARTS, "obs/joint_states", "actions")}
        orientation = continuous_axis_angle(axis_angle_to_matrix(parts["obs/ee_ori"]))
        state = np.column_stack([parts["obs/ee_pos"], orientation, parts["obs/gripper_states"]])
        return {
            STATE: state.astype(np.float32),
            ACTION: parts["actions"].astype(np.float32),
            JOINTS: parts["obs/joint_states"].astype(np.float32),
        }

    def read_frames(self, episode: int, camera: str) -> np.ndarray:
        return np.ascontiguousarray(self._read(episode, CAMERAS[camera])[:, ::-1])

    def _read(self, episode: int, key: str) -> np.ndarray:
        import h5py

        path, demo = self._places[episode]
        with h5py.File(path, "r") as file:
            return file["data"][demo][key][()]

    def _scan(self, path: Path, number: int) -> None:
        import h5py

        try:
            with h5py.File(path, "r") as file:
                if "data" not in file:
                    raise ValueError(f"{path} should have a group 'data' as LIBERO's demonstrations do")
                data = file["data"]
                task, suite = _instruction(path, data.attrs), _suite(path, data.attrs)
                for demo in sorted(data, key=_demo_number):
                    self._add(path, demo, data[demo], task, suite, number)
        except OSError as error:
            raise ValueError(f"{path} cannot be read as HDF5 ({error}): copy or download it again") from error

    def _add(self, path: Path, demo: str, group: Any, task: str, suite: str, number: int) -> None:
        missing = [key for key in ("actions", *STATE_PARTS, *CAMERAS.values(), "obs/joint_states") if key not in group]
        if missing:
            raise ValueError(f"{path}: data/{demo} lacks {missing[0]}: this is no LIBERO demonstration with images")
        length = len(group["actions"])
        self.cameras = self.cameras or {key: tuple(group[name].shape[1:3]) for key, name in CAMERAS.items()}
        rewards = group["rewards"][()] if "rewards" in group else None
        info = EpisodeInfo(
            index=len(self.episodes),
            length=length,
            task=task,
            suite=suite,
            task_index=number,
            success=None if rewards is None or not len(rewards) else bool(rewards[-1] > 0),
            source=f"{path.name}/{demo}",
        )
        self._places.append((path, demo))
        self.episodes.append(info)


def _demo_number(name: str) -> tuple[int, str]:
    digits = name.rpartition("_")[2]
    return (int(digits), "") if digits.isdigit() else (-1, name)


def _instruction(path: Path, attributes: Any) -> str:
    """problem_info's language_instruction, else the words of the file's name."""
    info = json.loads(attributes["problem_info"]) if "problem_info" in attributes else {}
    words = info.get("language_instruction", "")
    words = "".join(words) if isinstance(words, list) else str(words)
    return words.strip().strip('"').strip() or path.stem.removesuffix("_demo").replace("_", " ")


def _suite(path: Path, attributes: Any) -> str:
    """The folder of the task's bddl file, else the folder the file lies in."""
    bddl = str(attributes.get("bddl_file_name", ""))
    folder = Path(bddl).parent.name
    return folder if folder.startswith("libero") else path.resolve().parent.name


def is_libero_hdf5(path: Path) -> bool:
    return path.suffix in (".hdf5", ".h5") if path.is_file() else any(path.rglob("*.hdf5"))
