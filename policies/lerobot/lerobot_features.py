"""What a LeRobot policy reads, compared with the item format, and observations in LeRobot's form.

LeRobot gives images as float (B, 3, H, W) in [0, 1], the rest as float32 tensors, and `task` as a list of strings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lerobot.configs import FeatureType

from embodied.protocols import Observation
from embodied.schema import ACTION, ACTION_DIM, IMAGE_KEYS, STATE, STATE_DIM, TASK

IMAGES = ("mirrored", "upright")


@dataclass(frozen=True)
class Features:
    """cameras: the policy's image key -> ours. `image_size`: side of the images that it was trained on, pixels."""

    cameras: Mapping[str, str]
    image_size: int
    mirrored: bool
    state: bool

    def batch(self, observation: Observation) -> dict[str, Any]:
        """A batched observation of the item format -> what LeRobot's preprocessor takes."""
        batch: dict[str, Any] = {TASK: list(observation[TASK])}
        if self.state:
            batch[STATE] = torch.from_numpy(np.asarray(observation[STATE], np.float32))
        for theirs, ours in self.cameras.items():
            frames = np.asarray(observation[ours])
            frames = frames[:, :, ::-1] if self.mirrored else frames
            planes = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
            batch[theirs] = planes.contiguous().float() / 255.0
        return batch


def read_features(config: Any, images: str, cameras: Mapping[str, str]) -> Features:
    """ValueError for features that the item format does not have, with what to do."""
    if images not in IMAGES:
        raise ValueError(f"images should be one of {', '.join(IMAGES)}, got {images!r}")
    action = (config.output_features or {}).get(ACTION)
    if action is None or tuple(action.shape) != (ACTION_DIM,):
        raise ValueError(
            f"the policy should give {ACTION} of shape ({ACTION_DIM},), got {_shapes(config.output_features)}: it was "
            "trained for another robot"
        )
    visual, sizes = [], set()
    for key, feature in (config.input_features or {}).items():
        shape = tuple(feature.shape)
        if feature.type is FeatureType.VISUAL:
            visual.append(key)
            sizes.add(shape[1:])
        elif key != STATE or shape != (STATE_DIM,):
            raise ValueError(
                f"the policy reads {key} of shape {shape}; the item format has {STATE} of shape ({STATE_DIM},) and "
                "images: it was trained on other data"
            )
    state = STATE in (config.input_features or {})
    return Features(_cameras(visual, cameras), _size(sizes), images == "mirrored", state)


def _cameras(visual: list[str], cameras: Mapping[str, str]) -> dict[str, str]:
    """The policy's image keys -> ours."""
    unknown = [key for key in cameras if key not in visual]
    if unknown:
        raise ValueError(f"cameras names {unknown[0]!r}, the policy reads {visual}: correct policy.cameras")
    chosen = {key: cameras.get(key, key) for key in visual}
    for theirs, ours in chosen.items():
        if ours not in IMAGE_KEYS:
            raise ValueError(
                f"the policy's camera {theirs!r} should be one of {', '.join(IMAGE_KEYS)}, got {ours!r}: name it with "
                f"'policy.cameras={{{theirs}: {IMAGE_KEYS[0]}}}'"
            )
    return chosen


def _size(sizes: set[tuple[int, ...]]) -> int:
    """One side for all images: the simulator renders squares of one size."""
    if not sizes:
        return 128
    first = next(iter(sizes))
    if len(sizes) > 1 or len(first) != 2 or first[0] != first[1]:
        raise ValueError(f"the policy should read square images of one size, got {sorted(sizes)}: not supported")
    return int(first[0])


def _shapes(features: Any) -> dict[str, tuple[int, ...]]:
    return {key: tuple(feature.shape) for key, feature in (features or {}).items()}
