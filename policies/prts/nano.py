"""PRTS's small backbone: frozen EfficientNet-Lite0 and MiniLM features, a small decoder of transformers' Qwen3 blocks.

An image becomes a grid of patch tokens (each from the fine and coarse features of its patch) and keypoint tokens (where
learnt features are, to a fraction of a patch); the state becomes one token; a word piece becomes one token.

Shapes: B samples, N tokens of a block, U distinct instructions, T tokens of a row, D width, C channels, h w cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Qwen3Config, Qwen3Model

from embodied.data.windows import WindowConfig
from embodied.language import WIDTH as WORD_WIDTH
from embodied.language import LanguageTower
from embodied.schema import ACTION, IMAGE_KEYS, STATE, STATE_DIM
from embodied.transforms import Normalize, RotationTo6D, Transform
from embodied.vision import TowerFeatures, VisionTower
from policies.prts.attention import ATTENTION, make_plan
from policies.prts.backbone import Batch, Observed, Words, distinct
from policies.prts.layout import Layout
from policies.prts.model import PRTS, PRTSConfig, check_stage

FEATURE_SCALE = 1 / 8  # the tower's maps have a standard deviation of about 8 on LIBERO's images
STATE_6D = STATE_DIM + 3  # axis-angle as six numbers
POSITION_AND_GRIPPER = (0, 1, 2, 6, 7)


@dataclass
class NanoConfig:
    """Sizes. grid: patch tokens along an image's side; keypoints: learnt features of a camera whose places are read."""

    width: int = 192
    layers: int = 4
    heads: int = 6
    key_value_heads: int = 2
    mlp: int = 512
    grid: int = 4
    keypoints: int = 32
    hidden: int = 64
    image_size: int = 128
    vision: str = "efficientnet-lite0"
    language: str = "minilm-l6"


class CameraTokens(nn.Module):
    """One camera's fine and coarse maps (B, C, h, w) -> patch and keypoint tokens (B, grid * grid + 2, D)."""

    def __init__(self, fine: tuple[int, int, int], coarse: tuple[int, int, int], config: NanoConfig) -> None:
        super().__init__()
        if fine[1] % config.grid or coarse[1] % config.grid:
            raise ValueError(
                f"grid should divide the maps' sides {fine[1]} and {coarse[1]}, got {config.grid}: use 2, 4 or 8"
            )
        self.grid = config.grid
        inside = [maps[0] * (maps[1] // config.grid) ** 2 for maps in (fine, coarse)]
        self.patch = nn.Sequential(
            nn.Linear(sum(inside), 2 * config.width), nn.GELU(), nn.Linear(2 * config.width, config.width)
        )
        self.project = nn.ModuleList([nn.Conv2d(maps[0], config.hidden, 1) for maps in (fine, coarse)])
        self.heat = nn.ModuleList([nn.Conv2d(config.hidden, config.keypoints, 1) for _ in range(2)])
        self.token = nn.ModuleList([nn.Linear(3 * config.keypoints, config.width) for _ in range(2)])

    def forward(self, fine_BChw: Tensor, coarse_BChw: Tensor) -> Tensor:
        cells = [_cells(maps, self.grid) for maps in (fine_BChw, coarse_BChw)]
        return torch.cat([self.patch(torch.cat(cells, dim=-1)), self._keypoints(fine_BChw, coarse_BChw)], dim=1)

    def _keypoints(self, fine_BChw: Tensor, coarse_BChw: Tensor) -> Tensor:
        coarse = self.project[1](coarse_BChw)
        wider = functional.interpolate(coarse, size=fine_BChw.shape[-2:], mode="bilinear")
        maps = (self.project[0](fine_BChw) + wider, coarse)
        tokens = [self.token[i](_places(self.heat[i](functional.gelu(maps[i])))) for i in range(2)]
        return torch.stack(tokens, dim=1)


def _cells(maps_BChw: Tensor, grid: int) -> Tensor:
    """(B, C, h, w) -> (B, grid * grid, C * h/grid * w/grid): everything inside each patch."""
    side = maps_BChw.shape[-1] // grid
    return functional.unfold(maps_BChw, side, stride=side).transpose(1, 2)


def _places(heat_BKhw: Tensor) -> Tensor:
    """Heat maps (B, K, h, w) -> expected column and row in [-1, 1] and the largest value of each: (B, 3 K).

    Levine et al. 2016, "End-to-end training of deep visuomotor policies".
    """
    height, width = heat_BKhw.shape[-2:]
    weight_BKhw = heat_BKhw.flatten(2).softmax(dim=-1).unflatten(-1, (height, width))
    x_w = torch.linspace(-1, 1, width, device=heat_BKhw.device)
    y_h = torch.linspace(-1, 1, height, device=heat_BKhw.device)
    x_BK, y_BK = (weight_BKhw.sum(2) * x_w).sum(-1), (weight_BKhw.sum(3) * y_h).sum(-1)
    return torch.cat([x_BK, y_BK, heat_BKhw.amax(dim=(2, 3))], dim=-1)


class StateToken(nn.Module):
    """State (B, S) -> one token (B, D). Sines of the position resolve millimetres inside a range of metres."""

    def __init__(self, state: int, width: int, octaves: int = 4, position: int = 3) -> None:
        super().__init__()
        self.octaves, self.position = octaves, position
        size = state + 2 * octaves * position
        self.net = nn.Sequential(nn.Linear(size, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, state_BS: Tensor) -> Tensor:
        frequency = math.pi * 2.0 ** torch.arange(self.octaves, device=state_BS.device)
        phase = (state_BS[:, : self.position, None] * frequency).flatten(1)
        return self.net(torch.cat([state_BS, phase.sin(), phase.cos()], dim=-1))


class NanoBackbone(nn.Module):
    """See the module; a Backbone whose frozen towers are no part of its state."""

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        if config.width % config.heads or config.heads % config.key_value_heads or (config.width // config.heads) % 2:
            raise ValueError(f"width / heads should be even and heads a multiple of key_value_heads, got {config}")
        self.width = config.width
        self.features = TowerFeatures(VisionTower(config.vision), IMAGE_KEYS, config.image_size)
        self.language = LanguageTower(config.language)
        shapes = [self.features.tower.shape(s, config.image_size) for s in sorted(self.features.tower.strides)]
        self.cameras = nn.ModuleList([CameraTokens(shapes[0], shapes[1], config) for _ in IMAGE_KEYS])
        self.state = StateToken(STATE_6D, config.width)
        vision_state = len(IMAGE_KEYS) * (config.grid**2 + 2) + 1
        self.place = nn.Parameter(torch.randn(vision_state, config.width) * 0.02)
        self.word = nn.Sequential(nn.Linear(WORD_WIDTH, config.width), nn.LayerNorm(config.width))
        self.decoder = Qwen3Model(_qwen3(config))
        self.decoder.embed_tokens = nn.Identity()  # type: ignore[assignment]  # all tokens come as embeddings

    def set_trainable(self, trainable: bool) -> None:
        self.requires_grad_(trainable)

    def observe(self, batch: Batch) -> Observed:
        columns = self.features.columns
        if not all(name in batch for name in columns):
            maps = self.features.maps({key: batch[key] for key in IMAGE_KEYS})
            batch = {**batch, **{name: value.to(self.place.device) for name, value in maps.items()}}
        tokens = [camera(*self._maps(batch, key)) for camera, key in zip(self.cameras, IMAGE_KEYS, strict=True)]
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

    def _maps(self, batch: Batch, camera: str) -> list[Tensor]:
        """Fine, then coarse."""
        return [
            batch[self.features.column(stride, camera)].float() * FEATURE_SCALE
            for stride in sorted(self.features.tower.strides)
        ]


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
        self.image_size, self.image_keys = nano.image_size, IMAGE_KEYS
        self.frozen = (nano.vision, nano.language)

    @property
    def features(self) -> TowerFeatures:
        return self._nano().features

    @property
    def language(self) -> LanguageTower:
        return self._nano().language

    def config(self) -> dict[str, Any]:
        return {"backbone": asdict(self.nano), **self.method_config()}

    def transforms(self) -> list[Transform]:
        return [Normalize(STATE, dims=POSITION_AND_GRIPPER), RotationTo6D(STATE), Normalize(ACTION, mode="min_max")]

    def windows(self, stage: str) -> WindowConfig:
        check_stage(stage)
        return WindowConfig(observations=[*self.features.columns, STATE], actions=[ACTION], chunk=self.chunk)

    def _nano(self) -> NanoBackbone:
        assert isinstance(self.backbone, NanoBackbone)
        return self.backbone
