"""The simulated robot with a small world: a policy drives it to success, in lockstep and in real time."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from types import SimpleNamespace as Ns
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from embodied.config import compose_config
from embodied.deploy.clock import SystemClock
from embodied.deploy.contract import Contract, QosProfile, contract_from
from embodied.deploy.inference import Inference, ThreadInference
from embodied.deploy.lockstep import SteppedClock, SteppedInference
from embodied.deploy.messages import array_message
from embodied.deploy.node import Node
from embodied.deploy.robot_sim import RobotSettings, SimulatedRobot
from embodied.deploy.schedule import ScheduleMode, ScheduleSettings
from embodied.deploy.transports.inproc import Hub, InprocBus
from embodied.protocols import PolicySpec, StepsResult, Task
from embodied.schema import IMAGE_KEYS, STATE


def libero_sim() -> Contract:
    """The shipped contract, at a rate that makes the test quick, and patient with a busy machine."""
    values = OmegaConf.to_container(compose_config("node", ["policy=random"]).deploy)
    contract = contract_from({**values, "rate_hz": 50.0})  # type: ignore[dict-item]
    for stream in contract.streams:
        stream.max_age_s = 30.0
    contract.watchdog.max_deadline_misses, contract.watchdog.policy_timeout_s = 10_000, 60.0
    contract.watchdog.max_skew_s = 30.0
    return contract


class Line:
    """A point on a line: an action of 1 moves it by 5 cm, 30 cm are success."""

    control_hz = 50

    def __init__(self) -> None:
        self.task = Task("line", 0, "line", "go right", 5000)
        self.x, self.images = 0.0, 0
        self.resets: list[tuple[Any, Any]] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        self.x = 0.0
        self.resets.append((seed, (options or {}).get("init_state")))
        return self.observe(False), {"success": False}

    def run_steps(self, actions: np.ndarray) -> StepsResult:
        self.x += 0.05 * float(actions[0, 0])
        return StepsResult(1, self.x > 0.3)

    def observe(self, images: bool = True) -> dict[str, Any]:
        state = np.array([self.x, *[0.0] * 7], np.float32)
        seen: dict[str, Any] = {STATE: state, "task": self.task.language}
        if images:
            self.images += 1
            seen |= {key: np.full((128, 128, 3), 7, np.uint8) for key in IMAGE_KEYS}
        return seen

    def images_later(self) -> Future[dict[str, np.ndarray]]:
        later: Future[dict[str, np.ndarray]] = Future()
        later.set_result({key: value for key, value in self.observe().items() if key in IMAGE_KEYS})
        return later

    def step(self, action: np.ndarray) -> Any:
        raise NotImplementedError

    def snapshot(self) -> dict[str, np.ndarray]:
        return {"x": np.array(self.x)}

    def close(self) -> None:
        pass


class GoRight:
    """Goes right as fast as it may while the instruction says so and the images are there."""

    def __init__(self) -> None:
        self.spec = PolicySpec("right", "0", 4, 2, image_keys=IMAGE_KEYS, extra={"control_hz": 50.0})

    def reset(self, slots: Any, episodes: Any) -> None:
        pass

    def act(self, observation: dict[str, Any], slots: Any) -> np.ndarray:
        good = observation["task"] == ["go right"] and (observation[IMAGE_KEYS[0]] == 7).all()
        actions = np.zeros((1, 4, 7), np.float32)
        actions[..., 0] = 2.0 if good else 0.0
        return actions


@pytest.mark.parametrize("lockstep", [True, False])
def test_two_episodes_to_success(lockstep: bool) -> None:
    hub, env = Hub(), Line()
    contract = libero_sim()
    clock = SteppedClock() if lockstep else SystemClock()
    inference: Inference = ThreadInference(GoRight())
    if isinstance(clock, SteppedClock):
        inference = SteppedInference(inference, clock)
    schedule = ScheduleSettings(mode=ScheduleMode["async"])
    node = Node(contract, schedule, inference, InprocBus(hub), clock=clock)
    node.start()
    node.configure()
    node.activate()
    settings = RobotSettings(episodes=2, lockstep=lockstep, image_every=5, seed=3, first_init_state=10)
    robot = SimulatedRobot(env, contract, InprocBus(hub), settings)
    robot.start()
    assert robot.run(threading.Event()) == [True, True]
    assert env.resets == [(3, 10), (4, 11)]
    assert robot.counts["refused"] == 0
    assert node.loop.safety.counts["absolute"] > 0, "2 was asked for, 1 is the limit"
    node.shutdown()


class SlowCamera(Line):
    """Its images are there when the arm has made ten more steps, and show how often it had stepped."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.due: list[tuple[int, int, Future[dict[str, np.ndarray]]]] = []

    def run_steps(self, actions: np.ndarray) -> StepsResult:
        self.steps += 1
        for step, shown, later in self.due:
            if step == self.steps:
                later.set_result({key: np.full((128, 128, 3), shown, np.uint8) for key in IMAGE_KEYS})
        return super().run_steps(actions)

    def images_later(self) -> Future[dict[str, np.ndarray]]:
        later: Future[dict[str, np.ndarray]] = Future()
        self.due.append((self.steps + 10, self.steps, later))
        return later


def test_the_arm_moves_on_while_images_are_rendered() -> None:
    """Images are taken at steps 0, 10, 20 (at 5, 15 and 25 the last ones are still under way)."""
    hub, env = Hub(), SlowCamera()
    seen: list[tuple[Any, int]] = []
    states: list[Any] = []
    contract = libero_sim()
    other = InprocBus(hub)
    other.subscribe(
        contract.streams[0].topic, "sensor_msgs/msg/Image", QosProfile.sensor, lambda m: seen.append((m, len(states)))
    )
    other.subscribe("/joint_states", "sensor_msgs/msg/JointState", QosProfile.sensor, states.append)
    other.start()
    settings = RobotSettings(image_every=5, node="", max_steps=26)
    robot = SimulatedRobot(env, contract, InprocBus(hub), settings)
    robot.start()
    assert robot.run(threading.Event()) == [False]
    assert [message.data[0] for message, _ in seen] == [0, 10]
    assert [count for _, count in seen] == [11, 21], "states go on meanwhile"
    stamps = [state.header.stamp for state in states]
    assert [message.header.stamp for message, _ in seen] == [stamps[0], stamps[10]], "the time of what they show"
    assert robot.counts["late_images"] == 3


def test_bad_commands_are_refused() -> None:
    hub = Hub()
    contract = libero_sim()
    robot = SimulatedRobot(Line(), contract, InprocBus(hub), RobotSettings(node=""))
    robot.start()
    publish = InprocBus(hub).advertise("/action", "std_msgs/msg/Float64MultiArray", QosProfile.reliable)
    publish(array_message(np.zeros(3)))
    publish(array_message(np.full(7, np.nan)))
    publish(Ns(data="x"))
    publish(array_message(np.full(7, 9.0)))
    assert robot.counts["refused"] == 3
    command = robot._next_command()
    assert command is not None
    assert command.tolist() == [1.0] * 7, "clipped to what the simulator takes"


def test_motions_that_wait_add_up() -> None:
    """Two that come in one period are one motion; a robot that is late makes one step for each."""
    hub = Hub()
    robot = SimulatedRobot(Line(), libero_sim(), InprocBus(hub), RobotSettings(node=""))
    robot.start()
    publish = InprocBus(hub).advertise("/action", "std_msgs/msg/Float64MultiArray", QosProfile.reliable)
    first, second = np.array([0.3, 0.8, 0, 0, 0, 0, 1]), np.array([0.2, 0.8, 0, 0, 0, 0, -1])
    publish(array_message(first))
    publish(array_message(second))
    command = robot._next_command()
    assert command is not None
    np.testing.assert_allclose(command, [0.5, 1.0, 0, 0, 0, 0, -1])
    assert robot._next_command() is None
    publish(array_message(first))
    publish(array_message(second))
    np.testing.assert_allclose(robot._next_command(late=True), first)  # type: ignore[arg-type]
    np.testing.assert_allclose(robot._next_command(late=True), second)  # type: ignore[arg-type]


def test_control_steps_follow_the_phase_of_the_commands() -> None:
    """Commands at 7, 107, 207, ...: steps go to a third of a period after them, from wherever they are."""
    robot = SimulatedRobot(Line(), libero_sim(), InprocBus(Hub()), RobotSettings(node=""))
    assert robot._in_phase(1000, 100) == 1000, "no command yet"
    robot._arrived = 7
    for due in (1000, 1030, 1060, 1090):
        for _ in range(20):
            due = robot._in_phase(due + 100, 100)
        assert abs(due % 100 - 40) <= 2


def test_a_contract_it_cannot_serve_is_refused() -> None:
    contract = libero_sim()
    contract.action.names = ["a"]
    with pytest.raises(ValueError, match="obeys actions dx"):
        SimulatedRobot(Line(), contract, InprocBus(), RobotSettings())
