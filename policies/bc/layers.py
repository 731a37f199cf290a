"""The block of the behaviour-cloning transformer. Shapes: B batch, D width, T tokens."""

from __future__ import annotations

import torch
from torch import nn

from embodied.attention import attend


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
