"""What policies adds to the registry: allowed `_target_` paths and config dataclasses."""

from __future__ import annotations

from embodied.registry import Registry


def register(registry: Registry) -> None:
    registry.target(
        "policies.bc.model.BehaviourCloning",
        "policies.lerobot.lerobot_policy.LeRobotPolicy",
        "policies.prts.bench.PolicyBench",
        "policies.prts.nano.PRTSNano",
        "policies.prts.qwen3vl.PRTSQwen3VL",
        "policies.reference.random.RandomPolicy",
        "policies.reference.replay.ReplayPolicy",
        "policies.reference.zero.ZeroPolicy",
    )
