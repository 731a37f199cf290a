"""Records the topics of a contract from the bus into an MCAP bag, without a policy.

    embodied record out=FOLDER deploy=libero_sim seconds=60
    embodied record out=FOLDER contract=my_robot.yaml network.interface=eth0

The bag is a ROS 2 bag (rosbag2, MCAP). `embodied node record=FOLDER` records what a node took and did instead.
SIGTERM or Ctrl-C ends it cleanly.
"""

from __future__ import annotations

from pathlib import Path

from embodied.registry import Registry


def register(registry: Registry) -> None:
    from embodied.deploy.config import RecordConfig

    registry.schema(None, "record_schema", RecordConfig)


def run(arguments: list[str]) -> int:
    from embodied.config import compose_config, to_dataclass
    from embodied.deploy.config import contract_of, make_bus, stop_on_signals
    from embodied.deploy.record import TopicRecorder

    config = to_dataclass(compose_config("record", arguments))
    contract = contract_of(config.deploy, config.contract)
    stop = stop_on_signals()
    bus = make_bus("record", config.network, contract)
    recorder = TopicRecorder(contract, bus, Path(config.out))
    bus.start()
    print(f"recording {', '.join(recorder.topics)} on {bus.place} into {config.out}", flush=True)
    stop.wait(config.seconds)
    bus.stop()
    recorder.close()
    print(f"recorded {recorder.count} messages, {recorder.lost} lost", flush=True)
    return 0
