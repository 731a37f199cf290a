"""What world_models adds to the registry: allowed `_target_` paths and config dataclasses."""

from __future__ import annotations

from embodied.registry import Registry


def register(registry: Registry) -> None:
    registry.target(
        "world_models.persist.actions.FrameActions",
        "world_models.persist.actions.FramePoses",
        "world_models.persist.imagined_env.make_imagined_env",
        "world_models.persist.judged_env.make_judged_env",
        "world_models.persist.nano.PersistNano",
        "world_models.persist.state.PersistState",
        "world_models.persist.success.SuccessClassifier",
        "world_models.persist.svd.PersistSVD",
    )
