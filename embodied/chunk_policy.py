"""Any chunk-predicting model as a Policy: pipeline in, model, pipeline's inverse out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from embodied.data.video_loss import parse_codec, through_codec
from embodied.protocols import Episode, Observation, PolicySpec
from embodied.schema import ACTION, ACTION_DIM
from embodied.transforms import Pipeline


class ChunkModel(Protocol):
    """A torch module that predicts normalised action chunks."""

    chunk: int
    image_keys: tuple[str, ...]
    image_size: int

    def predict(self, batch: dict[str, Any]) -> torch.Tensor:
        """Observation after the pipeline, tensors (B, ...) -> actions (B, chunk, action_dim)."""
        ...


class ChunkPolicy:
    """Stateless between calls: every `act` sees one observation and gives one chunk.

    A model's `codec` ("libx264:30") names what its training images were stored with; observed ones go through it first.
    """

    def __init__(
        self, model: ChunkModel, pipeline: Pipeline, name: str, digest: str, replan: int, device: str = "cpu"
    ) -> None:
        if not 1 <= replan <= model.chunk:
            raise ValueError(f"replan should lie in 1..{model.chunk} (the chunk), got {replan}")
        self.model, self.pipeline, self.device = model, pipeline, torch.device(device)
        self.codec = parse_codec(getattr(model, "codec", ""))
        self.spec = PolicySpec(
            name=name,
            digest=digest,
            chunk=model.chunk,
            replan=replan,
            action_dim=ACTION_DIM,
            image_keys=tuple(model.image_keys),
            image_size=model.image_size,
        )

    def reset(self, slots: Sequence[int], episodes: Sequence[Episode]) -> None:
        """Nothing is carried from one call to the next."""

    def act(self, observation: Observation, slots: Sequence[int]) -> np.ndarray:  # noqa: ARG002
        batch = self.read(observation)
        with torch.inference_mode():
            actions = self.model.predict(batch).float().cpu().numpy()
        return np.clip(self.pipeline.inverse_action(actions, ACTION), -1.0, 1.0).astype(np.float32)

    def read(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """An observation (and actions) as the model's batch, images (B, H, W, 3) as training data would show them."""
        if self.codec is not None:
            item = {**item, **{key: through_codec(item[key], self.codec) for key in self.spec.image_keys}}
        return to_tensors(self.pipeline.forward(item), self.device)


def to_tensors(item: Mapping[str, Any], device: torch.device | str = "cpu") -> dict[str, Any]:
    """Numeric arrays as tensors on the device; everything else as it is."""
    return {key: _tensor(value, device) for key, value in item.items()}


def _tensor(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(np.ascontiguousarray(value)).to(device, non_blocking=True)
    return value
