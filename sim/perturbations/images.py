"""Image corruptions in ten severities: image (H, W, 3) uint8 -> the same, seeded.

Strengths are given for 128 pixels and scale with the image, so that a corruption looks the same at every size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Corruption = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def corrupt(image: np.ndarray, kind: str, severity: float, rng: np.random.Generator) -> np.ndarray:
    """One corruption at severity 1..10. ValueError for an unknown kind."""
    if kind not in CORRUPTIONS:
        raise ValueError(f"noise should be one of {', '.join(CORRUPTIONS)}, got {kind!r}")
    changed = CORRUPTIONS[kind](image.astype(np.float64) / 255, severity, rng)
    return np.round(np.clip(changed, 0, 1) * 255).astype(np.uint8)


def _pixels(image: np.ndarray, at_128: float) -> float:
    return at_128 * image.shape[0] / 128


def _gaussian_noise(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    return image + rng.normal(0, 0.02 * severity, image.shape)


def _gaussian_blur(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:  # noqa: ARG001
    from scipy.ndimage import gaussian_filter

    sigma = _pixels(image, 0.3 * severity)
    return gaussian_filter(image, (sigma, sigma, 0), mode="nearest")


def _motion_blur(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Mean of copies shifted along a line of random direction."""
    from scipy.ndimage import shift

    angle, length = rng.uniform(0, np.pi), _pixels(image, 1.0 * severity)
    along = np.linspace(-length / 2, length / 2, 2 * int(np.ceil(length)) + 1)
    steps = [(s * np.sin(angle), s * np.cos(angle), 0) for s in along]
    return np.mean([shift(image, step, order=1, mode="nearest") for step in steps], axis=0)


def _zoom_blur(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:  # noqa: ARG001
    from scipy.ndimage import affine_transform

    centre = np.array([(image.shape[0] - 1) / 2, (image.shape[1] - 1) / 2, 0])
    layers = []
    for zoom in np.linspace(1, 1 + 0.03 * severity, 8):
        scale = np.array([1 / zoom, 1 / zoom, 1])
        layers.append(affine_transform(image, scale, offset=centre - scale * centre, order=1, mode="nearest"))
    return np.mean(layers, axis=0)


def _fog(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """A cloudy white layer: sums of smoothed noise over five octaves."""
    from scipy.ndimage import zoom

    height, width = image.shape[:2]
    cloud = np.zeros((height, width))
    for octave in range(5):
        coarse = rng.uniform(size=(2 + 2**octave, 2 + 2**octave))
        factors = (height / coarse.shape[0], width / coarse.shape[1])
        cloud += zoom(coarse, factors, order=1, grid_mode=True, mode="nearest") / 2**octave
    cloud = (cloud - cloud.min()) / np.ptp(cloud)
    density = 0.08 * severity * (0.5 + 0.5 * cloud)
    return image * (1 - density[..., None]) + density[..., None]


def _glass_blur(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Every pixel is taken from a random place nearby, then slightly blurred."""
    reach = _pixels(image, 0.3 + 0.4 * severity)
    height, width = image.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    rows = np.clip(np.round(rows + rng.uniform(-reach, reach, rows.shape)), 0, height - 1).astype(int)
    columns = np.clip(np.round(columns + rng.uniform(-reach, reach, columns.shape)), 0, width - 1).astype(int)
    return _gaussian_blur(image[rows, columns], 1.0, rng)


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": _gaussian_noise,
    "gaussian_blur": _gaussian_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "fog": _fog,
    "glass_blur": _glass_blur,
}
