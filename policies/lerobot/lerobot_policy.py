"""Any LeRobot policy as a Policy: `embodied evaluate policy=lerobot policy.path=FOLDER env=libero_object`.

Its own config, weights, pre- and post-processors are read from the folder, as lerobot-eval reads them; observations are
given to it in LeRobot's form and its actions taken as they come out. A policy that predicts chunks from one observation
runs batched. One that remembers more (several observation steps, temporal ensembling) is asked at every control step,
each slot with a memory of its own, as in lerobot-eval.

Shapes: B slots, C cameras, H steps of a chunk, A action channels.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies import get_policy_class, make_pre_post_processors
from lerobot.utils.import_utils import register_third_party_plugins
from torch import Tensor

from embodied.protocols import Episode, Observation, PolicySpec
from embodied.schema import ACTION_DIM, TASK
from policies.lerobot.lerobot_features import Features, read_features

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class LeRobotPolicy:
    """path: a policy folder. replan: actions executed of a chunk; None: the policy's n_action_steps.

    images: "mirrored" left to right, as LeRobot's LIBERO environment and the LIBERO sets on the hub have them, or
    "upright", for a policy trained on sets of this stack. cameras: the policy's image key -> ours, where they differ.
    ValueError for a folder that is no policy, and for features that the item format does not have.
    """

    def __init__(
        self,
        path: str | Path,
        replan: int | None = None,
        device: str = "cpu",
        images: str = "mirrored",
        cameras: Mapping[str, str] | None = None,
        seed: int = 0,
    ) -> None:
        folder = Path(path)
        self.config = _read_config(folder, device)
        self.features: Features = read_features(self.config, images, cameras or {})
        self.policy = _read_policy(self.config, folder)
        self.before, self.after = _read_processors(self.config, folder, device)
        self.seed, self.device = seed, device
        self.chunked = _is_chunked(self.config)
        chunk, steps = _chunk_sizes(self.config) if self.chunked else (1, 1)
        replan = steps if replan is None else replan
        if not 1 <= replan <= chunk:
            raise ValueError(f"replan should lie in 1..{chunk} ({self.config.type} in {folder}), got {replan}")
        self.spec = PolicySpec(
            name=f"lerobot_{self.config.type}",
            digest=_digest(folder, {"images": images, "cameras": dict(self.features.cameras), "seed": seed}),
            chunk=chunk,
            replan=replan,
            action_dim=ACTION_DIM,
            image_keys=tuple(dict.fromkeys(self.features.cameras.values())),
            image_size=self.features.image_size,
        )
        self._memory: dict[int, Any] = {}
        self._identity: dict[int, str] = {}
        self._calls: dict[int, int] = {}

    def reset(self, slots: Sequence[int], episodes: Sequence[Episode]) -> None:
        for slot, episode in zip(slots, episodes, strict=True):
            self._identity[slot], self._calls[slot] = episode.key, 0
            if not self.chunked:
                self._memory[slot] = _own_memory(self.policy)

    def act(self, observation: Observation, slots: Sequence[int]) -> np.ndarray:
        """Actions (B, H, A). ValueError for a slot that was not reset, or a policy that gives another shape."""
        missing = [slot for slot in slots if slot not in self._identity]
        if missing:
            raise ValueError(f"slot {missing[0]} should be reset before it acts: call reset([{missing[0]}], [episode])")
        if self.chunked:
            actions_BHA = self._predict(observation, slots)
        else:
            rows = [self._step(_row(observation, i), slot) for i, slot in enumerate(slots)]
            actions_BHA = torch.cat(rows)[:, None]
        shape = (len(slots), self.spec.chunk, ACTION_DIM)
        if tuple(actions_BHA.shape) != shape:
            raise ValueError(f"{self.spec.name} should give actions {shape}, got {tuple(actions_BHA.shape)}")
        return np.clip(actions_BHA.float().cpu().numpy(), -1.0, 1.0).astype(np.float32)

    def _predict(self, observation: Observation, slots: Sequence[int]) -> Tensor:
        batch = self.before(self.features.batch(observation))
        self.policy.reset()  # queues that some policies fill on the way
        with torch.inference_mode(), self._noise(slots):
            actions_BHA = self.policy.predict_action_chunk(batch)[:, : self.spec.chunk]
            return torch.stack([self.after(actions_BA) for actions_BA in actions_BHA.unbind(1)], dim=1)

    def _step(self, observation: Observation, slot: int) -> Tensor:
        """One action (1, A) of the slot's own copy, which holds its queues."""
        batch = self.before(self.features.batch(observation))
        with torch.inference_mode(), self._noise([slot]):
            return self.after(self._memory[slot].select_action(batch))

    def _noise(self, slots: Sequence[int]) -> Any:
        """Random numbers that depend on the seed, the episodes of this call and how often they were asked, only."""
        names = [f"{self._identity[slot]}#{self._calls[slot]}" for slot in slots]
        for slot in slots:
            self._calls[slot] += 1
        return _Seeded(int.from_bytes(hashlib.sha256(repr([self.seed, *names]).encode()).digest()[:8], "little") >> 1)


class _Seeded:
    """torch's global generator with another seed inside, as it was afterwards."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._fork = torch.random.fork_rng()

    def __enter__(self) -> None:
        self._fork.__enter__()
        torch.manual_seed(self.seed)

    def __exit__(self, *error: Any) -> None:
        self._fork.__exit__(*error)


def _read_config(folder: Path, device: str) -> Any:
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise ValueError(
            f"{folder} should be a LeRobot policy folder with {CONFIG} and {WEIGHTS} (a training run has it at "
            "checkpoints/last/pretrained_model): check policy.path"
        )
    register_third_party_plugins()
    config = PreTrainedConfig.from_pretrained(folder, cli_overrides=[f"--device={device}"])
    config.pretrained_path = folder
    return config


def _read_policy(config: Any, folder: Path) -> Any:
    """The policy with its weights; LeRobot would pass over a weight that is missing with a warning."""
    if getattr(config, "pretrained_backbone_weights", None) is not None:
        config.pretrained_backbone_weights = None  # the folder's take their place: nothing is downloaded first
    kind = get_policy_class(config.type)
    try:
        policy = kind.from_pretrained(folder, config=config, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{folder / WEIGHTS} does not fit {config.type} of {CONFIG}: {error}") from error
    return policy.eval()


def _read_processors(config: Any, folder: Path, device: str) -> tuple[Any, Any]:
    try:
        return make_pre_post_processors(
            config, pretrained_path=str(folder), preprocessor_overrides={"device_processor": {"device": device}}
        )
    except FileNotFoundError as error:
        raise ValueError(
            f"{folder} lacks its processors (policy_preprocessor.json and policy_postprocessor.json): save them with "
            "the policy, or migrate an older one with lerobot's migrate_policy_normalization"
        ) from error


def _is_chunked(config: Any) -> bool:
    """Whether one observation is all that a chunk depends on."""
    return (
        config.n_obs_steps == 1
        and getattr(config, "temporal_ensemble_coeff", None) is None
        and _chunk_sizes(config)[0] is not None
    )


def _chunk_sizes(config: Any) -> tuple[Any, Any]:
    """Actions of a chunk, and how many the policy means to be executed; None where it does not say."""
    indices = config.action_delta_indices
    chunk = None if indices is None else len([i for i in indices if i >= 0])
    return chunk, min(getattr(config, "n_action_steps", chunk) or 1, chunk or 1)


def _own_memory(policy: Any) -> Any:
    """A copy that shares every weight and buffer, with queues of its own."""
    shared = {id(tensor): tensor for tensor in (*policy.parameters(), *policy.buffers())}
    own = copy.deepcopy(policy, shared)
    own.reset()
    return own


def _row(observation: Observation, index: int) -> Observation:
    return {
        key: value[index : index + 1] for key, value in observation.items() if key == TASK or hasattr(value, "ndim")
    }


def _digest(folder: Path, settings: Mapping[str, Any]) -> str:
    """sha256 (hex) over every file that decides what the policy does, and the adapter's settings."""
    total = hashlib.sha256(repr(sorted(settings.items())).encode())
    for path in sorted(folder.glob("*")):
        if path.suffix in (".json", ".safetensors") and path.name != "train_config.json":
            with path.open("rb") as file:
                total.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
