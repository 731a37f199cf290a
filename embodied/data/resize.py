"""Images at the training size. Equal sizes are copied bit for bit."""

from __future__ import annotations

from enum import Enum

import numpy as np


class Fit(Enum):
    """What happens to another aspect ratio: black bars, the centre cut out, or a distorted image."""

    pad = "pad"
    crop = "crop"
    stretch = "stretch"


def resize_frames(frames: np.ndarray, size: tuple[int, int], fit: Fit = Fit.pad) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 -> (T, *size, 3) uint8, antialiased bilinear, centred."""
    if frames.shape[1:3] == size:
        return frames
    height, width = size
    scales = (height / frames.shape[1], width / frames.shape[2])
    if fit is Fit.stretch:
        return _interpolate(frames, size)
    scale = min(scales) if fit is Fit.pad else max(scales)
    inner = (max(1, round(frames.shape[1] * scale)), max(1, round(frames.shape[2] * scale)))
    scaled = _interpolate(frames, inner)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    if fit is Fit.crop:
        return scaled[:, -top : -top + height, -left : -left + width]
    result = np.zeros((len(frames), height, width, 3), np.uint8)
    result[:, top : top + inner[0], left : left + inner[1]] = scaled
    return result


def _interpolate(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    import torch
    from torch.nn import functional

    planes = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    scaled = functional.interpolate(planes, size=size, mode="bilinear", antialias=True, align_corners=False)
    return scaled.permute(0, 2, 3, 1).contiguous().numpy()
