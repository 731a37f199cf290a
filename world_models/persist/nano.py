"""`world_model=persist_nano`: PersistWorld for two CPU cores. Small images, a linear patch codec, a small U-Net."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from embodied.schema import IMAGE_KEYS
from world_models.persist.codec import CameraLatents, PatchCodec
from world_models.persist.unet import make_unet
from world_models.persist.world import ActionEncoder, PersistWorld, Settings


@dataclass
class NanoConfig:
    """Sizes. size: height and width of a camera's image; channels, attend: of the U-Net's levels, finest first."""

    cameras: list[str] = field(default_factory=lambda: list(IMAGE_KEYS))
    size: list[int] = field(default_factory=lambda: [64, 64])
    patch: int = 4
    latent: int = 16
    power: float = 0.5
    channels: list[int] = field(default_factory=lambda: [32, 64, 96])
    attend: list[bool] = field(default_factory=lambda: [False, False, True])
    layers: int = 1
    heads: int = 4


class ImageSpace(CameraLatents):
    """The patch codec's latents; needs the cameras' images."""

    @property
    def keys(self) -> list[str]:
        return self.cameras


class StackedUNet(nn.Module):
    """Frames and the current frame, joined along the channels, with where each cell lies (x, y, camera)."""

    place: Tensor
    unet: Any

    def __init__(self, config: NanoConfig, space: CameraLatents, width: int, frames: int) -> None:
        super().__init__()
        channels, height, side = space.shape
        cameras = len(config.cameras)
        sizes = {"channels": config.channels, "attend": config.attend, "layers": config.layers, "heads": config.heads}
        self.unet = make_unet(2 * channels + 3, channels, width, frames, sizes)
        y = torch.linspace(-1, 1, height // cameras)[:, None].expand(-1, side).repeat(cameras, 1)
        x = torch.linspace(-1, 1, side).expand(height, -1)
        camera = torch.linspace(-1, 1, cameras).repeat_interleave(height // cameras)[:, None].expand(-1, side)
        self.register_buffer("place", torch.stack([x, y, camera]), persistent=False)

    def forward(self, frames: Tensor, current: Tensor, level_B: Tensor, tokens: Tensor) -> Tensor:
        batch, count = frames.shape[:2]
        current = current[:, None].expand(-1, count, -1, -1, -1)
        place = self.place.expand(batch, count, -1, -1, -1)
        return self.unet(torch.cat([frames, current, place], dim=2), level_B, tokens)


class PersistNano(PersistWorld):
    """A TrainableModel; see configs/world_model/persist_nano.yaml."""

    def __init__(self, nano: Settings = None, lora: Settings = None, **settings: Settings) -> None:
        super().__init__(**settings)
        self.nano = NanoConfig(**(nano or {}))
        codec = PatchCodec(self.nano.patch, self.nano.latent, self.nano.power)
        self.space = ImageSpace(codec, self.nano.cameras, self.nano.size)
        width = self.world.action_width
        self.action_encoder = ActionEncoder(self.frame_actions.width, width, relative=True)
        self.network = StackedUNet(self.nano, self.space, width, self.memory.frames)
        self._finish(lora)

    def config(self) -> dict[str, Any]:
        return {"nano": asdict(self.nano), **self.base_config()}
