"""The parts of the behaviour-cloning transformer.

Shapes: B batch, U distinct instructions, L words, E word features, D width, T tokens.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from embodied.attention import attend


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
