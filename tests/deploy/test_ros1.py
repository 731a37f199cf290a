"""The node on ROS 1: a real rosmaster, and rospy with ROS's own message classes on the system's Python as the robot."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace as Ns

import numpy as np
import pytest
from loop_parts import ARM_CONTRACT

pytest.importorskip("rosbags", reason="the deploy extra is not installed")
from embodied.deploy import messages
from embodied.deploy.transports import ros_types

SYSTEM_PYTHON = "/usr/bin/python3"
PEER = """
import json, threading, time
import rospy
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import Trigger
rospy.init_node("robot")
got, answers = [], {}
rospy.Subscriber("/action", Float64MultiArray, lambda message: got.append(list(message.data)))
publisher = rospy.Publisher("/joint_states", JointState, queue_size=5)
names = ["x", "y", "z", "rx", "ry", "rz", "gripper_left", "gripper_right"]
def drive():
    while not rospy.is_shutdown():
        message = JointState(name=names, position=[0.1] * 8)
        message.header.stamp = rospy.Time.from_sec(time.time())
        publisher.publish(message)
        time.sleep(0.02)
threading.Thread(target=drive, daemon=True).start()
def until(condition):
    end = time.monotonic() + 90
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()
moved = until(lambda: len(got) > 10 and any(got[-1][:6]))
rospy.wait_for_service("/embodied/hold", 60)
held = rospy.ServiceProxy("/embodied/hold", Trigger)()
still = until(lambda: len(got) > 0 and not any(got[-1][:6]))
reset = rospy.ServiceProxy("/embodied/reset", Trigger)
again = until(lambda: reset().success) and until(lambda: any(got[-1][:6]))
print(json.dumps({"moved": moved, "held": held.message, "still": still, "again": again, "size": len(got[-1])}))
"""


def test_bytes_are_ros_1s_own() -> None:
    """std_msgs/String "hi" by hand; a header gets a sequence number; md5 sums as rosmsg shows them."""
    assert ros_types.encode_ros1("std_msgs/msg/String", Ns(data="hi")) == b"\x02\x00\x00\x00hi"
    joints = messages.joint_state_message(["a"], np.array([1.5]), 7_000_000_009)
    data = ros_types.encode_ros1("sensor_msgs/msg/JointState", joints)
    expected = b"\0\0\0\0" + (7).to_bytes(4, "little") + (9).to_bytes(4, "little") + b"\0\0\0\0"
    assert data.startswith(expected + b"\x01\0\0\0\x01\0\0\0a")
    back = ros_types.decode_ros1("sensor_msgs/msg/JointState", data)
    assert (back.name, back.position.tolist(), back.header.stamp.nanosec) == (["a"], [1.5], 9)
    with pytest.raises(ValueError, match="no ROS 1 sensor_msgs/msg/JointState"):
        ros_types.decode_ros1("sensor_msgs/msg/JointState", data[:20])


def test_without_rospy_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from embodied.deploy.transports import ros1

    monkeypatch.setattr(ros1, "PLACES", ())
    monkeypatch.setitem(sys.modules, "rospy", None)
    with pytest.raises(ValueError, match="apt install ros-core"):
        ros1.rospy.__wrapped__()


@pytest.fixture
def master() -> object:
    """A rosmaster on a free port; skips where ROS 1 is not installed."""
    program = shutil.which("rosmaster")
    probe = [SYSTEM_PYTHON, "-c", "import rospy, sensor_msgs.msg, std_srvs.srv"]
    if program is None or subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        pytest.skip("ROS 1 is not installed (apt install ros-core python3-sensor-msgs python3-std-srvs)")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    environment = {**os.environ, "ROS_MASTER_URI": f"http://127.0.0.1:{port}", "ROS_IP": "127.0.0.1"}
    process = subprocess.Popen([program, "--core", "-p", str(port)], env=environment, stdout=subprocess.DEVNULL)
    yield environment
    process.terminate()
    process.wait()


def test_a_node_and_rospy(master: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "arm.yaml").write_text(ARM_CONTRACT)
    environment = {**master, "OMP_NUM_THREADS": "1", "ROS_LOG_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "embodied.cli", "node", "policy=random", f"contract={tmp_path / 'arm.yaml'}"]
    with (tmp_path / "node.log").open("w") as log:
        node = subprocess.Popen(
            [*command, "network.transport=ros1"], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            peer = [SYSTEM_PYTHON, "-c", PEER]
            done = subprocess.run(peer, env=environment, capture_output=True, text=True, check=False, timeout=300)
        finally:
            node.send_signal(signal.SIGTERM)
            node.wait(60)
    said = (tmp_path / "node.log").read_text()
    assert done.returncode == 0, done.stderr + said
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen == {"moved": True, "held": "holding until ~/reset", "still": True, "again": True, "size": 7}, said
    assert node.returncode == 0, said
    assert "/embodied on ROS 1 master" in said
