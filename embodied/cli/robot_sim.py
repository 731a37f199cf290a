"""A simulated robot on the bus: a simulator that publishes images and states and obeys actions.

    embodied robot-sim env=libero_object env.task=0 deploy=libero_sim robot.episodes=5
    embodied robot-sim env=robosuite deploy=libero_sim robot.lockstep=true out=outcome.json

robot.image_every=4      renders both cameras every fourth control step: rendering is what costs
robot.lockstep=true      one control step for every command, as fast as both sides can; else in real time
robot.episodes=N robot.seed=7 robot.first_init_state=0 (null: scenes drawn from the seed) robot.max_steps=N
network.domain_id=N network.interface=lo

Run `embodied node deploy=libero_sim ...` beside it. /robot_sim/success and /robot_sim/status say how it goes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from embodied.registry import Registry


def register(registry: Registry) -> None:
    from embodied.deploy.config import RobotSimConfig

    registry.schema(None, "robot_sim_schema", RobotSimConfig)


def run(arguments: list[str]) -> int:
    from embodied.config import compose_config, to_dataclass
    from embodied.deploy.config import contract_of, stop_on_signals
    from embodied.deploy.robot_sim import SimulatedRobot
    from embodied.deploy.transports.dds import DdsBus
    from embodied.io import write_json
    from embodied.registry import build

    config = to_dataclass(compose_config("robot_sim", arguments))
    contract = contract_of(config.deploy, config.contract)
    stop = stop_on_signals()
    bus = DdsBus("robot_sim", config.network.domain_id, config.network.interface, contract.max_message_bytes)
    env = build(config.env)
    robot = SimulatedRobot(env, contract, bus, config.robot)
    robot.start()
    print(f"/robot_sim on domain {bus.domain_id}: {env.task.language}", flush=True)
    successes = robot.run(stop)
    bus.stop()
    print(
        f"/robot_sim ended: {sum(successes)} of {len(successes)} episodes succeeded; {dict(robot.counts)}", flush=True
    )
    if config.out is not None:
        write_json(Path(config.out), {"successes": successes, "counts": dict(robot.counts)})
    sys.stdout.flush()
    os._exit(0)  # without the teardown that software GL drivers crash in
