"""A simulated robot on the bus: a simulator that publishes images and states and obeys actions.

    embodied robot-sim env=libero_object env.task=0 deploy=libero_sim robot.episodes=5
    embodied robot-sim env=robosuite deploy=libero_sim robot.lockstep=true out=outcome.json

robot.image_every=4      renders both cameras every fourth control step: rendering is what costs
robot.lockstep=true      one control step for every tick of `embodied node lockstep=true`; else in real time
robot.episodes=N robot.seed=7 robot.first_init_state=0 (null: scenes drawn from the seed) robot.max_steps=N
tasks=[0,1]              several tasks of the suite, one after the other (env.task)
run=FOLDER               an evaluation run of the episodes: `embodied compare` pairs it with one of `embodied evaluate`
network.domain_id=N network.interface=lo

Run `embodied node deploy=libero_sim ...` beside it. /robot_sim/success and /robot_sim/status say how it goes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embodied.registry import Registry

if TYPE_CHECKING:
    from embodied.deploy.config import RobotSimConfig


def register(registry: Registry) -> None:
    from embodied.deploy.config import RobotSimConfig

    registry.schema(None, "robot_sim_schema", RobotSimConfig)


def run(arguments: list[str]) -> int:
    from embodied.config import compose_config, to_dataclass
    from embodied.deploy.config import contract_of, make_bus, stop_on_signals
    from embodied.deploy.robot_runs import RobotRun, policy_of
    from embodied.deploy.robot_sim import SimulatedRobot
    from embodied.io import write_json

    config = to_dataclass(compose_config("robot_sim", arguments))
    contract = contract_of(config.deploy, config.contract)
    stop = stop_on_signals()
    bus = make_bus("robot_sim", config.network, contract)
    robot = SimulatedRobot(_environment(config, 0), contract, bus, config.robot)
    if config.run is not None:
        folder = RobotRun(Path(config.run), config.env, contract)
        robot.on_played = lambda played: folder.append(played, policy_of(bus, config.robot.node))
    robot.start()
    for number in range(max(1, len(config.tasks or []))):
        if number:
            robot.env.close()
            robot.env = _environment(config, number)
        print(f"/robot_sim on {bus.place}: {robot.env.task.language}", flush=True)
        robot.run(stop)
    successes = robot.successes
    bus.stop()
    print(
        f"/robot_sim ended: {sum(successes)} of {len(successes)} episodes succeeded; {dict(robot.counts)}", flush=True
    )
    if config.out is not None:
        write_json(Path(config.out), {"successes": successes, "counts": dict(robot.counts)})
    sys.stdout.flush()
    os._exit(0)  # without the teardown that software GL drivers crash in


def _environment(config: RobotSimConfig, number: int) -> Any:
    """The environment of the settings' task, or of the one at this position of `tasks`."""
    from embodied.registry import build

    return build({**config.env, "task": config.tasks[number]} if config.tasks else config.env)
