"""At 30 Hz, a part of a robot as a process of its own, to be killed by tests: `peer.py camera|joints DOMAIN`."""

from __future__ import annotations

import sys
import time

import numpy as np

from embodied.deploy import messages
from embodied.deploy.contract import QosProfile
from embodied.deploy.transports.dds import DdsBus
from embodied.schema import STATE_NAMES


def main(kind: str, domain: int) -> None:
    bus = DdsBus(kind, domain)
    types = {"camera": "sensor_msgs/msg/Image", "joints": "sensor_msgs/msg/JointState"}
    publish = bus.advertise(f"/{kind}", types[kind], QosProfile.sensor)
    bus.start()
    image = np.zeros((64, 64, 3), np.uint8)
    while True:
        now = time.time_ns()
        if kind == "camera":
            publish(messages.image_message(image, now))
        else:
            publish(messages.joint_state_message(list(STATE_NAMES), np.zeros(8), now))
        time.sleep(1 / 30)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
