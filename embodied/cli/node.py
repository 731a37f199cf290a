"""Runs a policy on a robot as a ROS 2 node, without a ROS install.

    embodied node policy=checkpoint policy.path=FOLDER deploy=libero_sim task="pick up the milk ..."
    embodied node policy=openpi policy.uri=ws://gpu-box:8000 contract=my_robot.yaml network.interface=eth0

deploy=NAME / contract=FILE   streams, action, limits, rate; checked against the policy before the first observation
schedule.mode=async           or sync, temporal_ensemble, rtc; schedule.replan=N and others of ScheduleSettings
network.domain_id=N           ROS_DOMAIN_ID by default; network.interface=lo unless told otherwise
network.transport=ros1        ROS 1, through rospy and ROS_MASTER_URI, where rospy is installed
runs=thread                   or process, which a hung policy can be ended in
lockstep=true                 one tick for each step of `robot-sim robot.lockstep=true`; latency_s of simulated time
use_sim_time=true             stamps are compared with /clock; ticks stay on the monotonic clock
view=rerun                    a live view (rerun:FILE.rrd writes a file); what it cannot keep up with is dropped
autostart=false               waits for ~/change_state (ROS 2 lifecycle); record=FOLDER keeps an MCAP bag

Services: ~/hold, ~/estop, ~/reset (std_srvs/srv/Trigger). On trouble it holds or stops, as the contract says, until
~/reset. State at 1 Hz on /diagnostics. SIGTERM sends a last hold action and leaves. Exit status 1: the loop failed.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embodied.registry import Registry

if TYPE_CHECKING:
    from embodied.deploy.config import NodeConfig
    from embodied.deploy.node import Node


def register(registry: Registry) -> None:
    from embodied.deploy.config import NodeConfig

    registry.target(
        "embodied.deploy.transports.openpi_client.RemotePolicy",
        "embodied.deploy.bench.DeployBench",
        "embodied.deploy.node_task.NodeTaskBench",
        "embodied.deploy.soak.SoakBench",
    )
    registry.schema(None, "node_schema", NodeConfig)


def run(arguments: list[str]) -> int:
    from embodied.config import compose_config, to_dataclass
    from embodied.deploy.config import contract_of, make_bus, make_clock, make_inference, stop_on_signals, use_threads
    from embodied.deploy.node import Node

    config = to_dataclass(compose_config("node", arguments))
    use_threads(config.torch_threads)
    contract = contract_of(config.deploy, config.contract)
    if config.task is not None:
        contract.task = config.task
    stop = stop_on_signals()
    bus = make_bus(config.name, config.network, contract)
    clock = make_clock(config)
    node = Node(
        contract, config.schedule, make_inference(config, contract, clock), bus,
        name=config.name, clock=clock, warmup_timeout_s=config.warmup_timeout_s,
    )  # fmt: skip
    hooks = _hooks(node, config)
    node.start()
    print(f"{node.name} on {bus.place}: {node.inference.spec.name}, {contract.rate_hz} Hz", flush=True)
    if config.autostart:
        node.configure()
        for point in node.unchecked:
            print(f"unchecked: {point}", flush=True)
        node.activate()
    if config.seconds is not None:
        timer = threading.Timer(config.seconds, stop.set)
        timer.daemon = True
        timer.start()
    node.spin(stop)
    failure = node.failure()
    if failure is not None:
        traceback.print_exception(failure)
    node.shutdown()
    for hook in hooks:
        hook.close()
    print(f"{node.name} ended: {node.loop.counts['sent']} actions sent, state {node.loop.state.value}", flush=True)
    sys.stdout.flush()
    os._exit(int(failure is not None))  # a hung inference has no claim on the process


def _hooks(node: Node, config: NodeConfig) -> list[Any]:
    """The recorder and the live view that the settings ask for, hooked in."""
    hooks: list[Any] = []
    if config.record is not None:
        from embodied.deploy.record import Recorder

        hooks.append(Recorder(node, Path(config.record), config.schedule))
    if config.view is not None:
        from embodied.deploy.view import LiveView, make_sink

        view = LiveView(make_sink(config.view, node.name))
        node.loop.on_tick = view.attach(node.loop.on_tick, [stream.feature for stream in node.contract.streams])
        hooks.append(view)
    return hooks
