"""LeRobot's processors of PRTS: rename, batch axis, device.

Normalising is left to the pipeline inside the policy, which is the one that training, evaluation and the robot of
embodied-stack use; the normaliser steps stay, as identities, because lerobot-train sets them by name.
"""

from __future__ import annotations

from typing import Any

from lerobot.processor import make_default_pre_post_processors

from lerobot_policy_prts.configuration_prts import PRTSConfig


def make_prts_pre_post_processors(config: PRTSConfig, dataset_stats: Any = None) -> tuple[Any, Any]:  # noqa: ARG001
    """LeRobot finds this function by its name. `dataset_stats` go to the policy, not here."""
    return make_default_pre_post_processors(config, None)
