"""Success inside a world model: what the classifier sees in several frames in a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from embodied import schema
from embodied.checkpoint import load_checkpoint
from embodied.data.resize import resize_frames

Images = Mapping[str, np.ndarray]


class Judge:
    """Success once `patience` frames in a row are done with more than `threshold`.

    `probability`: images (H, W, 3) uint8 by camera and the instruction -> that the task is done.
    """

    def __init__(self, probability: Callable[[Images, str], float], threshold: float = 0.5, patience: int = 3) -> None:
        if not 0 <= threshold <= 1 or patience < 1:
            raise ValueError(f"threshold should lie in 0..1 and patience be 1 or more, got {threshold} and {patience}")
        self.probability, self.threshold, self.patience = probability, threshold, patience
        self.begin("")

    def begin(self, instruction: str) -> None:
        """A new episode."""
        self.instruction, self.success = instruction, False
        self._in_a_row = 0

    def see(self, images: Images) -> bool:
        """The next frame; whether the episode has succeeded by now."""
        done = self.probability(images, self.instruction) > self.threshold
        self._in_a_row = self._in_a_row + 1 if done else 0
        self.success = self.success or self._in_a_row >= self.patience
        return self.success


def load_judge(classifier: str, threshold: float, patience: int, device: str = "cpu") -> Judge:
    """By a checkpoint of the success classifier."""
    model = load_checkpoint(classifier, device).model

    def probability(images: Images, instruction: str) -> float:
        batch: dict[str, Any] = {
            key: torch.from_numpy(np.array(value))[None].to(device) for key, value in images.items()
        }
        return float(model.probability({**batch, schema.TASK: [instruction]}))

    return Judge(probability, threshold, patience)


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) -> (size, size, 3)."""
    return resize_frames(image[None], (size, size))[0]
