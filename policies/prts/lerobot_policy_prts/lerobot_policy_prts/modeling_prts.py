"""PRTS behind LeRobot's policy interface: the model, pipeline and losses of embodied-stack, nothing of its own.

Batches come as LeRobot's processors leave them: images (B, 3, H, W) in [0, 1], state (B, 8), action (B, chunk, 7), all
in physical units. They become the item format, go through the checkpoint's pipeline, and actions come back through its
inverse.

Shapes: B samples, H steps of a chunk, A action channels.
"""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from embodied.checkpoint import CONFIG, PIPELINE, STATISTICS, build_model, load_weights, read_json
from embodied.chunk_policy import to_tensors
from embodied.data.resize import resize_frames
from embodied.frozen import check_named
from embodied.schema import ACTION, IMAGE_KEYS, STATE, TASK
from embodied.transforms import Pipeline
from lerobot_policy_prts.configuration_prts import Images, PRTSConfig
from lerobot_policy_prts.dataset import Labels, plain_statistics
from lerobot_policy_prts.folder import FILES, write_folder


class PRTSPolicy(PreTrainedPolicy):
    """`model` is policies.prts's; `pipeline` is bound to the data set's statistics, or the checkpoint's."""

    config_class = PRTSConfig
    name = "prts"
    config: PRTSConfig

    def __init__(self, config: PRTSConfig, dataset_stats: Any = None, dataset_meta: Any = None, **_: Any) -> None:
        super().__init__(config)
        config.validate_features()
        self.model = build_model(config.model)
        self.pipeline: Pipeline | None = None
        self._labels: Labels | None = None
        if dataset_meta is not None:
            self._labels = Labels(dataset_meta.root)
            self.model.set_stage(config.stage)
        if dataset_stats is not None and config.pretrained_path is None:
            self.pipeline = Pipeline(self.model.transforms(), self._statistics(dataset_stats))
            if self._labels is not None and self.model.tokenizer is None:
                chunks = self._labels.chunks(config.chunk)
                self.model.fit_tokenizer(self.pipeline.forward({ACTION: chunks})[ACTION])
        config.model = {"_target_": config.model["_target_"], **self.model.config()}  # with the tokenizer and the head
        self.reset()

    def _statistics(self, dataset_stats: Any) -> dict[str, dict[str, list[float]]]:
        """LeRobot's own, or exact ones of the data set where a transform asks for quantiles."""
        keys = (STATE, ACTION)
        wants_quantiles = any(getattr(transform, "mode", None) == "quantile" for transform in self.model.transforms())
        if wants_quantiles and self._labels is not None:
            return self._labels.statistics(keys)
        return plain_statistics(dataset_stats, keys)

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path: str | Path, **kwargs: Any) -> PRTSPolicy:
        """A policy folder, or a repository of the hub, of which only the checkpoint's files are fetched."""
        path = str(pretrained_name_or_path)
        if not os.path.isdir(path):  # noqa: PTH112 - a hub name is no path
            from huggingface_hub import snapshot_download

            names = ("revision", "cache_dir", "force_download", "token", "local_files_only")
            given = {name: kwargs[name] for name in names if name in kwargs}
            path = snapshot_download(path, allow_patterns=list(FILES), **given)
        return super().from_pretrained(path, **kwargs)

    @classmethod
    def _load_as_safetensor(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:  # noqa: ARG003
        """Weights, every name and shape of which must fit, and the pipeline that lies beside them."""
        folder = Path(model_file).parent
        check_named(read_json(folder, CONFIG).get("frozen", []), model.model.frozen)
        load_weights(model.model, Path(model_file))
        model.pipeline = Pipeline.from_json(read_json(folder, PIPELINE), read_json(folder, STATISTICS))
        return model

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        weights = None if state_dict is None else {k.removeprefix("model."): v for k, v in state_dict.items()}
        write_folder(Path(save_directory), self.model, self._bound(), self.config, weights)

    def get_optim_params(self) -> list[dict[str, Any]]:
        """As `embodied train`: vectors and scalars are not decayed."""
        trained = [p for p in self.parameters() if p.requires_grad]
        flat = [p for p in trained if p.ndim < 2]
        return [{"params": [p for p in trained if p.ndim >= 2]}, {"params": flat, "weight_decay": 0.0}]

    def reset(self) -> None:
        """Forgets the actions left of the last chunk."""
        self._queue: deque[Tensor] = deque()

    def forward(self, batch: dict[str, Any], reduction: str = "mean") -> tuple[Tensor, dict[str, float]]:
        """The stage's loss and its parts. ValueError for a reduction other than the mean: the losses are of a batch."""
        if reduction != "mean":
            raise ValueError(f"PRTS's contrastive losses belong to a batch, got reduction={reduction!r}: use 'mean'")
        if self._labels is None:
            raise ValueError("training needs the data set's metadata: make the policy with make_policy(ds_meta=...)")
        item = self._item(batch, self.config.data_images)
        item |= {ACTION: _array(batch[ACTION]), f"{ACTION}_is_pad": _array(batch[f"{ACTION}_is_pad"])}
        item |= self._labels.of(_array(batch["index"]), _array(batch["episode_index"]))
        if self.training:
            rng = np.random.default_rng(int(torch.randint(2**63 - 1, ())))  # of torch's state
            for change in self.model.relabel(self.config.stage):
                item = change(item, None, None, rng)
        loss, parts = self.model.training_step(to_tensors(self._bound().forward(item), self._device()))
        return loss, {name: float(value) for name, value in parts.items()}

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], noise: Tensor | None = None, **_: Any) -> Tensor:
        """(B, H, A) in the units of the item format, in [-1, 1]. noise: of the flow, (B, H, A) standard normal."""
        pipeline, item = self._bound(), self._item(batch, self.config.live_images)
        inputs = to_tensors(pipeline.forward(item), self._device())
        actions_BHA = self.model.predict(inputs, noise).float().cpu().numpy()
        actions_BHA = np.clip(pipeline.inverse_action(actions_BHA, ACTION), -1.0, 1.0).astype(np.float32)
        return torch.from_numpy(actions_BHA).to(self._device())

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], noise: Tensor | None = None, **_: Any) -> Tensor:
        """The next action (B, A); `n_action_steps` of a chunk are used before the next is made."""
        if not self._queue:
            chunk_BHA = self.predict_action_chunk(batch, noise)
            self._queue.extend(chunk_BHA[:, : self.config.n_action_steps].unbind(1))
        return self._queue.popleft()

    def _bound(self) -> Pipeline:
        if self.pipeline is None:
            raise ValueError("PRTS needs statistics of the data: give --policy.path=FOLDER, or train on a data set")
        return self.pipeline

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _item(self, batch: dict[str, Any], images: Images) -> dict[str, Any]:
        """LeRobot's batch in the item format: images uint8, upright, at the model's size."""
        item: dict[str, Any] = {STATE: _array(batch[STATE]), TASK: list(batch[TASK])}
        for key in IMAGE_KEYS:
            item[key] = to_frames(batch[key], self.model.image_size, images is Images.mirrored)
        return item


def to_frames(images_BCHW: Tensor, size: int, mirrored: bool) -> np.ndarray:
    """Images in [0, 1] or uint8 (B, 3, H, W) -> uint8 (B, size, size, 3), upright. Exact for what once was uint8."""
    if images_BCHW.ndim != 4 or images_BCHW.shape[1] != 3:
        raise ValueError(f"images should be (B, 3, H, W), got {tuple(images_BCHW.shape)}: one observation step each")
    if images_BCHW.is_floating_point():
        images_BCHW = (images_BCHW * 255).round().clamp(0, 255).to(torch.uint8)
    frames = images_BCHW.permute(0, 2, 3, 1).cpu().numpy()
    frames = frames[:, :, ::-1] if mirrored else frames
    return np.ascontiguousarray(resize_frames(frames, (size, size)))


def _array(value: Any) -> np.ndarray:
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    return array.astype(np.float32) if array.dtype == np.float64 else array
