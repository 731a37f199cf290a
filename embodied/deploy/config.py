"""Settings of `embodied serve`, `node`, `robot-sim`, `record` and `replay`, and what they have in common."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from embodied.deploy.clock import Clock, SimulatedClock, SystemClock
from embodied.deploy.contract import Contract, contract_from, load_contract
from embodied.deploy.inference import Inference, ProcessInference, ThreadInference, own_value
from embodied.deploy.lockstep import SteppedClock, SteppedInference
from embodied.deploy.robot_sim import RobotSettings
from embodied.deploy.schedule import ScheduleSettings
from embodied.registry import build

API_KEY_VARIABLE = "EMBODIED_API_KEY"


class Runs(Enum):
    """Where the policy runs; a hung process can be ended, a hung thread cannot."""

    thread = "thread"
    process = "process"


class TransportKind(Enum):
    """dds: ROS 2. ros1: rospy and the master of ROS_MASTER_URI; rospy comes with a ROS 1 install."""

    dds = "dds"
    ros1 = "ros1"


@dataclass
class Network:
    """domain_id: null takes ROS_DOMAIN_ID. interface: loopback unless another is named; "auto" takes them all."""

    transport: TransportKind = TransportKind.dds
    domain_id: int | None = None
    interface: str = "lo"


@dataclass
class ServeConfig:
    """`contract`: a file of yours in place of the group `deploy`."""

    deploy: dict[str, Any] = field(default_factory=dict)
    contract: str | None = None
    policy: dict[str, Any] = field(default_factory=dict)
    host: str = "127.0.0.1"
    port: int = 8000
    max_message_bytes: int = 32 * 2**20
    max_clients: int = 16
    torch_threads: int = 1


@dataclass
class NodeConfig:
    deploy: dict[str, Any] = field(default_factory=dict)
    contract: str | None = None
    policy: dict[str, Any] = field(default_factory=dict)
    value: dict[str, Any] | None = None  # a value function (`_target_`) watched against watchdog.value_threshold; null:
    # the policy itself, where it is one and the contract has a threshold
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    network: Network = field(default_factory=Network)
    name: str = "embodied"
    task: str | None = None
    use_sim_time: bool = False
    lockstep: bool = False  # tick once for each step of `robot-sim robot.lockstep=true`, however long it takes
    latency_s: float = 0.0  # with lockstep: simulated time from question to answer
    runs: Runs = Runs.thread
    autostart: bool = True  # configure and activate at once; false: wait for lifecycle services
    record: str | None = None  # a new folder for an MCAP bag of everything the node took and did
    view: str | None = None  # rerun or rerun:FILE.rrd
    seconds: float | None = None  # end after so long
    warmup_timeout_s: float = 120.0
    torch_threads: int = 1


@dataclass
class RobotSimConfig:
    deploy: dict[str, Any] = field(default_factory=dict)
    contract: str | None = None
    env: dict[str, Any] = field(default_factory=dict)
    robot: RobotSettings = field(default_factory=RobotSettings)
    network: Network = field(default_factory=Network)
    tasks: list[int] | None = None  # of the suite; null: env.task
    run: str | None = None  # an evaluation run's folder for the episodes
    out: str | None = None  # JSON file for the episodes' outcomes


@dataclass
class RecordConfig:
    """Topics of the contract, its commands included, into an MCAP bag."""

    deploy: dict[str, Any] = field(default_factory=dict)
    contract: str | None = None
    network: Network = field(default_factory=Network)
    out: str = "???"
    seconds: float | None = None


@dataclass
class ReplayConfig:
    """bag: what `embodied node record=FOLDER` wrote, with the policy that was run."""

    bag: str = "???"
    policy: dict[str, Any] = field(default_factory=dict)
    torch_threads: int = 1


def contract_of(deploy: Mapping[str, Any], path: str | None) -> Contract:
    """The contract of the config group, or of the file that replaces it."""
    return load_contract(Path(path)) if path is not None else contract_from(deploy)


def make_bus(name: str, network: Network, contract: Contract) -> Any:
    """The bus that the settings name. ValueError where its libraries are not installed."""
    if network.transport is TransportKind.ros1:
        from embodied.deploy.transports.ros1 import Ros1Bus

        return Ros1Bus(name, contract.max_message_bytes)
    try:
        from embodied.deploy.transports.dds import DdsBus
    except ImportError as error:
        raise ValueError(f"DDS needs the deploy extra: pip install 'embodied-stack[deploy]' ({error})") from error
    return DdsBus(name, network.domain_id, network.interface, contract.max_message_bytes)


def make_clock(config: NodeConfig) -> Clock:
    """The node's time: the machine's, /clock's or, in lockstep, the robot's."""
    if config.lockstep:
        return SteppedClock()
    return SimulatedClock() if config.use_sim_time else SystemClock()


def make_inference(config: NodeConfig, contract: Contract, clock: Clock | None = None) -> Inference:
    """The policy where the config wants it to run, and on the clock's time where that is stepped."""
    inference = _inference(config, contract.watchdog.value_threshold is not None)
    return SteppedInference(inference, clock, config.latency_s) if isinstance(clock, SteppedClock) else inference


def _inference(config: NodeConfig, watched: bool) -> Inference:
    if config.policy.get("runs_in") == "simulator":
        raise ValueError("policy=expert reads the simulator's state, a robot has none: choose another policy")
    if config.runs is Runs.process:
        if config.value is not None:
            raise ValueError("a value function runs beside the policy: choose runs=thread, or value=null")
        return ProcessInference(config.policy, watched)
    policy = build(config.policy)
    return ThreadInference(policy, build(config.value) if config.value is not None else own_value(policy, watched))


def use_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


def api_key() -> str | None:
    """From the environment, so that it is in no process list and no config file."""
    return os.environ.get(API_KEY_VARIABLE) or None


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set; the main thread may then end in its own time."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop
