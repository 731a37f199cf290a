"""The parts of the behaviour-cloning transformer.

Shapes: B batch, U distinct instructions, L words, E word features, D width, C channels, h w rows and columns of a map,
P Q cells of the fine and the coarse map, H hidden channels, K keypoints, T tokens.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from embodied.attention import attend

FEATURE_SCALE = 1 / 8  # the tower's maps have a standard deviation of about 8 on LIBERO's images


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
    """One camera's fine and coarse maps, read under the instruction: (B, C, h, w) each -> two tokens (B, 2, D).

    1x1 convolutions (linear maps of cells), feature-wise modulation by language (Perez et al. 2018, FiLM), keypoints.
    The fine map also sees the coarse one's wider context. fine, coarse: (C, h, w) of the maps.
    """

    enlarge_PQ: torch.Tensor

    def __init__(
        self,
        fine: tuple[int, int, int],
        coarse: tuple[int, int, int],
        hidden: int,
        keypoints: int,
        language: int,
        width: int,
    ) -> None:
        super().__init__()
        self.project = nn.ModuleList([nn.Linear(fine[0], hidden), nn.Linear(coarse[0], hidden)])
        self.modulate = nn.Linear(language, 4 * hidden)
        self.heat = nn.ModuleList([nn.Linear(hidden, keypoints) for _ in range(2)])
        self.keypoints = nn.ModuleList([SpatialSoftmax(*fine[1:]), SpatialSoftmax(*coarse[1:])])
        self.token = nn.ModuleList([nn.Linear(3 * keypoints, width) for _ in range(2)])
        self.register_buffer("enlarge_PQ", _bilinear(coarse[1:], fine[1:]), persistent=False)

    def forward(self, fine_BChw: torch.Tensor, coarse_BChw: torch.Tensor, language_BD: torch.Tensor) -> torch.Tensor:
        coarse_BQH = self.project[1](_cells(coarse_BChw))
        fine_BPH = self.project[0](_cells(fine_BChw)) + self.enlarge_PQ @ coarse_BQH
        parameters = self.modulate(language_BD)[:, None].chunk(4, dim=-1)
        tokens = []
        for i, maps in enumerate((fine_BPH, coarse_BQH)):
            scale, shift = parameters[2 * i : 2 * i + 2]
            heat = self.heat[i](functional.relu(maps * (1 + scale) + shift))
            tokens.append(self.token[i](self.keypoints[i](heat)))
        return torch.stack(tokens, dim=1)


def _cells(maps_BChw: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) -> (B, h w, C), float32."""
    return maps_BChw.flatten(2).transpose(1, 2).float() * FEATURE_SCALE


def _bilinear(coarse: tuple[int, ...], fine: tuple[int, ...]) -> torch.Tensor:
    """Bilinear enlargement of a map as a matrix (fine cells, coarse cells): cheaper backwards than interpolation."""
    cells = torch.eye(coarse[0] * coarse[1], device="cpu").view(-1, 1, *coarse)
    return functional.interpolate(cells, size=tuple(fine), mode="bilinear").flatten(1).T.contiguous()


class StateEncoder(nn.Module):
    """State (B, S) -> token (B, D). Sines of the position resolve millimetres inside a range of metres."""

    frequency: torch.Tensor

    def __init__(self, state: int, width: int, octaves: int = 4, position: int = 3) -> None:
        super().__init__()
        self.position = position
        self.register_buffer("frequency", math.pi * 2.0 ** torch.arange(octaves), persistent=False)
        size = state + 2 * octaves * position
        self.net = nn.Sequential(nn.Linear(size, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, state_BS: torch.Tensor) -> torch.Tensor:
        phase = (state_BS[:, : self.position, None] * self.frequency).flatten(1)
        return self.net(torch.cat([state_BS, phase.sin(), phase.cos()], dim=-1))


class Block(nn.Module):
    """Pre-norm self-attention and MLP over tokens (B, T, D)."""

    def __init__(self, width: int, heads: int, ratio: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x_BTD.shape
        qkv = self.qkv(self.norm[0](x_BTD)).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = attend(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x_BTD = x_BTD + self.out(mixed)
        return x_BTD + self.mlp(self.norm[1](x_BTD))
