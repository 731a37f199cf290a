"""Language-conditioned behaviour cloning with action chunks: the baseline every later method is measured against.

Image features -> keypoints under the instruction -> a small transformer -> a chunk of actions, L1 loss.
Shapes: B batch, H chunk, A action numbers, S state numbers, D width, T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from embodied.data.windows import Relabel, WindowConfig
from embodied.language import WIDTH as WORD_WIDTH
from embodied.language import LanguageTower
from embodied.schema import ACTION, ACTION_DIM, IMAGE_KEYS, STATE, STATE_DIM, TASK
from embodied.training.augment import StateNoise
from embodied.transforms import GripperLevels, Normalize, RotationTo6D, Transform
from policies.camera_maps import CameraMaps
from policies.layers import Block, KeypointReader, LanguagePool, StateEncoder

STATE_6D = STATE_DIM + 3  # axis-angle as six numbers
POSITION_AND_GRIPPER = (0, 1, 2, 6, 7)


class BehaviourCloning(nn.Module):
    """A TrainableModel (stage "bc") and a ChunkModel. Sizes are arguments; see configs/policy/bc.yaml.

    dropout: of the transformer's branches and of whole channels of the image features. tune: the vision tower is
    trained too, on images moved by up to `shift` pixels and recoloured by up to `colour`. codec: see ChunkPolicy.
    """

    stages = ("bc",)

    def __init__(
        self,
        width: int = 192,
        depth: int = 3,
        heads: int = 4,
        hidden: int = 64,
        keypoints: int = 32,
        mix: int = 0,
        chunk: int = 10,
        image_size: int = 128,
        dropout: float = 0.0,
        tune: bool = False,
        shift: int = 0,
        colour: float = 0.0,
        codec: str = "",
        vision: str = "efficientnet-lite0",
        language: str = "minilm-l6",
    ) -> None:
        super().__init__()
        self._arguments = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        _check_sizes(self._arguments)
        self.chunk, self.image_size, self.image_keys, self.codec = chunk, image_size, IMAGE_KEYS, codec
        self.frozen = (vision, language)
        self.vision = CameraMaps(vision, image_size, tune, shift, colour, dropout)
        self.features, self.language = self.vision.features, LanguageTower(language)
        fine, coarse = self.vision.shapes
        self.words = LanguagePool(WORD_WIDTH, width)
        self.readers = nn.ModuleList(
            [KeypointReader(fine, coarse, hidden, keypoints, width, width, mix) for _ in IMAGE_KEYS]
        )
        self.state = StateEncoder(STATE_6D, width)
        self.action = nn.Parameter(torch.zeros(1, 1, width))
        self.place = nn.Parameter(torch.randn(1, 3 + 2 * len(IMAGE_KEYS), width) * 0.02)
        self.blocks = nn.Sequential(*[Block(width, heads, dropout=dropout) for _ in range(depth)])
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, chunk * ACTION_DIM)
        )

    def config(self) -> dict[str, Any]:
        return dict(self._arguments)

    @property
    def compiled(self) -> list[nn.Module]:
        return self.vision.compiled

    def transforms(self) -> list[Transform]:
        return [
            GripperLevels(),
            Normalize(STATE, dims=POSITION_AND_GRIPPER),
            RotationTo6D(STATE),
            Normalize(ACTION),
        ]

    def windows(self, stage: str) -> WindowConfig:
        _check_stage(stage)
        return WindowConfig(observations=[*self.vision.observations, STATE], actions=[ACTION], chunk=self.chunk)

    def relabel(self, stage: str) -> list[Relabel]:
        _check_stage(stage)
        return [StateNoise()]

    def set_stage(self, stage: str) -> None:
        _check_stage(stage)

    def training_step(self, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Mean absolute error over the steps of the chunk that lie inside the episode."""
        predicted_BHA = self(batch)
        valid_BH = ~batch[f"{ACTION}_is_pad"]
        error_BHA = (predicted_BHA - batch[ACTION]).abs() * valid_BH[..., None]
        error_A = error_BHA.sum(dim=(0, 1)) / valid_BH.sum()
        parts = {"position": error_A[:3], "rotation": error_A[3:6], "gripper": error_A[6:]}
        return error_A.mean(), {f"error_{name}": value.mean() for name, value in parts.items()}

    def predict(self, batch: dict[str, Any]) -> torch.Tensor:
        """Observation after the pipeline, images (B, size, size, 3) uint8 -> normalised actions (B, H, A)."""
        return self(batch)

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        """Feature columns or images, state (B, S) and B instructions -> normalised actions (B, H, A)."""
        language_BD = self.words.read(self.language, batch[TASK])
        maps = self.vision(batch, language_BD.device)
        readers = zip(self.readers, self.image_keys, strict=True)
        tokens = [reader(*maps[camera], language_BD) for reader, camera in readers]
        state_BD = self.state(batch[STATE])
        action_B1D = self.action.expand(len(state_BD), 1, -1)
        x_BTD = torch.cat([*tokens, state_BD[:, None], language_BD[:, None], action_B1D], dim=1) + self.place
        return self.head(self.blocks(x_BTD)[:, -1]).unflatten(-1, (self.chunk, ACTION_DIM))


def _check_stage(stage: str) -> None:
    if stage not in BehaviourCloning.stages:
        raise ValueError(f"policy bc has the stage bc, got {stage!r}: use stage=bc")


def _check_sizes(arguments: dict[str, Any]) -> None:
    """Bounds that keep a wrong (or hostile) config from asking for the machine's memory."""
    limits = {
        "width": 2048,
        "depth": 48,
        "heads": 32,
        "hidden": 1024,
        "keypoints": 512,
        "mix": 512,
        "chunk": 200,
        "image_size": 1024,
    }
    least = {"chunk": 2, "mix": 0}
    for name, limit in limits.items():
        value, low = arguments[name], least.get(name, 1)
        if not isinstance(value, int) or not low <= value <= limit:
            raise ValueError(f"policy bc: {name} should be an integer in {low}..{limit}, got {value!r}")
    if not 0.0 <= arguments["dropout"] < 1.0:
        raise ValueError(f"policy bc: dropout should lie in [0, 1), got {arguments['dropout']!r}")
    if arguments["width"] % arguments["heads"]:
        raise ValueError(
            f"policy bc: width should be a multiple of heads, got {arguments['width']} and {arguments['heads']}"
        )
