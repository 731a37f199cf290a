"""PRTS's small backbone: EfficientNet-Lite0 and MiniLM features, a small decoder of transformers' Qwen3 blocks.

An image becomes a grid of patch tokens (each from the fine and coarse features of its patch) and keypoint tokens (where
learnt features are, to a fraction of a patch); the state becomes one token; a word piece becomes one token. The action
expert reads keypoints of its own under the instruction; VISION_STATE tokens must not know it, since phi sees them. With
`direct` it reads words and state itself as well: a backbone that stands still may have lost what it needs of them. With
`trunk` blocks of self-attention bring these tokens together before it reads them, as GR00T N1.5 does with its language
model's (where the hand is and where the thing is are two tokens; what to do is in their difference).
With `tune` EfficientNet is trained too, by every loss: the flow loss reaches it through the expert's keypoints.

Shapes: B samples, N tokens of a block, U distinct instructions, T tokens of a row, D width, C channels, h w cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Qwen3Config, Qwen3Model

from embodied.data.windows import WindowConfig
from embodied.language import WIDTH as WORD_WIDTH
from embodied.language import LanguageTower
from embodied.schema import ACTION, IMAGE_KEYS, STATE, STATE_DIM, TASK
from embodied.transforms import GripperLevels, Normalize, RotationTo6D, Transform
from embodied.vision import TowerFeatures
from policies.camera_maps import CameraMaps, Shape
from policies.layers import FEATURE_SCALE, KeypointReader, LanguagePool, StateEncoder, Trunk, distinct
from policies.prts.attention import ATTENTION, make_plan
from policies.prts.backbone import Batch, Observed, Words
from policies.prts.flow import Guide
from policies.prts.layout import Layout
from policies.prts.model import PRTS, PRTSConfig, check_stage

STATE_6D = STATE_DIM + 3  # axis-angle as six numbers
POSITION_AND_GRIPPER = (0, 1, 2, 6, 7)


@dataclass
class NanoConfig:
    """Sizes. grid: patch tokens along the side of each camera's image; keypoints: learnt features of a camera whose
    places are read, by the backbone and, under the instruction, by the action expert (mix: see KeypointReader).
    direct: the action expert reads the instruction's words and the state itself too; trunk: blocks of self-attention,
    of trunk_heads heads each, over all that it reads itself (0: none). dropout: of whole channels of the image
    features, in training. tune, shift, colour: see CameraMaps; codec: see ChunkPolicy."""

    width: int = 192
    layers: int = 4
    heads: int = 6
    key_value_heads: int = 2
    mlp: int = 512
    grid: list[int] = field(default_factory=lambda: [4, 2])
    keypoints: int = 32
    hidden: int = 64
    mix: int = 0
    direct: bool = False
    trunk: int = 0
    trunk_heads: int = 4
    image_size: int = 128
    dropout: float = 0.0
    tune: bool = False
    shift: int = 0
    colour: float = 0.0
    codec: str = ""
    vision: str = "efficientnet-lite0"
    language: str = "minilm-l6"


class CameraTokens(nn.Module):
    """One camera's fine and coarse maps (B, C, h, w) -> patch and keypoint tokens (B, grid * grid + 2, D)."""

    def __init__(self, fine: Shape, coarse: Shape, grid: int, config: NanoConfig) -> None:
        super().__init__()
        if grid < 1 or fine[1] % grid or coarse[1] % grid:
            raise ValueError(f"grid should divide the maps' sides {fine[1]} and {coarse[1]}, got {grid}: use 2, 4 or 8")
        self.grid = grid
        inside = [maps[0] * (maps[1] // grid) ** 2 for maps in (fine, coarse)]
        self.patch = nn.Sequential(
            nn.Linear(sum(inside), 2 * config.width), nn.GELU(), nn.Linear(2 * config.width, config.width)
        )
        self.keypoints = KeypointReader(fine, coarse, config.hidden, config.keypoints, None, config.width)

    def forward(self, fine_BChw: Tensor, coarse_BChw: Tensor) -> Tensor:
        cells = [_cells(maps * FEATURE_SCALE, self.grid) for maps in (fine_BChw, coarse_BChw)]
        return torch.cat([self.patch(torch.cat(cells, dim=-1)), self.keypoints(fine_BChw, coarse_BChw)], dim=1)


def _cells(maps_BChw: Tensor, grid: int) -> Tensor:
    """(B, C, h, w) -> (B, grid * grid, C * h/grid * w/grid): everything inside each patch."""
    side = maps_BChw.shape[-1] // grid
    return functional.unfold(maps_BChw, side, stride=side).transpose(1, 2)


class NanoBackbone(nn.Module):
    """See the module; a Backbone whose frozen towers are no part of its state."""

    packs = True

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        if config.width % config.heads or config.heads % config.key_value_heads or (config.width // config.heads) % 2:
            raise ValueError(f"width / heads should be even and heads a multiple of key_value_heads, got {config}")
        self.width, self.image_size = config.width, config.image_size
        self.vision = CameraMaps(
            config.vision, config.image_size, config.tune, config.shift, config.colour, config.dropout
        )
        self.language = LanguageTower(config.language)
        if len(config.grid) != len(IMAGE_KEYS):
            raise ValueError(f"grid should have a number for each of {', '.join(IMAGE_KEYS)}, got {config.grid}")
        fine, coarse = self.vision.shapes
        self.cameras = nn.ModuleList([CameraTokens(fine, coarse, grid, config) for grid in config.grid])
        self.state = StateEncoder(STATE_6D, config.width)
        vision_state = sum(grid**2 + 2 for grid in config.grid) + 1
        self.place = nn.Parameter(torch.randn(vision_state, config.width) * 0.02)
        self.word = nn.Sequential(nn.Linear(WORD_WIDTH, config.width), nn.LayerNorm(config.width))
        self.decoder = Qwen3Model(_qwen3(config))
        self.decoder.embed_tokens = nn.Identity()  # type: ignore[assignment]  # all tokens come as embeddings

    def set_trainable(self, trainable: bool) -> None:
        self.requires_grad_(trainable)

    def observe(self, batch: Batch) -> Observed:
        maps = self.vision(batch, self.place.device)
        tokens = [camera(*maps[key]) for camera, key in zip(self.cameras, IMAGE_KEYS, strict=True)]
        tokens_BND = torch.cat([*tokens, self.state(batch[STATE])[:, None]], dim=1) + self.place
        count_B = torch.full((len(tokens_BND),), tokens_BND.shape[1], device=tokens_BND.device)
        return Observed(tokens_BND, count_B, count_B)

    def words(self, texts: Sequence[str]) -> Words:
        unique, index_B = distinct(texts)
        features_ULE, mask_UL = (x.to(self.place.device) for x in self.language(unique))
        tokens_UND, count_U = self.word(features_ULE), mask_UL.sum(1)
        return Words(tokens_UND, count_U, tokens_UND, count_U, index_B.to(self.place.device))

    def run(self, rows_BTD: Tensor, layout: Layout, observed: Observed | None, cache: Any = None) -> Tensor:  # noqa: ARG002
        return self.decoder(
            inputs_embeds=rows_BTD, position_ids=layout.position_BT, attention_mask={"full_attention": None},
            past_key_values=cache, use_cache=cache is not None, role_plan=make_plan(layout),
        ).last_hidden_state  # fmt: skip

    def step(self, x_BND: Tensor, position_BN: Tensor, mask_B1NK: Tensor, cache: Any) -> Tensor:
        return self.decoder(
            inputs_embeds=x_BND, position_ids=position_BN, attention_mask={"full_attention": mask_B1NK},
            past_key_values=cache, use_cache=True,
        ).last_hidden_state  # fmt: skip


def _qwen3(config: NanoConfig) -> Qwen3Config:
    settings: dict[str, Any] = {
        "vocab_size": 1,
        "hidden_size": config.width,
        "intermediate_size": config.mlp,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_value_heads,
        "head_dim": config.width // config.heads,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "use_cache": False,
        "attn_implementation": ATTENTION,
    }
    return Qwen3Config(**settings)


def _trunk(config: NanoConfig) -> Trunk:
    if not config.direct or config.trunk < 0 or config.trunk_heads < 1 or config.width % config.trunk_heads:
        raise ValueError(
            f"trunk should be a number of blocks, beside direct: true, and trunk_heads divide width, got {config}"
        )
    return Trunk(2 * len(IMAGE_KEYS) + 2, config.width, config.trunk, config.trunk_heads)


class PRTSNano(PRTS):
    """`policy=prts_nano`: a TrainableModel and a ChunkModel."""

    def __init__(
        self,
        backbone: dict[str, Any] | None = None,
        method: dict[str, Any] | None = None,
        fast: dict[str, Any] | None = None,
    ) -> None:
        nano, settings = NanoConfig(**(backbone or {})), PRTSConfig(**(method or {}))
        super().__init__(NanoBackbone(nano), settings, fast)
        self.nano = nano
        fine, coarse = self._nano().vision.shapes
        sizes = (nano.hidden, nano.keypoints, nano.width, nano.width, nano.mix)
        self.focus = nn.ModuleList([KeypointReader(fine, coarse, *sizes) for _ in IMAGE_KEYS])
        self.direct = nn.ModuleDict()
        if nano.direct:
            self.direct["words"] = LanguagePool(WORD_WIDTH, nano.width)
            self.direct["state"] = StateEncoder(STATE_6D, nano.width)
        if nano.trunk:
            self.direct["trunk"] = _trunk(nano)
        self.image_size, self.image_keys, self.codec = nano.image_size, IMAGE_KEYS, nano.codec
        self.frozen = (nano.vision, nano.language)

    @property
    def features(self) -> TowerFeatures | None:
        return self._nano().vision.features

    @property
    def language(self) -> LanguageTower:
        return self._nano().language

    @property
    def compiled(self) -> list[nn.Module]:
        return self._nano().vision.compiled

    def config(self) -> dict[str, Any]:
        return {"backbone": asdict(self.nano), **self.method_config()}

    def transforms(self) -> list[Transform]:
        return [
            GripperLevels(),
            Normalize(STATE, dims=POSITION_AND_GRIPPER),
            RotationTo6D(STATE),
            Normalize(ACTION, mode="min_max"),
        ]

    def windows(self, stage: str) -> WindowConfig:
        check_stage(stage)
        return WindowConfig(observations=[*self._nano().vision.observations, STATE], actions=[ACTION], chunk=self.chunk)

    def expert_modules(self) -> list[nn.Module]:
        return [*super().expert_modules(), self.focus, self.direct]

    def training_step(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return super().training_step(self._nano().vision.fill(batch))  # once for backbone and expert

    def predict(self, batch: Batch, noise_BHA: Tensor | None = None, guide: Guide | None = None) -> Tensor:
        return super().predict(self._nano().vision.fill(batch), noise_BHA, guide)

    def look_again(self, batch: Batch, instruction_BD: Tensor) -> Tensor:
        """Keypoint tokens of both cameras (B, 4, D) under what the backbone made of the instruction; with `direct` (B,
        6, D): under the words as the expert reads them, then the state and these; after the trunk (B, 7, D)."""
        more = []
        if self.direct:
            instruction_BD = self.direct["words"].read(self.language, batch[TASK])  # type: ignore[operator]
            more = [self.direct["state"](batch[STATE])[:, None], instruction_BD[:, None]]
        maps = self._nano().vision(batch, instruction_BD.device)
        readers = zip(self.focus, IMAGE_KEYS, strict=True)
        seen_BND = torch.cat([*[reader(*maps[key], instruction_BD) for reader, key in readers], *more], dim=1)
        return self.direct["trunk"](seen_BND) if "trunk" in self.direct else seen_BND

    def _nano(self) -> NanoBackbone:
        assert isinstance(self.backbone, NanoBackbone)
        return self.backbone
