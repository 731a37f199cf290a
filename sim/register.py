"""What sim adds to the registry: allowed `_target_` paths and config dataclasses."""

from __future__ import annotations

from embodied.registry import Registry


def register(registry: Registry) -> None:
    registry.target(
        "sim.make.make_env",
        "sim.expert.expert.Expert",
        "sim.tasks.tasks",
        "sim.tasks.count_init_states",
        "sim.goals.other_goals",
        "sim.libero_setup.find_assets",
        "sim.bench.SimBench",
    )
    registry.check("sim.doctor.checks")
