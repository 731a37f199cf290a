"""Replays a recording of `embodied node record=FOLDER` and compares every action, byte for byte.

    embodied replay bag=FOLDER policy=checkpoint policy.path=FOLDER

Messages, clock and the ticks at which inferences were answered come from the bag; the policy is asked anew. Exit
status 0: all actions are equal; 1: some differ, and the first are named.
"""

from __future__ import annotations

from pathlib import Path

from embodied.registry import Registry


def register(registry: Registry) -> None:
    from embodied.deploy.config import ReplayConfig

    registry.schema(None, "replay_schema", ReplayConfig)


def run(arguments: list[str]) -> int:
    from embodied.config import compose_config, to_dataclass
    from embodied.deploy.config import use_threads
    from embodied.deploy.replay import replay_bag
    from embodied.registry import build

    config = to_dataclass(compose_config("replay", arguments))
    use_threads(config.torch_threads)
    result = replay_bag(Path(config.bag), build(config.policy))
    print(f"{result.ticks} ticks, {result.actions} actions; {len(result.differences)} differences named")
    for difference in result.differences:
        print(f"  {difference}")
    if result.lost:
        print(f"the recording dropped {result.lost} messages: it cannot replay exactly")
    return int(bool(result.differences))
