"""Bags become data through the node's own decoding and alignment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from loop_parts import contract

pytest.importorskip("rosbags", reason="the deploy extra is not installed")
from embodied.deploy import messages
from embodied.deploy.bag_import import bag_episodes, import_bag
from embodied.deploy.contract import Contract
from embodied.deploy.transports.mcap import BagWriter, read_bag
from embodied.schema import ACTION, IMAGE, STATE

START = 1_700_000_000_000_000_000
MS = 1_000_000


def arm() -> Contract:
    base = contract(task="touch it")
    camera = {"feature": IMAGE, "topic": "/camera", "type": "sensor_msgs/msg/Image", "size": 64}
    joints = {"feature": STATE, "topic": "/joints", "type": "sensor_msgs/msg/JointState", "names": ["b", "a"]}
    return contract(streams=[camera, joints], task=base.task)


def write(folder: Path, seconds: float, pauses: tuple[float, ...] = ()) -> None:
    """Joints at 50 Hz (a counts, b is -a), a camera at 10 Hz, commands at 10 Hz 5 ms after the camera, or none."""
    bag = BagWriter(folder)
    for step in range(round(50 * seconds)):
        stamp = START + step * 20 * MS
        values = np.array([float(step), -float(step)])
        bag.write(
            "/joints", "sensor_msgs/msg/JointState", messages.joint_state_message(["a", "b"], values, stamp), stamp
        )
        if step % 5:
            continue
        picture = messages.image_message(np.full((72, 72, 3), step % 250, np.uint8), stamp)
        bag.write("/camera", "sensor_msgs/msg/Image", picture, stamp)
        if not any(pause <= step / 50 < pause + 2 for pause in pauses):
            command = messages.array_message(np.array([step / 100, 0.5]))
            bag.write("/command", "std_msgs/msg/Float64MultiArray", command, stamp + 5 * MS)
    bag.write("/other", "std_msgs/msg/String", messages.text_message("hello"), START)
    bag.close()


def test_rows_are_what_the_node_would_have_seen(tmp_path: Path) -> None:
    write(tmp_path / "bag", 2.0)
    (episode,) = bag_episodes(read_bag(tmp_path / "bag"), arm())
    assert len(episode) == 20
    assert episode.task == "touch it"
    for row in range(20):
        step = 5 * row
        assert episode.columns[STATE][row].tolist() == [-step, step], "in the contract's order"
        np.testing.assert_allclose(episode.columns[ACTION][row], [step / 100, 0.5])
        assert episode.images[IMAGE][row].shape == (64, 64, 3)
        assert (episode.images[IMAGE][row] == step % 250).all()


def test_a_pause_in_the_commands_is_another_episode(tmp_path: Path) -> None:
    write(tmp_path / "bag", 6.0, pauses=(2.0,))
    episodes = bag_episodes(read_bag(tmp_path / "bag"), arm())
    assert [len(episode) for episode in episodes] == [20, 20]


def test_data_set(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    write(tmp_path / "bag", 2.0)
    assert import_bag(tmp_path / "bag", arm(), tmp_path / "data") == [0]
    write(tmp_path / "bag2", 2.0)
    assert import_bag(tmp_path / "bag2", arm(), tmp_path / "data", task="again") == [1]
    table = pq.read_table(tmp_path / "data" / "data" / "chunk-000" / "file-000.parquet")
    assert len(table) == 40
    assert table[STATE][1].as_py() == [-5.0, 5.0]
    empty = BagWriter(tmp_path / "empty")
    empty.close()
    with pytest.raises(ValueError, match="holds none"):
        import_bag(tmp_path / "empty", arm(), tmp_path / "data")
