from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_datasets import to_v21, write_droid_hub, write_hub_libero, write_libero_hdf5

from embodied.data.importers.convert import import_source
from embodied.data.importers.droid import METRE, RADIAN, DroidSource, droid_columns
from embodied.data.importers.lerobot_folder import Angles, LeRobotFolderSource
from embodied.data.lerobot_reader import LeRobotSource
from embodied.data.open_source import SourceOptions, detect_format, open_source
from embodied.data.rotations import axis_angle_to_matrix, euler_to_matrix
from embodied.data.video_writer import VideoCodec
from embodied.schema import ACTION, IMAGE, STATE, WRIST_IMAGE


def everything(source) -> dict[int, int]:
    return {i: info.length for i, info in enumerate(source.episodes)}


class TestLiberoHdf5:
    def test_item_format(self, tmp_path: Path) -> None:
        path = write_libero_hdf5(tmp_path)
        source = open_source(tmp_path)
        assert detect_format(path).value == "libero_hdf5"
        assert [info.source.partition("/")[2] for info in source.episodes] == ["demo_0", "demo_1"]
        info = source.episodes[1]
        assert (info.task, info.suite, info.success, info.length) == (
            "pick up the black bowl",
            "libero_spatial",
            True,
            5,
        )
        columns = source.read_columns(1)
        assert columns[ACTION][:, 0] == pytest.approx(np.array([0.1, 0.2, 0.3, 0.4, 0.5]))
        assert columns[STATE][2].tolist() == pytest.approx([0.02, 0.02, 0.02, np.pi - 0.01, 0, 0, 0.04, -0.04])
        assert columns[STATE].shape == (5, 8)

    def test_images_are_turned_upright(self, tmp_path: Path) -> None:
        write_libero_hdf5(tmp_path)
        for camera in (IMAGE, WRIST_IMAGE):
            frames = open_source(tmp_path).read_frames(0, camera)
            assert frames[:, 0].min() == 255
            assert frames[:, 1:].max() == 0

    def test_orientation_does_not_flip(self, tmp_path: Path) -> None:
        """Stored as +-(pi - 0.01): two rotations 0.02 rad apart."""
        write_libero_hdf5(tmp_path)
        orientation = open_source(tmp_path).read_columns(0)[STATE][:, 3]
        assert orientation == pytest.approx(np.pi + 0.01 * np.array([-1, 1, -1, 1, -1]), abs=1e-6)

    def test_a_file_without_images_is_named(self, tmp_path: Path) -> None:
        import h5py

        path = write_libero_hdf5(tmp_path)
        with h5py.File(path, "a") as file:
            del file["data/demo_1/obs/agentview_rgb"]
        with pytest.raises(ValueError, match="data/demo_1 lacks obs/agentview_rgb"):
            open_source(tmp_path)

    def test_torn_file_is_named(self, tmp_path: Path) -> None:
        path = write_libero_hdf5(tmp_path)
        path.write_bytes(path.read_bytes()[:500])
        with pytest.raises(ValueError, match="cannot be read as HDF5"):
            open_source(tmp_path)


class TestDroidUnits:
    def test_hand_computed(self) -> None:
        cartesian = np.array(
            [[0.5, 0.0, 0.3, np.pi, 0, 0], [0.55, 0.0, 0.3, np.pi, 0, 0.1], [0.55, 0, 0.3, np.pi, 0, 0.1]]
        )
        columns = droid_columns(cartesian, np.array([0.0, 0.5, 1.0]), None, 0.0)
        assert columns[STATE][:, :3] == pytest.approx(cartesian[:, :3])
        assert columns[STATE][0] == pytest.approx([0.5, 0, 0.3, np.pi, 0, 0, 0.0425, -0.0425])
        assert columns[STATE][2, 6:] == pytest.approx([0, 0])
        assert columns[ACTION][0] == pytest.approx([1, 0, 0, 0, 0, 0.2, 0], abs=1e-6)
        assert columns[ACTION][1] == pytest.approx([0, 0, 0, 0, 0, 0, 1], abs=1e-6)
        assert columns[ACTION][2] == pytest.approx([0, 0, 0, 0, 0, 0, 1], abs=1e-6)

    def test_actions_lead_from_state_to_state(self) -> None:
        rng = np.random.default_rng(0)
        cartesian = np.c_[rng.normal(size=(20, 3)), rng.uniform(-3, 3, (20, 3))]
        columns = droid_columns(cartesian, np.zeros(20), np.ones(20), 0.0)
        state, action = columns[STATE].astype(float), columns[ACTION].astype(float)
        assert state[:-1, :3] + METRE * action[:-1, :3] == pytest.approx(state[1:, :3], abs=1e-6)
        turned = axis_angle_to_matrix(RADIAN * action[:-1, 3:6]) @ axis_angle_to_matrix(state[:-1, 3:6])
        assert np.allclose(turned, axis_angle_to_matrix(state[1:, 3:6]), atol=1e-5)
        assert (action[:, 6] == 1).all()

    def test_tool_offset_points_down(self) -> None:
        cartesian = np.array([[0.5, 0.1, 0.3, np.pi, 0, 0]])
        assert droid_columns(cartesian, np.zeros(1), None, 0.16)[STATE][0, :3] == pytest.approx([0.5, 0.1, 0.14])

    def test_hub_form(self, tmp_path: Path) -> None:
        root = write_droid_hub(tmp_path / "hub")
        assert detect_format(root).value == "droid_lerobot"
        source = open_source(root)
        assert (source.episodes[0].task, source.episodes[0].success, source.fps) == ("fold the towel", True, 15)
        assert list(source.cameras) == [IMAGE]
        columns = source.read_columns(0)
        assert np.abs(columns[STATE][:, 3] - np.pi).max() < 0.11
        assert columns[ACTION][:-1, 0] == pytest.approx(2, abs=1e-5)
        assert columns["raw.observation.state.gripper_position"].shape == (6,)
        out = LeRobotSource(import_source(source, tmp_path / "out", everything(source)))
        assert (out.episodes[0].task, out.episodes[0].success) == ("fold the towel", True)


@pytest.mark.data
class TestRealDroid:
    PANDA = ((0, 0.333, 0), (0, 0, -np.pi / 2), (0, 0.316, np.pi / 2), (0.0825, 0, np.pi / 2))
    PANDA += ((-0.0825, 0.384, -np.pi / 2), (0, 0, np.pi / 2), (0.088, 0, np.pi / 2))

    def flange(self, joints: np.ndarray) -> np.ndarray:
        """Forward kinematics of a Franka Panda by its Denavit-Hartenberg table (a, d, alpha): (7,) -> (4, 4)."""
        pose = np.eye(4)
        for (a, d, alpha), theta in zip((*self.PANDA, (0, 0.107, 0)), (*joints, 0), strict=True):
            ca, sa, c, s = np.cos(alpha), np.sin(alpha), np.cos(theta), np.sin(theta)
            pose = pose @ np.array(
                [[c, -s, 0, a], [s * ca, c * ca, -sa, -d * sa], [s * sa, c * sa, ca, d * ca], [0, 0, 0, 1]]
            )
        return pose

    def test_pose_convention_against_the_joints(self, outside_data: Path) -> None:
        """States are the flange's pose in extrinsic xyz: equal to forward kinematics of the recorded joint angles."""
        root = outside_data / "droid_sample/droid_new_setup"
        source = DroidSource(root)
        for episode in range(len(source.episodes)):
            joints = source.read_columns(episode)["raw.joints"][:, :7].astype(float)
            poses = np.array([self.flange(q) for q in joints])
            state = source.read_columns(episode)[STATE].astype(float)
            assert np.abs(poses[:, :3, 3] - state[:, :3]).max() < 1e-4
            assert np.abs(poses[:, :3, :3] - axis_angle_to_matrix(state[:, 3:6])).max() < 1e-4

    def test_every_episode(self, outside_data: Path) -> None:
        source = open_source("droid_sample/droid_subset")
        assert len(source.episodes) == 11
        assert sum(not info.task for info in source.episodes) == 5
        assert sum(info.success is False for info in source.episodes) == 7
        assert {info.split for info in source.episodes} == {"train", "val"}
        for episode, info in enumerate(source.episodes):
            columns = source.read_columns(episode)
            raw = json.loads((source.root / "annotation" / f"{info.source.partition('/')[2]}.json").read_text())
            states = np.array(raw["states"])
            assert np.array_equal(columns["raw.states"], states.astype(np.float32))
            jumps = np.abs(np.diff(states[:, 3:6], axis=0)).max()
            smooth = np.abs(np.diff(columns[STATE][:, 3:6], axis=0)).max()
            assert smooth < 0.5, (episode, jumps)
            assert np.allclose(axis_angle_to_matrix(columns[STATE][:, 3:6]), euler_to_matrix(states[:, 3:6]), atol=1e-5)
            assert np.abs(columns[ACTION][:, 6]).max() <= 1

    def test_a_video_longer_than_its_states(self, outside_data: Path) -> None:
        source = open_source("droid_sample/droid_new_setup")
        episode = next(i for i, info in enumerate(source.episodes) if info.source.endswith("0006"))
        assert source.video_facts(episode, IMAGE) == (42, 4.0)
        assert source.read_frames(episode, WRIST_IMAGE).shape == (41, 192, 320, 3)
        assert source.fps == 4

    def test_imported(self, outside_data: Path, tmp_path: Path) -> None:
        source = open_source("droid_sample/droid_subset")
        keep = {6: 39, 7: 33}
        out = LeRobotSource(import_source(source, tmp_path / "out", keep))
        assert [info.source for info in out.episodes] == [source.episodes[i].source for i in keep]
        assert [info.success for info in out.episodes] == [False, False]
        assert [info.task for info in out.episodes] == [source.episodes[i].task for i in keep]
        for new, old in enumerate(keep):
            for camera in source.cameras:
                assert np.array_equal(out.read_frames(new, camera), source.read_frames(old, camera)), (
                    "copied, not encoded"
                )
            ours, theirs = out.read_columns(new), source.read_columns(old)
            assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)
        self.check_with_lerobot(tmp_path / "out", out)

    def check_with_lerobot(self, root: Path, ours: LeRobotSource) -> None:
        """LeRobot reads the imported set, empty instruction and all."""
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        theirs = LeRobotDataset("local/droid", root=root, video_backend="pyav", return_uint8=True)
        assert len(theirs) == 39 + 33
        item = theirs[39 + 5]
        assert item["task"] == ours.episodes[1].task
        assert np.array_equal(item[WRIST_IMAGE].permute(1, 2, 0).numpy(), ours.read_frames(1, WRIST_IMAGE)[5])
        assert np.array_equal(item[STATE].numpy(), ours.read_columns(1)[STATE][5])
        assert theirs[0]["task"] == ""

    def test_several_packages_in_one_folder(self, outside_data: Path) -> None:
        with pytest.raises(ValueError, match="name one of droid_new_setup, droid_subset"):
            open_source("droid_sample")


class TestLeRobotFolder:
    def test_v21_to_v3_and_back_equal(self, v3: Path, tmp_path: Path) -> None:
        source = open_source(to_v21(v3, tmp_path / "old"))
        import_source(source, tmp_path / "new", everything(source))
        out = LeRobotSource(tmp_path / "new")
        for episode in range(3):
            assert np.array_equal(out.read_frames(episode, IMAGE), source.read_frames(episode, IMAGE))
            assert np.array_equal(out.read_columns(episode)[STATE], source.read_columns(episode)[STATE])

    def test_encoded_again_when_asked(self, v3: Path, tmp_path: Path) -> None:
        source = open_source(v3)
        import_source(source, tmp_path / "new", {1: 9}, VideoCodec.av1)
        info = json.loads((tmp_path / "new/meta/info.json").read_text())
        assert info["features"][IMAGE]["info"]["video.codec"] == "av1"
        difference = LeRobotSource(tmp_path / "new").read_frames(0, IMAGE).astype(int) - source.read_frames(1, IMAGE)
        assert 0 < np.abs(difference).mean() < 4

    def test_resumed(self, v3: Path, tmp_path: Path) -> None:
        source = open_source(v3)
        import_source(source, tmp_path / "new", {0: 12})
        out = import_source(source, tmp_path / "new", {0: 12, 2: 11})
        assert [info.length for info in LeRobotSource(out).episodes] == [12, 11]
        with pytest.raises(ValueError, match="another source or selection"):
            import_source(source, tmp_path / "new", {1: 9, 2: 11})

    def test_images_inside_the_table(self, tmp_path: Path) -> None:
        """LIBERO as it lies on the hub: v2.0, PNG images in the rows, mirrored left to right, short names."""
        source = open_source(write_hub_libero(tmp_path / "hub"), SourceOptions(mirrored=True))
        assert list(source.cameras) == [IMAGE, WRIST_IMAGE]
        assert [info.task for info in source.episodes] == ["stack the bowls"]
        frames = source.read_frames(0, IMAGE)
        assert frames.shape == (4, 64, 64, 3)
        assert (frames[:, 0, 0] == 255).all()
        assert frames[:, 1:, 1:].max() == 0
        columns = source.read_columns(0)
        assert columns[STATE].shape == (4, 8)
        assert columns[ACTION][:, 0].tolist() == [0, 1, 2, 3]
        out = open_source(import_source(source, tmp_path / "out", {0: 4}))
        assert out.read_frames(0, IMAGE)[:, 0, 0].min() > 100
        assert out.read_frames(0, IMAGE)[:, 40:, 40:].max() < 40

    def test_names_and_angles(self, v3: Path) -> None:
        source = LeRobotFolderSource(v3, {STATE: "observation.pose", IMAGE: WRIST_IMAGE})
        assert list(source.cameras) == [WRIST_IMAGE]
        assert source.read_columns(0)["observation.pose"].shape == (12, 8)
        with pytest.raises(ValueError, match=r"there is no 'obs'"):
            LeRobotFolderSource(v3, {"obs": STATE})
        with pytest.raises(ValueError, match=f"two keys would become '{ACTION}'"):
            LeRobotFolderSource(v3, {STATE: ACTION})
        turned = open_source(v3, SourceOptions(angles=Angles.euler_xyz)).read_columns(0)[STATE]
        plain = open_source(v3).read_columns(0)[STATE]
        assert np.allclose(axis_angle_to_matrix(turned[:, 3:6]), euler_to_matrix(plain[:, 3:6]), atol=1e-5)
