"""The contract between a robot's bus and a policy: which message becomes which feature, and what may be sent back.

One YAML file serves the live node, the policy server and the import of recorded bags, so that a policy sees on the
robot what it saw in its data.

    name: panda
    rate_hz: 20
    on_trouble: hold
    streams:
      - {feature: observation.images.image, topic: /camera/image_raw, type: sensor_msgs/msg/Image, size: 128,
         qos: sensor, max_age_s: 0.5}
      - {feature: observation.state, topic: /joint_states, type: sensor_msgs/msg/JointState, names: [j1, j2], unit: deg,
         feature_unit: rad, max_age_s: 0.2}
    action: {topic: /command, type: std_msgs/msg/Float64MultiArray, names: [j1, j2], mode: position}
    limits: {low: [-1, -1], high: [1, 1], max_step: [0.1, 0.1]}
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
STREAM_SELECTORS = {
    "sensor_msgs/msg/Image": "",
    "sensor_msgs/msg/CompressedImage": "",
    "sensor_msgs/msg/JointState": "position",
    "std_msgs/msg/Float64MultiArray": "data",
    "std_msgs/msg/Float32MultiArray": "data",
    "geometry_msgs/msg/PoseStamped": "pose",
    "geometry_msgs/msg/TwistStamped": "twist",
    "std_msgs/msg/String": "data",
    "array": "",
}
ACTION_TYPES = (
    "trajectory_msgs/msg/JointTrajectory",
    "sensor_msgs/msg/JointState",
    "std_msgs/msg/Float64MultiArray",
    "geometry_msgs/msg/TwistStamped",
    "array",
)
TWIST_NAMES = ("vx", "vy", "vz", "wx", "wy", "wz")
POSE_NAMES = ("x", "y", "z", "rx", "ry", "rz")
UNITS = {  # unit -> (what it measures, factor to the SI unit)
    "m": ("length", 1.0),
    "cm": ("length", 0.01),
    "mm": ("length", 0.001),
    "rad": ("angle", 1.0),
    "deg": ("angle", 0.017453292519943295),
    "m/s": ("speed", 1.0),
    "mm/s": ("speed", 0.001),
    "rad/s": ("angular speed", 1.0),
    "deg/s": ("angular speed", 0.017453292519943295),
    "fraction": ("fraction", 1.0),
    "percent": ("fraction", 0.01),
}


class Align(Enum):
    """Which sample of a stream belongs to a tick at time t with period p."""

    hold = "hold"  # the newest with stamp <= t
    asof = "asof"  # the same, unless it is older than `tolerance_s`
    drop = "drop"  # only one with t - p < stamp <= t: every sample is used at most once


class StampSource(Enum):
    header = "header"  # when it was measured, as its header says (a zero stamp counts as none)
    receive = "receive"  # when it came in


class QosProfile(Enum):
    sensor = "sensor"  # best effort, keep last 5, volatile
    reliable = "reliable"  # reliable, keep last 10, volatile
    latched = "latched"  # reliable, keep last 1, transient local


class OnTrouble(Enum):
    hold = "hold"  # the hold action at every tick, until reset
    stop = "stop"  # the hold action once, then nothing, until reset


class ActionMode(Enum):
    """What an action means, and so what holding still is: the last position again, or zero motion."""

    position = "position"
    velocity = "velocity"
    delta = "delta"


@dataclass
class Stream:
    """One topic (or key) and the feature, or the part of a feature, that it becomes.

    Streams of the same feature are joined in the order of the list. `names`: the elements in the policy's order; they
    are looked up by name where the message carries names. `selector`: the field of the message, such as "position".
    """

    feature: str = MISSING
    type: str = MISSING
    topic: str = ""
    key: str = ""
    selector: str = ""
    names: list[str] = field(default_factory=list)
    unit: str = ""
    feature_unit: str = ""
    size: int = 0  # images are brought to size x size, padded; 0: as they come
    rotate_180: bool = False  # the camera is mounted upside down
    mirrored: bool = False  # left and right are exchanged, as openpi's LIBERO clients send images
    align: Align = Align.hold
    tolerance_s: float = 0.1
    max_age_s: float = 0.5
    stamp: StampSource = StampSource.header
    qos: QosProfile = QosProfile.sensor
    watch: bool = True  # False: never stale (an instruction)

    @property
    def place(self) -> str:
        return self.topic or self.key


@dataclass
class ActionOutput:
    """Where actions go. `names`: in the policy's order. `gripper`: those kept, not zeroed, while holding."""

    type: str = MISSING
    topic: str = ""
    key: str = ""
    names: list[str] = MISSING
    mode: ActionMode = ActionMode.position
    gripper: list[str] = field(default_factory=list)
    unit: str = ""
    feature_unit: str = ""
    frame_id: str = ""
    qos: QosProfile = QosProfile.reliable


@dataclass
class Limits:
    """Bounds in the policy's units, one number an action element; an empty list is no limit of that kind.

    max_step: change between two commands. max_velocity: change a second. workspace: element of the measured state ->
    [low, high]; for delta actions `delta_scale` gives the motion of an action of 1. max_relative_target: distance of
    a position target from the measured position, as in LeRobot.
    """

    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    max_step: list[float] = field(default_factory=list)
    max_velocity: list[float] = field(default_factory=list)
    max_relative_target: list[float] = field(default_factory=list)
    workspace: dict[str, list[float]] = field(default_factory=dict)
    workspace_elements: dict[str, str] = field(default_factory=dict)  # action element -> state element it moves
    delta_scale: dict[str, float] = field(default_factory=dict)
    state: str = "observation.state"


@dataclass
class WatchdogSettings:
    """When to hold or stop. A window counts ticks over `window_s`."""

    max_skew_s: float = 0.5  # between the stamps of one observation, and of a stamp ahead of the clock
    policy_timeout_s: float = 2.0  # no answer for so long: the policy is dead
    max_policy_errors: int = 3  # in a row
    max_deadline_misses: int = 10  # ticks without a fresh action, or late by more than a period, in the window
    window_s: float = 10.0
    value_threshold: float | None = None  # of the value function, when one is given
    value_patience: int = 3  # values in a row below it


@dataclass
class Contract:
    name: str = MISSING
    rate_hz: float = 20.0
    on_trouble: OnTrouble = OnTrouble.hold
    task: str = ""
    streams: list[Stream] = MISSING
    action: ActionOutput = MISSING
    limits: Limits = field(default_factory=Limits)
    watchdog: WatchdogSettings = field(default_factory=WatchdogSettings)
    max_message_bytes: int = 16 * 2**20

    @property
    def period_s(self) -> float:
        return 1.0 / self.rate_hz

    def of(self, feature: str) -> list[Stream]:
        return [stream for stream in self.streams if stream.feature == feature]

    def names(self, feature: str) -> list[str]:
        """The elements of a feature, over all its streams."""
        return [name for stream in self.of(feature) for name in stream.names]


def contract_from(values: Mapping[str, Any], source: str = "contract") -> Contract:
    """A checked Contract. ValueError names every problem found, or the first wrong key with the nearest right one."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Contract), OmegaConf.create(_floats(dict(values))))
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ValueError(f"{source} needs a value for {', '.join(missing)}")
        contract = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ValueError(f"{source}: {_explain(error)}") from error
    assert isinstance(contract, Contract)
    problems = list(_problems(contract))
    if problems:
        raise ValueError(f"{source} has {len(problems)} problems:\n  " + "\n  ".join(problems))
    return contract


def load_contract(path: Path) -> Contract:
    """Reads a contract file (YAML)."""
    if not path.is_file():
        raise FileNotFoundError(f"contract should be a YAML file, {path} is none")
    loaded = OmegaConf.load(path)
    values = OmegaConf.to_container(loaded)
    if not isinstance(values, dict):
        raise ValueError(f"{path} should hold a mapping, got {type(values).__name__}")  # noqa: TRY004
    return contract_from({str(key): value for key, value in values.items()}, str(path))


def unit_factor(unit: str, wanted: str) -> float:
    """What a number in `unit` is multiplied with to be in `wanted`; 1 when either is empty. ValueError on a mix."""
    if not unit or not wanted or unit == wanted:
        return 1.0
    for name in (unit, wanted):
        if name not in UNITS:
            raise ValueError(f"unit should be one of {', '.join(UNITS)}, got {name!r}")
    if UNITS[unit][0] != UNITS[wanted][0]:
        raise ValueError(f"{unit} is a {UNITS[unit][0]}, {wanted} a {UNITS[wanted][0]}: they do not convert")
    return UNITS[unit][1] / UNITS[wanted][1]


def _floats(value: Any, inside: bool = False) -> Any:
    """Integers in free mappings as floats: OmegaConf does not convert these."""
    if isinstance(value, Mapping):
        return {key: _floats(item, inside or key in ("workspace", "delta_scale")) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_floats(item, inside) for item in value]
    return float(value) if inside and type(value) is int else value


def _explain(error: OmegaConfBaseException) -> str:
    key = getattr(error, "key", None)
    kind = getattr(error, "object_type", None)
    message = str(error).splitlines()[0]
    where = f" at {error.full_key}" if getattr(error, "full_key", None) else ""
    known = list(getattr(kind, "__dataclass_fields__", {}))
    if "not in" in message and known:
        near = difflib.get_close_matches(str(key), known, n=1)
        return f"unknown key {key!r}{where}: " + (
            f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        )
    return message + where


def _problems(contract: Contract):
    if not 0.1 <= contract.rate_hz <= 1000:
        yield f"rate_hz should be 0.1 to 1000, got {contract.rate_hz}"
    if not contract.streams:
        yield "streams should name at least one stream, got none"
    for index, stream in enumerate(contract.streams):
        for problem in _stream_problems(stream):
            yield f"streams[{index}] ({stream.feature}): {problem}"
    yield from _action_problems(contract.action)
    yield from _limit_problems(contract)


def _stream_problems(stream: Stream):
    if stream.type not in STREAM_SELECTORS:
        near = difflib.get_close_matches(stream.type, STREAM_SELECTORS, n=1)
        yield f"type should be one of {', '.join(STREAM_SELECTORS)}, got {stream.type!r}" + (
            f": did you mean {near[0]!r}?" if near else ""
        )
    if bool(stream.topic) == bool(stream.key):
        yield "should have a topic (ROS) or a key (openpi), exactly one of them"
    if stream.max_age_s <= 0 or stream.tolerance_s <= 0:
        yield "max_age_s and tolerance_s should be above 0"
    image = stream.type in IMAGE_TYPES or (stream.type == "array" and ".images." in stream.feature)
    if not image and stream.type != "std_msgs/msg/String" and stream.feature != "task" and not stream.names:
        yield "should list the names of its elements in the policy's order"
    if len(set(stream.names)) != len(stream.names):
        yield "names should differ from one another"
    yield from _unit_problems(stream.unit, stream.feature_unit)


def _action_problems(action: ActionOutput):
    if action.type not in ACTION_TYPES:
        yield f"action.type should be one of {', '.join(ACTION_TYPES)}, got {action.type!r}"
    if bool(action.topic) == bool(action.key):
        yield "action should have a topic (ROS) or a key (openpi), exactly one of them"
    if not action.names or len(set(action.names)) != len(action.names):
        yield "action.names should list every element once"
    if action.type == "geometry_msgs/msg/TwistStamped" and not set(action.names) <= set(TWIST_NAMES):
        yield f"action.names of a TwistStamped should be among {', '.join(TWIST_NAMES)}, got {action.names}"
    for name in set(action.gripper) - set(action.names):
        yield f"action.gripper names {name!r}, which is not in action.names"
    yield from (f"action: {problem}" for problem in _unit_problems(action.unit, action.feature_unit))


def _limit_problems(contract: Contract):
    limits, count = contract.limits, len(contract.action.names)
    for name in ("low", "high", "max_step", "max_velocity", "max_relative_target"):
        values = getattr(limits, name)
        if values and len(values) != count:
            yield f"limits.{name} should have {count} numbers, one an action element, got {len(values)}"
        if name.startswith("max") and any(not value > 0 for value in values):
            yield f"limits.{name} should be above 0"
    pairs = zip(limits.low, limits.high, strict=False)
    if any(not low <= high for low, high in pairs):
        yield "limits.low should not exceed limits.high"
    state = contract.names(limits.state)
    if limits.max_relative_target and len(state) < count:
        yield f"limits.max_relative_target needs a measured position for each action element in {limits.state}"
    for element, bounds in limits.workspace.items():
        if element not in state:
            yield f"limits.workspace names {element!r}, which is not in {limits.state}: {state}"
        if len(bounds) != 2 or not bounds[0] < bounds[1]:
            yield f"limits.workspace.{element} should be [low, high], got {bounds}"
    for name, element in limits.workspace_elements.items():
        if name not in contract.action.names or element not in limits.workspace:
            yield f"limits.workspace_elements maps {name!r} to {element!r}: both should be named elsewhere"


def _unit_problems(unit: str, wanted: str):
    try:
        unit_factor(unit, wanted)
    except ValueError as error:
        yield str(error)
