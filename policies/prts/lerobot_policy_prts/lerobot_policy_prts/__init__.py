"""PRTS as a LeRobot policy. Importing this package registers `--policy.type=prts`; LeRobot does so by itself."""

from lerobot_policy_prts.configuration_prts import PRTSConfig
from lerobot_policy_prts.modeling_prts import PRTSPolicy
from lerobot_policy_prts.processor_prts import make_prts_pre_post_processors

__all__ = ["PRTSConfig", "PRTSPolicy", "make_prts_pre_post_processors"]
