"""Bags become data through the node's own decoding and alignment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from loop_parts import contract

pytest.importorskip("rosbags", reason="the deploy extra is not installed")
from embodied.deploy import messages
from embodied.deploy.bag_import import bag_episodes
from embodied.deploy.bag_source import BagSource
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


CONTRACT = """
name: arm
rate_hz: 10
streams:
  - {feature: observation.images.image, topic: /camera, type: sensor_msgs/msg/Image, size: 64}
  - {feature: observation.state, topic: /joints, type: sensor_msgs/msg/JointState, names: [b, a], max_age_s: 0.35}
action: {topic: /command, type: std_msgs/msg/Float64MultiArray, names: [a, b], mode: delta}
"""


def test_data_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`embodied data import` of a folder of bags: episodes, values, pictures, task; and what is missing is said."""
    pytest.importorskip("av", reason="PyAV is not installed")
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from embodied.cli import main
    from embodied.data.open_source import open_source

    for name in ("one", "two"):
        write(tmp_path / "bags" / name, 2.0)
    arguments = ["data", "import", str(tmp_path / "bags"), f"out={tmp_path / 'data'}"]
    assert main(arguments) == 2
    assert "add source.contract=FILE" in capsys.readouterr().err
    (tmp_path / "arm.yaml").write_text(CONTRACT)
    arguments += [f"source.contract={tmp_path / 'arm.yaml'}", "source.task=touch it"]
    assert main(arguments) == 0, capsys.readouterr().err
    source = open_source(tmp_path / "data")
    assert [(info.length, info.task, info.source) for info in source.episodes] == [
        (20, "touch it", "one/0"), (20, "touch it", "two/0"),
    ]  # fmt: skip
    assert source.fps == 10
    columns = source.read_columns(1)
    assert columns[STATE][1].tolist() == [-5.0, 5.0]
    np.testing.assert_allclose(columns[ACTION][3], [0.15, 0.5], rtol=1e-6)
    frames = source.read_frames(1, IMAGE)
    assert frames.shape == (20, 64, 64, 3)
    assert abs(int(frames[10].mean()) - 50) <= 2, "grey 50, up to the codec"


def test_a_recording_of_the_node_needs_no_contract(tmp_path: Path) -> None:
    """What the policy saw at a tick is what the data set has at that command."""
    from test_record import record

    record(tmp_path / "bag", "async")
    source = BagSource(tmp_path / "bag")
    assert source.fps == 40.0
    assert sum(info.length for info in source.episodes) > 10
    columns = source.read_columns(0)
    assert columns[STATE].shape == (source.episodes[0].length, 2)
    assert columns[ACTION].shape == (source.episodes[0].length, 2)


def test_bags_that_cannot_be_used_are_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is none"):
        BagSource(tmp_path)
    BagWriter(tmp_path / "empty").close()
    (tmp_path / "arm.yaml").write_text(CONTRACT)
    with pytest.raises(ValueError, match="holds none"):
        BagSource(tmp_path / "empty", str(tmp_path / "arm.yaml"))
