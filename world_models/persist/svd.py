"""`world_model=persist_svd`: the size of the paper. Stable Video Diffusion's networks, Ctrl-World's inputs.

The hub's weights come under Stability AI's Community License (non-commercial use is free, other use has conditions);
it is shown before anything is fetched and must be accepted in the settings. Tests use a tiny random architecture.
The U-Net is trained; the autoencoder is frozen and is no part of the state.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from embodied.schema import IMAGE, WRIST_IMAGE
from world_models.persist.codec import CameraLatents, VaeCodec
from world_models.persist.unet import ActionUNet
from world_models.persist.world import ActionEncoder, PersistWorld, Settings

LICENCE = """{weights} is licensed by Stability AI, not by this project: the Stability AI Community License
(https://stability.ai/license). Research and non-commercial use is free; commercial use has conditions, and what is made
from the weights carries them on. Read it, then add world_model.svd.accept_licence=true."""


@dataclass
class SVDConfig:
    """weights: hub name or folder with `unet` and `vae`; None: random, of the sizes in `architecture` (unet, vae).

    accept_licence: that the licence of hub weights was read.
    """

    cameras: list[str] = field(default_factory=lambda: [IMAGE, "observation.images.image3", WRIST_IMAGE])
    size: list[int] = field(default_factory=lambda: [192, 320])
    weights: str | None = "stabilityai/stable-video-diffusion-img2vid"
    revision: str = "main"
    accept_licence: bool = False
    architecture: dict[str, Any] | None = None
    gradient_checkpointing: bool = True


class SVDSpace(CameraLatents):
    """The autoencoder's latents; its weights stay out of the model's state."""

    @property
    def keys(self) -> list[str]:
        return self.cameras


class ConcatenatedUNet(nn.Module):
    """Frames joined with the current frame along the channels, as SVD has its image."""

    unet: Any

    def __init__(self, unet: ActionUNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, frames: Tensor, current: Tensor, level_B: Tensor, tokens: Tensor) -> Tensor:
        current = current[:, None].expand(-1, frames.shape[1], -1, -1, -1)
        dtype = self.unet.conv_in.weight.dtype
        sample = torch.cat([frames, current], dim=2).to(dtype)
        return self.unet(sample, level_B.to(dtype), tokens.to(dtype)).to(frames.dtype)


class PersistSVD(PersistWorld):
    """A TrainableModel; see configs/world_model/persist_svd.yaml."""

    def __init__(self, svd: Settings = None, lora: Settings = None, **settings: Settings) -> None:
        super().__init__(**settings)
        self.svd = SVDConfig(**(svd or {}))
        unet, vae = _random(self.svd) if self.svd.weights is None else _from_hub(self.svd)
        self.space = SVDSpace(VaeCodec(vae), self.svd.cameras, self.svd.size)
        width = int(unet.config["cross_attention_dim"])
        self.action_encoder = ActionEncoder(self.frame_actions.width, width, relative=False)
        self.network = ConcatenatedUNet(unet)
        if self.svd.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        self._finish(lora)

    def config(self) -> dict[str, Any]:
        return {"svd": asdict(self.svd), **self.base_config()}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        state = super().state_dict(*args, **kwargs)
        return {key: value for key, value in state.items() if self._stored(key)}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        differing = sorted(set(state_dict) ^ set(self.state_dict()))
        if strict and differing:
            raise ValueError(f"weights should be those of this model's state, {differing[0]} differs")
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def _stored(self, key: str) -> bool:
        """Hub weights of the autoencoder are fetched again; a random one has to be kept."""
        return self.svd.weights is None or not key.startswith("space.codec.vae.")


def _random(config: SVDConfig) -> tuple[ActionUNet, Any]:
    from diffusers import AutoencoderKLTemporalDecoder

    if config.architecture is None:
        raise ValueError("a random SVD needs `architecture` with the sizes of unet and vae, got none")
    return ActionUNet(**config.architecture["unet"]), AutoencoderKLTemporalDecoder(**config.architecture["vae"])


def _from_hub(config: SVDConfig) -> tuple[ActionUNet, Any]:
    """U-Net and autoencoder of the hub. ValueError, with the licence, until it is accepted."""
    from diffusers import AutoencoderKLTemporalDecoder

    assert config.weights is not None
    text = LICENCE.format(weights=config.weights)
    if not config.accept_licence:
        raise ValueError(text)
    print(text.partition(" Read it")[0], file=sys.stderr)
    named: dict[str, Any] = {"revision": config.revision, "use_safetensors": True}
    with _on_cpu():
        unet = ActionUNet.from_pretrained(config.weights, subfolder="unet", **named)
        vae = AutoencoderKLTemporalDecoder.from_pretrained(config.weights, subfolder="vae", **named)
    return unet, vae


@contextmanager
def _on_cpu() -> Iterator[None]:
    """Weights are read for real even where a checkpoint's header is only being compared."""
    with torch.device("cpu"):
        yield
