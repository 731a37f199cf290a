"""Lockstep: a node and a simulated robot whose results do not depend on how long anything takes."""

from __future__ import annotations

import json
import random
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_parts import until
from test_robot_sim import Line, libero_sim

from embodied.deploy import messages
from embodied.deploy.contract import QosProfile
from embodied.deploy.inference import ThreadInference
from embodied.deploy.lockstep import ROBOT_STEP, TEXT, Step, SteppedClock, SteppedInference, read_step, read_stepped
from embodied.deploy.node import Node
from embodied.deploy.robot_runs import RobotRun, policy_of
from embodied.deploy.robot_sim import Played, RobotSettings, SimulatedRobot
from embodied.deploy.schedule import ScheduleMode, ScheduleSettings
from embodied.deploy.transports.inproc import Hub, InprocBus
from embodied.evaluation.compare import compare_runs
from embodied.protocols import PolicySpec
from embodied.schema import IMAGE_KEYS, STATE


class Wandering:
    """Its actions depend on the state, so that one step more or less changes everything; slow as the dice say."""

    def __init__(self, pauses: random.Random | None) -> None:
        self.spec = PolicySpec("wandering", "0", 4, 2, image_keys=IMAGE_KEYS, extra={"control_hz": 50.0})
        self.pauses = pauses

    def reset(self, slots: Any, episodes: Any) -> None:
        pass

    def act(self, observation: dict[str, Any], slots: Any) -> np.ndarray:
        if self.pauses is not None:
            time.sleep(self.pauses.random() * 0.02)
        x = observation[STATE][0, 0]
        actions = np.zeros((1, 4, 7), np.float32)
        actions[0, :, 0] = 0.3 + 0.2 * np.sin(17 * x + np.arange(4))
        return actions


def direct(replan: int = 2) -> np.ndarray:
    """What an evaluation without a node executes: 2 actions, then a look."""
    env, policy, executed = Line(), Wandering(None), []
    env.reset()
    done = False
    while not done:
        for action in policy.act({STATE: env.observe()[STATE][None]}, [0])[0, :replan]:
            executed.append(action)
            if env.run_steps(action[None]).success:
                done = True
                break
    return np.stack(executed)


def through_node(mode: str, latency_s: float, pauses: random.Random | None, **changes: Any) -> list[Played]:
    hub, clock = Hub(), SteppedClock()
    inference = SteppedInference(ThreadInference(Wandering(pauses)), clock, latency_s)
    schedule = ScheduleSettings(mode=ScheduleMode[mode])
    node = Node(libero_sim(), schedule, inference, InprocBus(hub), clock=clock)
    node.start()
    node.configure()
    node.activate()
    played: list[Played] = []
    chosen = RobotSettings(episodes=2, lockstep=True, image_every=2, **changes)
    robot = SimulatedRobot(Line(), libero_sim(), InprocBus(hub), chosen, on_played=played.append)
    robot.start()
    robot.run(threading.Event())
    node.shutdown()
    return played


def test_a_node_without_latency_does_what_a_direct_evaluation_does() -> None:
    expected = direct()
    for seed in (1, 2):
        first, second = through_node("sync", 0.0, random.Random(seed))
        assert first.actions.tobytes() == expected.tobytes()
        assert second.actions.tobytes() == expected.tobytes()
        assert first.success


def test_latency_is_simulated_time() -> None:
    """50 Hz and 0.04 s: asked at step 0, answered at step 2, whose action is the third of the chunk."""
    runs = [through_node("async", 0.04, random.Random(seed)) for seed in (1, 2)]
    assert runs[0][0].actions.tobytes() == runs[1][0].actions.tobytes() == runs[1][1].actions.tobytes()
    actions = runs[0][0].actions
    assert (actions[:2] == 0).all(), "nothing is planned yet: the robot holds still"
    assert actions[2, 0] == pytest.approx(0.3 + 0.2 * np.sin(2))


def test_a_step_that_comes_twice_is_done_once() -> None:
    hub, clock = Hub(), SteppedClock()
    inference = SteppedInference(ThreadInference(Wandering(None)), clock)
    node = Node(libero_sim(), ScheduleSettings(), inference, InprocBus(hub), clock=clock)
    bus = InprocBus(hub)
    answers: list[tuple[int, bool]] = []
    bus.start()
    bus.subscribe("/embodied/stepped", TEXT, QosProfile.reliable, lambda m: answers.append(read_stepped(m.data)))
    send = bus.advertise(ROBOT_STEP, TEXT, QosProfile.reliable)
    node.start()
    node.configure()
    node.activate()
    send(messages.text_message("{}"))
    for count in (1, 2):
        send(messages.text_message(json.dumps({"time": 7, "stamps": {}})))
        assert until(lambda count=count: len(answers) == count)
    assert answers == [(7, False)] * 2
    assert node.loop.report()["steps"] == 1
    send(messages.text_message(json.dumps({"time": 9, "stamps": {"/joint_states": 9}})))
    time.sleep(0.1)
    assert len(answers) == 2, "the samples of that step are not there"
    assert node.lockstep is not None
    assert node.lockstep.refused == 1
    node.shutdown()


def test_no_node_is_said() -> None:
    robot = SimulatedRobot(Line(), libero_sim(), InprocBus(), RobotSettings(lockstep=True, answer_timeout_s=0.1))
    robot.start()
    with pytest.raises(ValueError, match="start `embodied node lockstep=true`"):
        robot.run(threading.Event())


@settings(max_examples=500, deadline=None)
@given(text=st.text(max_size=50) | st.recursive(st.none() | st.integers(), st.lists).map(json.dumps))
def test_hostile_steps(text: str) -> None:
    for read in (read_step, read_stepped):
        try:
            got = read(text)
        except ValueError:
            continue
        assert isinstance(got, (Step, tuple))


def test_episodes_as_an_evaluation_run(tmp_path: Path) -> None:
    """Two runs of the same episodes through a node compare in pairs; another contract's or policy's are refused."""
    env = {"_target_": "sim.make.make_env", "suite": "line", "task": 0}
    for name, latency in (("a", 0.0), ("b", 0.04)):
        run = RobotRun(tmp_path / name, env, libero_sim())
        for played in through_node("async", latency, None):
            run.append(played, PolicySpec("wandering", "0", 4, 2))
    comparison = compare_runs(tmp_path / "a", tmp_path / "b")
    assert comparison.all.paired.both == 2
    assert comparison.all.p == 1.0
    with pytest.raises(ValueError, match=r"other settings: policy.digest"):
        run.append(played, PolicySpec("wandering", "1", 4, 2))


def test_a_node_says_which_policy_it_runs() -> None:
    hub = Hub()
    node = Node(libero_sim(), ScheduleSettings(replan=3), ThreadInference(Wandering(None)), InprocBus(hub))
    node.start()
    assert policy_of(InprocBus(hub), "/embodied") == PolicySpec("wandering", "0", 4, 3)
    with pytest.raises(ValueError, match="should say which policy"):
        policy_of(InprocBus(hub), "/nobody")
    node.shutdown()
