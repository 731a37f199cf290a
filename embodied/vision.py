"""Vision towers: images to feature maps, frozen or trained on with a model. timm is imported on first use.

Shapes: N images, H W pixels, C channels of a map, h w its cells.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embodied.frozen import frozen_weights, locate

Look = Callable[[torch.Tensor], dict[int, torch.Tensor]]  # images (N, H, W, 3) -> {stride: (N, C, h, w)}

# Architecture in timm, the blocks that are kept, {stride: (index among timm's features, channels)}, input mean and std.
TOWERS: dict[str, dict[str, Any]] = {
    "efficientnet-lite0": {
        "timm": "tf_efficientnet_lite0",
        "stages": 5,
        "maps": {8: (2, 40), 16: (3, 112)},
        "mean": 0.5,
        "std": 0.5,
    }
}


class VisionTower:
    """Feature maps of a frozen network at the given strides. Loads its weights at the first call.

    Raises ValueError for an unknown name or stride, and when the weights are not installed as named.
    """

    def __init__(self, name: str = "efficientnet-lite0", strides: tuple[int, ...] = (8, 16)) -> None:
        self.weights = frozen_weights(name)
        if name not in TOWERS or any(stride not in TOWERS[name]["maps"] for stride in strides):
            raise ValueError(
                f"vision tower should be one of {', '.join(TOWERS)} at strides 8 and 16, got {name} {strides}"
            )
        self.name, self.strides = name, tuple(strides)
        self._settings = TOWERS[name]
        self._network: torch.nn.Module | None = None
        self._device = torch.device("cpu")

    @property
    def digest(self) -> str:
        """Names what the features are computed by: weights, map and input scaling."""
        content = json.dumps([self.weights.to_json(), self._settings], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def shape(self, stride: int, image_size: int) -> tuple[int, int, int]:
        """(C, h, w) of the map at this stride."""
        cells = -(-image_size // stride)
        return self._settings["maps"][stride][1], cells, cells

    @torch.inference_mode()
    def __call__(self, images: np.ndarray | torch.Tensor, batch: int = 32) -> dict[int, torch.Tensor]:
        """Images (N, H, W, 3) uint8, upright RGB -> {stride: float32 (N, C, h, w)} on the tower's device."""
        images = _as_tensor(images)
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != torch.uint8:
            raise ValueError(f"images should be uint8 (N, H, W, 3), got {images.dtype} {tuple(images.shape)}")
        network = self._load()
        parts = [self._maps(network, images[i : i + batch]) for i in range(0, len(images), batch)]
        return {stride: torch.cat([part[stride] for part in parts]) for stride in self.strides}

    def to(self, device: torch.device | str) -> VisionTower:
        self._device = torch.device(device)
        if self._network is not None:
            self._network.to(self._device)
        return self

    def _maps(self, network: torch.nn.Module, images: torch.Tensor) -> dict[int, torch.Tensor]:
        maps = _all_maps(network, self._settings, images.to(self._device))
        return {stride: maps[stride] for stride in self.strides}

    def _load(self) -> torch.nn.Module:
        if self._network is None:
            with torch.random.fork_rng(devices=[]):  # a network made on first use draws nothing from the caller's
                network = _network(self._settings)
            _load_public(network, self._settings, next(iter(locate(self.name).values())))
            self._network = network.eval().requires_grad_(False).to(self._device)
        return self._network


class TrainedTower(torch.nn.Module):
    """A tower's network as part of a model: its weights go on from the public ones, and are the model's own.

    Batch norms keep the public statistics, in training too. Raises ValueError as VisionTower does.
    """

    def __init__(self, name: str = "efficientnet-lite0") -> None:
        super().__init__()
        if name not in TOWERS:
            raise ValueError(f"vision tower should be one of {', '.join(TOWERS)}, got {name}")
        self._settings = TOWERS[name]
        with torch.random.fork_rng(devices=[]):
            self.network = _network(self._settings)
        if not next(self.network.parameters()).is_meta:  # a model that is only measured has no weights
            _load_public(self.network, self._settings, next(iter(locate(name).values())))
        self.network.eval()

    def train(self, mode: bool = True) -> TrainedTower:
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, images_NHWC: torch.Tensor) -> dict[int, torch.Tensor]:
        """Images (N, H, W, 3) in 0..255, any dtype -> {stride: float32 (N, C, h, w)}."""
        return _all_maps(self.network, self._settings, images_NHWC)


def _all_maps(network: torch.nn.Module, settings: dict[str, Any], images_NHWC: torch.Tensor) -> dict[int, torch.Tensor]:
    """Images (N, H, W, 3) in 0..255 on the network's device -> {stride: float32 (N, C, h, w)}."""
    x = images_NHWC.permute(0, 3, 1, 2).float() / 255.0  # the view stays channels-last
    maps = network((x - settings["mean"]) / settings["std"])
    return {stride: maps[position].float() for position, stride in enumerate(sorted(settings["maps"]))}


def _network(settings: dict[str, Any]) -> torch.nn.Module:
    """timm's network, cut after the last stage that is read."""
    import timm

    indices = tuple(index for index, _ in settings["maps"].values())
    network: Any = timm.create_model(settings["timm"], pretrained=False, features_only=True, out_indices=indices)
    network.blocks = network.blocks[: settings["stages"]]
    return network.to(memory_format=torch.channels_last)


def _load_public(network: torch.nn.Module, settings: dict[str, Any], path: Path) -> None:
    """The package's weights into a network of `_network`."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    # The package uses other names for the same modules in the same order; shapes are compared one by one.
    values = [value for key, value in saved.items() if not key.endswith("num_batches_tracked")]
    wanted = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    state = dict(zip(wanted, values, strict=False))
    wrong = [key for key, value in wanted.items() if state[key].shape != value.shape]
    if wrong:
        raise ValueError(f"{path}: weights should have the shapes of timm's {settings['timm']}, {wrong[0]} differs")
    network.load_state_dict(state, strict=False)


def _as_tensor(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    """A tensor; read-only arrays (memory maps) are copied first."""
    return images if isinstance(images, torch.Tensor) else torch.from_numpy(np.require(images, requirements="W"))


class TowerFeatures:
    """A tower's maps of several cameras as per-frame float16 columns, named TOWER.sSTRIDE.CAMERA."""

    def __init__(self, tower: VisionTower, cameras: tuple[str, ...], image_size: int) -> None:
        self.tower, self.cameras, self.image_size = tower, cameras, image_size
        self.digest = tower.digest
        self.columns = {
            self.column(stride, camera): tower.shape(stride, image_size)
            for camera in cameras
            for stride in tower.strides
        }

    def column(self, stride: int, camera: str) -> str:
        return f"{self.tower.name}.s{stride}.{camera}"

    def compute(self, images: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Images (N, H, W, 3) uint8 by camera -> {column: float16 (N, C, h, w)}."""
        return {name: value.half().cpu().numpy() for name, value in self.maps(images).items()}

    def maps(
        self, images: Mapping[str, np.ndarray | torch.Tensor], look: Look | None = None
    ) -> dict[str, torch.Tensor]:
        """As `compute`, float32 tensors on the tower's device; all cameras in one pass, by `look` instead if given."""
        stacked = torch.cat([_as_tensor(images[camera]) for camera in self.cameras])
        if stacked.shape[1:3] != (self.image_size, self.image_size):
            raise ValueError(f"images should be {self.image_size} x {self.image_size}, got {tuple(stacked.shape[1:3])}")
        parts = {stride: maps.chunk(len(self.cameras)) for stride, maps in (look or self.tower)(stacked).items()}
        return {
            self.column(stride, camera): parts[stride][i]
            for i, camera in enumerate(self.cameras)
            for stride in self.tower.strides
        }
