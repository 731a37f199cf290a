"""Between images and the latents that diffusion works on. Frozen once training begins.

`PatchCodec`, for small models: principal components of square patches, fitted on training frames; linear, exact up to
the components that are left out, and some thousand multiplications a frame. `VaeCodec`: SVD's autoencoder.
Several cameras are stacked along the height (Ctrl-World).

Shapes: N images, V cameras, H W pixels of a camera, C latent channels, h w latent cells of a camera, P patch side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, interpolate


def to_pixels(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (N, H', W', 3) uint8 -> (N, 3, H, W) in [-1, 1]; averaged over areas where that is exact."""
    x = images.permute(0, 3, 1, 2).float() / 127.5 - 1.0
    if x.shape[-2:] == size:
        return x
    if x.shape[-2] % size[0] == 0 and x.shape[-1] % size[1] == 0:
        return interpolate(x, size=size, mode="area")
    return interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False)


def to_images(pixels: Tensor) -> Tensor:
    """(N, 3, H, W) in [-1, 1] -> (N, H, W, 3) uint8."""
    return ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


class PatchCodec(nn.Module):
    """The first `channels` principal components of P x P x 3 patches, each scaled by its deviation to a power.

    power 1 makes all components equally large, 0 leaves them as they are; the whole has a mean square of 1.
    """

    mean: Tensor
    basis: Tensor
    scale: Tensor

    def __init__(self, patch: int = 4, channels: int = 16, power: float = 0.5) -> None:
        super().__init__()
        if not 1 <= channels <= 3 * patch * patch:
            raise ValueError(f"channels should lie in 1..{3 * patch * patch} for patches of {patch}, got {channels}")
        self.patch, self.channels, self.power = patch, channels, power
        self.register_buffer("mean", torch.zeros(3, patch, patch))
        self.register_buffer("basis", torch.zeros(channels, 3, patch, patch))
        self.register_buffer("scale", torch.ones(channels))

    @torch.no_grad()
    def fit(self, pixels: Tensor) -> None:
        """From pixels (N, 3, H, W)."""
        p = self.patch
        rows = nn.functional.unfold(pixels, p, stride=p).transpose(1, 2).reshape(-1, 3 * p * p).double()
        mean = rows.mean(0)
        values, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
        chosen = values.argsort(descending=True)[: self.channels]
        deviation = values[chosen].clamp(min=1e-8).sqrt()
        scale = deviation**self.power
        scale = scale * ((deviation / scale).square().mean().sqrt())
        self.mean.copy_(mean.view(3, p, p))
        self.basis.copy_(vectors[:, chosen].T.reshape(-1, 3, p, p))
        self.scale.copy_(scale)

    def encode(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, C, H / P, W / P)."""
        mean = self.mean.repeat(1, pixels.shape[-2] // self.patch, pixels.shape[-1] // self.patch)
        return conv2d(pixels - mean, self.basis, stride=self.patch) / self.scale.view(-1, 1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        x = conv_transpose2d(latents.float() * self.scale.view(-1, 1, 1), self.basis, stride=self.patch)
        return x + self.mean.repeat(1, latents.shape[-2], latents.shape[-1])


class VaeCodec(nn.Module):
    """A frozen AutoencoderKLTemporalDecoder of diffusers; `batch` images at a time."""

    vae: Any

    def __init__(self, vae: Any, batch: int = 8) -> None:
        super().__init__()
        self.vae, self.batch = vae.eval().requires_grad_(False), batch
        self.channels = vae.config.latent_channels
        self.patch = 2 ** (len(vae.config.block_out_channels) - 1)

    def fit(self, pixels: Tensor) -> None:
        """Nothing to fit: the weights are given."""

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        factor, dtype = self.vae.config.scaling_factor, next(self.vae.parameters()).dtype
        parts = [self.vae.encode(part.to(dtype)).latent_dist.mode() for part in pixels.split(self.batch)]
        return (torch.cat(parts) * factor).to(pixels.dtype)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        dtype = next(self.vae.parameters()).dtype
        parts = (latents / self.vae.config.scaling_factor).to(dtype).split(self.batch)
        return torch.cat([self.vae.decode(part, num_frames=len(part)).sample for part in parts]).float()


class CameraLatents(nn.Module):
    """Frames of several cameras <-> latents stacked along the height."""

    codec: Any
    shape: tuple[int, int, int]

    def __init__(self, codec: Any, cameras: list[str], size: list[int]) -> None:
        super().__init__()
        self.codec, self.cameras, self.size = codec, list(cameras), (int(size[0]), int(size[1]))
        if not cameras or any(side % codec.patch for side in self.size):
            raise ValueError(f"a size should be a multiple of {codec.patch} and cameras some, got {size}, {cameras}")
        self.shape = (codec.channels, len(cameras) * self.size[0] // codec.patch, self.size[1] // codec.patch)

    def frames(self, batch: Mapping[str, Any]) -> Tensor:
        """Camera images (B, T, H', W', 3) -> pixels (B, T, V, 3, H, W)."""
        views = [batch[camera] for camera in self.cameras]
        pixels = [to_pixels(view.flatten(0, 1), self.size).unflatten(0, view.shape[:2]) for view in views]
        return torch.stack(pixels, dim=2)

    @torch.no_grad()
    def fit(self, batch: Mapping[str, Any]) -> None:
        self.codec.fit(self.frames(batch).flatten(0, 2))

    @torch.no_grad()
    def encode(self, batch: Mapping[str, Any]) -> Tensor:
        """Camera images (B, T, H', W', 3) -> latents (B, T, C, V * h, w)."""
        frames = self.frames(batch)
        latents = self.codec.encode(frames.flatten(0, 2)).unflatten(0, frames.shape[:3])
        return torch.cat(latents.unbind(2), dim=3)

    def pixels(self, latents: Tensor) -> Tensor:
        """Latents (B, T, C, V * h, w) -> pixels (B, T, V, 3, H, W)."""
        views = torch.stack(latents.chunk(len(self.cameras), dim=3), dim=2)
        return self.codec.decode(views.flatten(0, 2)).unflatten(0, views.shape[:3])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> dict[str, Tensor]:
        """Latents -> camera images (B, T, H, W, 3) uint8."""
        pixels = self.pixels(latents)
        return {
            camera: to_images(pixels[:, :, i].flatten(0, 1)).unflatten(0, pixels.shape[:2])
            for i, camera in enumerate(self.cameras)
        }
