"""What the small policies read with: keypoints of frozen feature maps, the words of the instruction, the state, and the
blocks that bring these together.

Shapes: B batch, C channels, h w rows and columns of a map, P Q cells of the fine and the coarse map, H hidden channels,
K keypoints, L language features, D width, T tokens, S state numbers; U distinct instructions, E word features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from embodied.attention import attend
from embodied.language import LanguageTower

FEATURE_SCALE = 1 / 8  # the tower's maps have a standard deviation of about 8 on LIBERO's images
STATE_POSITION = 3  # the first numbers of the state are a position

Film = tuple[torch.Tensor, torch.Tensor]  # scale (B, 1, H), beside 1, and shift (B, 1, H)


class SpatialSoftmax(nn.Module):
    """Heat of h x w cells (B, P, K), P = h w -> expected coordinates in [-1, 1] and the maximum of each: (B, 3 K).

    Levine et al. 2016, "End-to-end training of deep visuomotor policies".
    """

    place_2P: torch.Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        self.register_buffer("place_2P", torch.stack([x.flatten(), y.flatten()]), persistent=False)

    def forward(self, heat_BPK: torch.Tensor) -> torch.Tensor:
        place_B2K = self.place_2P @ heat_BPK.softmax(dim=1)
        return torch.cat([place_B2K.flatten(1), heat_BPK.amax(dim=1)], dim=-1)


class KeypointReader(nn.Module):
    """One camera's fine and coarse maps (B, C, h, w) -> two tokens (B, 2, D), read under the instruction if given.

    Linear maps of cells, feature-wise modulation by language (Perez et al. 2018, FiLM), keypoints.
    The fine map also sees the coarse one's wider context. fine, coarse: (C, h, w) of the maps; language: L, or None to
    read the same whatever the words. mix: channels that the fine map has before each cell takes in its eight neighbours
    (a 3x3 convolution); 0: no such step.
    """

    enlarge_PQ: torch.Tensor

    def __init__(
        self,
        fine: tuple[int, int, int],
        coarse: tuple[int, int, int],
        hidden: int,
        keypoints: int,
        language: int | None,
        width: int,
        mix: int = 0,
    ) -> None:
        super().__init__()
        self.project = nn.ModuleList([nn.Linear(fine[0], mix or hidden), nn.Linear(coarse[0], hidden)])
        self.widen = nn.Linear(hidden, mix) if mix else nn.Identity()
        self.mix = nn.Conv2d(mix, hidden, 3, padding=1) if mix else None
        self.modulate = None if language is None else nn.Linear(language, 4 * hidden + 2 * mix)
        self.heat = nn.ModuleList([nn.Linear(hidden, keypoints) for _ in range(2)])
        self.keypoints = nn.ModuleList([SpatialSoftmax(*fine[1:]), SpatialSoftmax(*coarse[1:])])
        self.token = nn.ModuleList([nn.Linear(3 * keypoints, width) for _ in range(2)])
        self.register_buffer("enlarge_PQ", _bilinear(coarse[1:], fine[1:]), persistent=False)
        self.grid, self.sizes = fine[1:], [hidden] * 4 + [mix] * 2

    def forward(
        self, fine_BChw: torch.Tensor, coarse_BChw: torch.Tensor, language_BL: torch.Tensor | None = None
    ) -> torch.Tensor:
        coarse_BQH = self.project[1](_cells(coarse_BChw))
        fine_BPM = self.project[0](_cells(fine_BChw)) + self.enlarge_PQ @ self.widen(coarse_BQH)
        fine_film, coarse_film, mix_film = self._film(language_BL)
        if self.mix is not None:
            cells_BMP = functional.relu(_modulated(fine_BPM, mix_film)).transpose(1, 2)
            fine_BPM = self.mix(cells_BMP.unflatten(2, self.grid)).flatten(2).transpose(1, 2)
        maps = [_modulated(fine_BPM, fine_film), _modulated(coarse_BQH, coarse_film)]
        heats = [self.heat[i](functional.relu(x)).float() for i, x in enumerate(maps)]
        with torch.autocast(fine_BChw.device.type, enabled=False):  # bfloat16 rounds places to a quarter of a pixel
            tokens = [self.token[i](self.keypoints[i](heat)) for i, heat in enumerate(heats)]
        return torch.stack(tokens, dim=1)

    def _film(self, language_BL: torch.Tensor | None) -> list[Film | None]:
        """Scale and shift of the fine map, the coarse map, and the fine one before it is mixed."""
        if self.modulate is None:
            return [None] * 3
        assert language_BL is not None
        parts = self.modulate(language_BL)[:, None].split(self.sizes, dim=-1)
        return [(parts[i], parts[i + 1]) for i in (0, 2, 4)]


def _modulated(x_BPH: torch.Tensor, film: Film | None) -> torch.Tensor:
    return x_BPH if film is None else x_BPH * (1 + film[0]) + film[1]


def _cells(maps_BChw: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) -> (B, h w, C), float32."""
    return maps_BChw.flatten(2).transpose(1, 2).float() * FEATURE_SCALE


def _bilinear(coarse: tuple[int, ...], fine: tuple[int, ...]) -> torch.Tensor:
    """Bilinear enlargement of a map as a matrix (fine cells, coarse cells): cheaper backwards than interpolation."""
    cells = torch.eye(coarse[0] * coarse[1], device="cpu").view(-1, 1, *coarse)
    return functional.interpolate(cells, size=tuple(fine), mode="bilinear").flatten(1).T.contiguous()


class LanguagePool(nn.Module):
    """Words (U, L, E) -> one vector (U, D).

    Learned queries attend to single words, so that "on" differs from "next to".
    """

    def __init__(self, features: int, width: int, queries: int = 4) -> None:
        super().__init__()
        self.key = nn.Linear(features, queries, bias=False)
        self.value = nn.Linear(features, width)
        self.out = nn.Sequential(
            nn.LayerNorm((queries + 1) * width),
            nn.Linear((queries + 1) * width, width),
            nn.GELU(),
            nn.Linear(width, width),
        )

    def forward(self, words_ULE: torch.Tensor, mask_UL: torch.Tensor) -> torch.Tensor:
        scores_ULQ = self.key(words_ULE) / math.sqrt(words_ULE.shape[-1])
        even_UL1 = mask_UL[..., None].to(words_ULE.dtype)
        weight_ULQ = scores_ULQ.masked_fill(~mask_UL[..., None], -math.inf).softmax(dim=1)
        weight_ULR = torch.cat([weight_ULQ, even_UL1 / even_UL1.sum(dim=1, keepdim=True)], dim=-1)
        pooled_URD = torch.einsum("ulr,uld->urd", weight_ULR, self.value(words_ULE))
        return self.out(pooled_URD.flatten(1))

    def read(self, tower: LanguageTower, texts: Sequence[str]) -> torch.Tensor:
        """B instructions -> (B, D), each distinct one encoded once."""
        unique, index_B = distinct(texts)
        words, mask = (x.to(self.key.weight.device) for x in tower(unique))
        return self(words, mask)[index_B.to(words.device)]


def distinct(texts: Sequence[str]) -> tuple[list[str], torch.Tensor]:
    """The distinct texts in order of appearance, and the index (B,) of each."""
    number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return list(number), torch.tensor([number[text] for text in texts], dtype=torch.long)


class StateEncoder(nn.Module):
    """State (B, S) -> token (B, D). Sines of the position resolve millimetres inside a range of metres."""

    frequency: torch.Tensor

    def __init__(self, state: int, width: int, octaves: int = 4) -> None:
        super().__init__()
        self.register_buffer("frequency", math.pi * 2.0 ** torch.arange(octaves), persistent=False)
        size = state + 2 * octaves * STATE_POSITION
        self.net = nn.Sequential(nn.Linear(size, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, state_BS: torch.Tensor) -> torch.Tensor:
        with torch.autocast(state_BS.device.type, enabled=False):  # bfloat16 rounds positions to millimetres
            phase = (state_BS[:, :STATE_POSITION, None].float() * self.frequency).flatten(1)
            return self.net(torch.cat([state_BS.float(), phase.sin(), phase.cos()], dim=-1))


class Block(nn.Module):
    """Pre-norm self-attention and MLP over tokens (B, T, D)."""

    def __init__(self, width: int, heads: int, ratio: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.drop = heads, nn.Dropout(dropout)
        self.norm = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x_BTD.shape
        qkv = self.qkv(self.norm[0](x_BTD)).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = attend(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x_BTD = x_BTD + self.drop(self.out(mixed))
        return x_BTD + self.drop(self.mlp(self.norm[1](x_BTD)))


class Trunk(nn.Module):
    """T tokens (B, T, D) -> (B, T + 1, D): blocks over them and a learnt one, which gathers what they say together."""

    def __init__(self, tokens: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.gather = nn.Parameter(torch.zeros(1, 1, width))
        self.place = nn.Parameter(torch.randn(1, tokens + 1, width) * 0.02)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(depth)])

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        gather_B1D = self.gather.expand(len(x_BTD), 1, -1)
        return self.blocks(torch.cat([x_BTD, gather_B1D], dim=1) + self.place)
