"""Collects demonstrations, checks the data set, evaluates policies and writes one report, in minutes.

    embodied demo
    embodied demo suite=robosuite episodes=5 videos=4

Runs on libero_object where LIBERO's assets are (`embodied doctor` says), else on robosuite, which needs no download.

suite=NAME             libero_object or robosuite, whatever is found
demonstrations=2       of each task; episodes=3 of each task and policy; videos=3 of each policy
policies=[...]         prts (the shipped checkpoint, with its value), expert, replay and random
imagined=0             leaves out the world model, which imagines some of the first policy's episodes again
workers=2              simulator processes
run=FOLDER             an interrupted demo goes on there (runs/demo/TIME)

The last line is the report's path.
"""

from __future__ import annotations

import shlex

from embodied.registry import Registry


def register(registry: Registry) -> None:
    from embodied.demo import DemoConfig

    registry.schema(None, "demo_schema", DemoConfig)


def run(arguments: list[str]) -> int:
    from embodied.config import compose_config, to_dataclass
    from embodied.demo import demo

    config = to_dataclass(compose_config("demo", arguments))
    print(f"\n{demo(config, shlex.join(['embodied', 'demo', *arguments]))}")
    return 0
