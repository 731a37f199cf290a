"""`--policy.type=prts`: LeRobot's settings of PRTS.

A policy folder is a checkpoint of embodied-stack and a LeRobot policy at once: one config.json holds the keys of both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from lerobot.configs import FeatureType, NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig, CosineDecayWithWarmupSchedulerConfig

from embodied.checkpoint import FORMAT, VERSION
from embodied.schema import ACTION, ACTION_DIM, IMAGE_KEYS, STATE, STATE_DIM


class Images(Enum):
    """How images arrive: upright, or upright and mirrored left to right, as LeRobot's LIBERO environment makes them."""

    upright = "upright"
    mirrored = "mirrored"


@PreTrainedConfig.register_subclass("prts")
@dataclass
class PRTSConfig(PreTrainedConfig):
    """preset, overrides: a policy of `embodied train` and Hydra overrides of it, such as policy.backbone.width=96.

    They are composed into `model` once; a saved policy has `model` and takes no overrides. stage: what `lerobot-train`
    trains. data_images, live_images: how images of the training data, and those given for actions, arrive.
    format, version, model, frozen, info: the checkpoint's own keys (embodied/checkpoint.py).
    """

    preset: str = "prts_nano"
    overrides: list[str] = field(default_factory=list)
    stage: str = "joint"
    n_action_steps: int = 5
    data_images: Images = Images.upright
    live_images: Images = Images.mirrored

    optimizer_lr: float = 5e-4
    optimizer_betas: tuple[float, float] = (0.9, 0.95)
    optimizer_weight_decay: float = 0.01
    optimizer_grad_clip_norm: float = 1.0
    scheduler_warmup_steps: int = 500
    scheduler_decay_steps: int = 20_000
    scheduler_decay_lr: float = 0.0

    format: str = FORMAT
    version: int = VERSION
    model: dict[str, Any] = field(default_factory=dict)
    frozen: list[dict[str, Any]] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)

    # The pipeline of the checkpoint normalises (inside the policy); LeRobot's own steps pass everything through.
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(("VISUAL", "STATE", "ACTION"), NormalizationMode.IDENTITY)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model and self.overrides:
            raise ValueError(f"a saved policy has its sizes, got overrides {self.overrides}: leave them out")
        if not self.model:
            self.model, self.overrides = _compose(self.preset, self.overrides), []
        if not 1 <= self.n_action_steps <= self.chunk:
            raise ValueError(f"n_action_steps should lie in 1..{self.chunk} (the chunk), got {self.n_action_steps}")

    @property
    def chunk(self) -> int:
        """Actions that are predicted at once."""
        return int(self.model["method"]["chunk"])

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(self.chunk))

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig(
            lr=self.optimizer_lr,
            betas=self.optimizer_betas,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig:
        return CosineDecayWithWarmupSchedulerConfig(
            num_warmup_steps=self.scheduler_warmup_steps,
            num_decay_steps=self.scheduler_decay_steps,
            peak_lr=self.optimizer_lr,
            decay_lr=self.scheduler_decay_lr,
        )

    def validate_features(self) -> None:
        """ValueError unless both cameras, the state and the action of `embodied.schema` are among the features."""
        found = {key: tuple(feature.shape) for key, feature in {**self.input_features, **self.output_features}.items()}
        cameras = [key for key, feature in self.input_features.items() if feature.type is FeatureType.VISUAL]
        missing = [key for key in IMAGE_KEYS if key not in cameras]
        if missing:
            raise ValueError(
                f"PRTS needs the cameras {', '.join(IMAGE_KEYS)}, got {cameras}: rename yours with "
                f'--rename_map=\'{{"YOURS": "{missing[0]}"}}\''
            )
        for key, size in ((STATE, STATE_DIM), (ACTION, ACTION_DIM)):
            if found.get(key) != (size,):
                raise ValueError(f"PRTS needs {key} of shape ({size},), got {found.get(key)}: see docs/DATA.md")


def _compose(preset: str, overrides: list[str]) -> dict[str, Any]:
    """The model's `_target_` and arguments, resolved."""
    from omegaconf import OmegaConf

    from embodied.config import compose_config

    config = compose_config("train", [f"policy={preset}", *overrides])
    return dict(OmegaConf.to_container(config.policy, resolve=True))  # type: ignore[arg-type]
