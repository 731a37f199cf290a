"""What the small policies see of their cameras: a vision tower's feature maps, frozen and cached or trained with them.

Shapes: B batch, C channels, h w rows and columns of a map.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from embodied.schema import IMAGE_KEYS
from embodied.training.augment import ImageJitter
from embodied.vision import TowerFeatures, TrainedTower, VisionTower

Shape = tuple[int, int, int]


class CameraMaps(nn.Module):
    """The fine and the coarse map of each camera, as entries of a batch named by the tower's columns.

    Frozen (tune false), the maps are read from caches, or computed from the images of a batch that lacks them.
    With tune, images are read and the tower is trained from its public weights on; its weights are then the model's.
    shift, colour: of the images in training, with tune (ImageJitter). dropout: of whole channels of the maps.
    """

    def __init__(
        self,
        vision: str,
        image_size: int,
        tune: bool = False,
        shift: int = 0,
        colour: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not tune and (shift or colour):
            raise ValueError(
                f"shift and colour change images, which a frozen tower's cached maps do not show, got {shift} and "
                f"{colour}: set tune=true, or both to 0"
            )
        frozen = TowerFeatures(VisionTower(vision), IMAGE_KEYS, image_size)
        self._frozen, self.image_size = frozen, image_size
        self.strides = sorted(frozen.tower.strides)
        self.shapes: list[Shape] = [frozen.tower.shape(stride, image_size) for stride in self.strides]
        self.tower = TrainedTower(vision) if tune else None
        self.jitter, self.drop = ImageJitter(shift, colour), nn.Dropout2d(dropout)

    @property
    def features(self) -> TowerFeatures | None:
        """What a cache should hold for this model."""
        return self._frozen if self.tower is None else None

    @property
    def observations(self) -> list[str]:
        """What a training sample holds of the cameras."""
        return list(self._frozen.columns) if self.tower is None else list(IMAGE_KEYS)

    @property
    def compiled(self) -> list[nn.Module]:
        """What `compile=true` compiles: many small kernels on large maps."""
        return [] if self.tower is None else [self.tower]

    def fill(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with the maps of its images, unless it has them."""
        if all(name in batch for name in self._frozen.columns):
            return batch
        images = {key: batch[key] for key in IMAGE_KEYS}
        return {**batch, **self._frozen.maps(images, None if self.tower is None else self._look)}

    def _look(self, images_NHWC: Tensor) -> dict[int, Tensor]:
        assert self.tower is not None
        return self.tower(self.jitter(images_NHWC))

    def forward(self, batch: dict[str, Any], device: torch.device) -> dict[str, list[Tensor]]:
        """Each camera's fine and coarse map (B, C, h, w), float32 on the device."""
        found = self.fill(batch)
        return {
            key: [
                self.drop(found[self._frozen.column(stride, key)].to(device, torch.float32)) for stride in self.strides
            ]
            for key in IMAGE_KEYS
        }
