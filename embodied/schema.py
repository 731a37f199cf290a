"""The one table of the item format: key, dtype, shape, unit, frame.

The same keys name an observation of a simulator, a column of a data set, an input of a policy and a stream of a robot.
Images are uint8, height x width x RGB, upright (row 0 is the top) and not mirrored, in simulators and on disk.
"""

from __future__ import annotations

from dataclasses import dataclass

IMAGE = "observation.images.image"
WRIST_IMAGE = "observation.images.image2"
IMAGE_KEYS = (IMAGE, WRIST_IMAGE)
STATE = "observation.state"
ACTION = "action"
EXECUTED_ACTION = "executed_action"  # must not *start* with "action": LeRobot would make it a policy output
IMAGE_AGE = "image_age"
TASK = "task"

STATE_NAMES = ("x", "y", "z", "rx", "ry", "rz", "gripper_left", "gripper_right")
ACTION_NAMES = ("dx", "dy", "dz", "drx", "dry", "drz", "gripper")
STATE_DIM = len(STATE_NAMES)
ACTION_DIM = len(ACTION_NAMES)
CONTROL_HZ = 20


@dataclass(frozen=True)
class Feature:
    """One entry of the item format. `shape` uses -1 for a size that a configuration chooses."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] | None
    unit: str
    frame: str
    note: str


FEATURES: dict[str, Feature] = {
    f.key: f
    for f in (
        Feature(IMAGE, "uint8", (-1, -1, 3), None, "sRGB", "external camera, upright", "LIBERO: agentview"),
        Feature(WRIST_IMAGE, "uint8", (-1, -1, 3), None, "sRGB", "wrist camera, upright", "robot0_eye_in_hand"),
        Feature(
            STATE,
            "float32",
            (STATE_DIM,),
            STATE_NAMES,
            "m, rad (axis-angle), m",
            "simulator world",
            "end-effector position, orientation as robosuite's quat2axisangle gives it, finger joint positions",
        ),
        Feature(
            ACTION,
            "float32",
            (ACTION_DIM,),
            ACTION_NAMES,
            "1 = 0.05 m, 1 = 0.5 rad, gripper -1 open .. +1 close",
            "world axes, at the end effector",
            "OSC delta pose in [-1, 1]; the label: what the demonstrator intended",
        ),
        Feature(
            EXECUTED_ACTION,
            "float32",
            (ACTION_DIM,),
            ACTION_NAMES,
            "as action",
            "as action",
            "what the simulator or robot was given, execution noise included",
        ),
        Feature(
            IMAGE_AGE,
            "float32",
            (1,),
            (IMAGE_AGE,),
            "control steps",
            "",
            "since this row's images were taken; only in data sets that are not rendered at every step",
        ),
        Feature(TASK, "str", (), None, "", "", "the instruction in natural language"),
    )
}
