"""The flow-matching action expert of PRTS's post-training: a diffusion transformer on the backbone's hidden states.

x_t = t * action + (1 - t) * noise, and the expert learns the velocity action - noise (Lipman et al. 2023). Training
draws t = s * (1 - u), u ~ Beta(1.5, 1), s = 0.999, which favours noisy samples (pi0, arXiv 2410.24164, App. B);
sampling takes a few Euler steps from noise at t = 0. Blocks alternate between attention to the backbone's tokens and
attention among the action tokens. Keys and values of the backbone's tokens do not depend on t: they are computed once
for a chunk (`prefix`) and used at every Euler step.

Shapes: B batch, H steps of a chunk, A action channels, N context tokens, D width, h heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from embodied.attention import attend

Guide = Callable[[Callable[[Tensor], Tensor], Tensor, float], Tensor]  # velocity, x, t -> velocity


@dataclass
class FlowConfig:
    """Sizes and sampling. draws: noise draws for each sample and training step, all on one backbone pass.
    temperature: deviation of the noise that sampling starts from; 0 starts at its centre, which gives one chunk near
    the middle of the likely ones."""

    width: int = 256
    layers: int = 6
    heads: int = 4
    ratio: int = 4
    steps: int = 5
    temperature: float = 0.0
    draws: int = 1
    beta: float = 1.5
    latest: float = 0.999


@dataclass(frozen=True)
class Prefix:
    """Keys and values (B, h, N, D / h) of the context for each cross-attention block, and which tokens are real."""

    keys_values: tuple[tuple[Tensor, Tensor], ...]
    mask_B11N: Tensor

    def repeat(self, times: int) -> Prefix:
        """Every sample `times` times, one after another."""
        pairs = tuple(
            (key.repeat_interleave(times, 0), value.repeat_interleave(times, 0)) for key, value in self.keys_values
        )
        return Prefix(pairs, self.mask_B11N.repeat_interleave(times, 0))


class FlowBlock(nn.Module):
    """Attention (to the prefix, or among the action tokens) and MLP, both scaled, shifted and gated by the time."""

    def __init__(self, config: FlowConfig, context: int | None) -> None:
        super().__init__()
        width = config.width
        self.heads, self.cross = config.heads, context is not None
        self.norm = nn.ModuleList([nn.LayerNorm(width, elementwise_affine=False) for _ in range(2)])
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width if context is None else context, 2 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, config.ratio * width), nn.GELU(approximate="tanh"), nn.Linear(config.ratio * width, width)
        )
        self.modulate = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def keys_values(self, tokens_BND: Tensor) -> tuple[Tensor, Tensor]:
        key_BND, value_BND = self.key_value(tokens_BND).chunk(2, dim=-1)
        return self._split(key_BND), self._split(value_BND)

    def forward(self, x_BHD: Tensor, time_BD: Tensor, pair: tuple[Tensor, Tensor] | None, mask: Tensor) -> Tensor:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.modulate(time_BD)[:, None].chunk(6, dim=-1)
        inner_BHD = self.norm[0](x_BHD) * (1 + scale) + shift
        key, value = pair if pair is not None else self.keys_values(inner_BHD)
        seen = mask if self.cross else None
        mixed = attend(self._split(self.query(inner_BHD)), key, value, attn_mask=seen)
        x_BHD = x_BHD + gate * self.out(mixed.transpose(1, 2).flatten(2))
        return x_BHD + gate_mlp * self.mlp(self.norm[1](x_BHD) * (1 + scale_mlp) + shift_mlp)

    def _split(self, x_BND: Tensor) -> Tensor:
        return x_BND.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FlowExpert(nn.Module):
    """Noisy chunk (B, H, A), time and prefix -> velocity (B, H, A)."""

    def __init__(self, context: int, chunk: int, action_dim: int, config: FlowConfig) -> None:
        super().__init__()
        if config.width % (2 * config.heads) or min(config.layers, config.steps) < 1 or config.temperature < 0:
            raise ValueError(
                f"flow expert: width should be a multiple of 2 * heads, layers and steps 1 or more, temperature not "
                f"negative, got {config}"
            )
        self.config, self.chunk, self.action_dim = config, chunk, action_dim
        width = config.width
        self.embed = nn.Linear(action_dim, width)
        self.place = nn.Parameter(torch.randn(1, chunk, width) * 0.02)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.norm_context = nn.LayerNorm(context)
        self.blocks = nn.ModuleList([FlowBlock(config, context if i % 2 == 0 else None) for i in range(config.layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, action_dim)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def prefix(self, context_BND: Tensor, real_BN: Tensor) -> Prefix:
        """What the blocks need of the backbone's hidden states (B, N, context)."""
        normal_BND = self.norm_context(context_BND)
        pairs = tuple(block.keys_values(normal_BND) for block in self.blocks if block.cross)  # type: ignore[operator]
        return Prefix(pairs, real_BN[:, None, None, :])

    def velocity(self, noisy_BHA: Tensor, time_B: Tensor, prefix: Prefix) -> Tensor:
        """The predicted action - noise at time t in [0, 1]."""
        time_BD = self.time(_waves(time_B, self.config.width))
        x_BHD = self.embed(noisy_BHA) + self.place
        pairs = iter(prefix.keys_values)
        for block in self.blocks:
            x_BHD = block(x_BHD, time_BD, next(pairs) if block.cross else None, prefix.mask_B11N)
        return self.head(self.norm(x_BHD))

    def loss(self, actions_BHA: Tensor, valid_BH: Tensor, prefix: Prefix) -> Tensor:
        """Mean squared error of the velocity over the valid steps."""
        draws = self.config.draws
        actions_BHA, valid_BH = actions_BHA.repeat_interleave(draws, 0), valid_BH.repeat_interleave(draws, 0)
        prefix = prefix.repeat(draws) if draws > 1 else prefix
        noise_BHA = torch.randn_like(actions_BHA)
        time_B = self.draw_time(len(actions_BHA), actions_BHA.device)
        noisy_BHA = time_B[:, None, None] * actions_BHA + (1 - time_B[:, None, None]) * noise_BHA
        error_BH = (self.velocity(noisy_BHA, time_B, prefix) - (actions_BHA - noise_BHA)).square().mean(-1)
        return (error_BH * valid_BH).sum() / valid_BH.sum().clamp(min=1)

    def draw_time(self, count: int, device: torch.device) -> Tensor:
        """t = s * (1 - u), u ~ Beta(b, 1), drawn by inverting its distribution function u^b."""
        return self.config.latest * (1 - torch.rand(count, device=device) ** (1 / self.config.beta))

    def sample(
        self, prefix: Prefix, noise_BHA: Tensor | None = None, steps: int | None = None, guide: Guide | None = None
    ) -> Tensor:
        """Actions (B, H, A) by `steps` Euler steps from standard normal noise times the temperature at t = 0. `guide`
        may change the velocity (real-time chunking)."""
        mask = prefix.mask_B11N
        if noise_BHA is None:
            noise_BHA = torch.randn(len(mask), self.chunk, self.action_dim, device=mask.device)
        x_BHA, count = noise_BHA * self.config.temperature, steps or self.config.steps
        for i in range(count):
            time_B = torch.full((len(mask),), i / count, device=mask.device)
            velocity = partial(self.velocity, time_B=time_B, prefix=prefix)
            x_BHA = x_BHA + (velocity(x_BHA) if guide is None else guide(velocity, x_BHA, i / count)) / count
        return x_BHA


def _waves(time_B: Tensor, width: int) -> Tensor:
    """Sines and cosines (B, width) of t at periods from 0.004 to 4 (pi0)."""
    period = 4e-3 * (1e3) ** torch.linspace(0, 1, width // 2, device=time_B.device)
    phase_BW = 2 * math.pi * time_B[:, None].float() / period
    return torch.cat([phase_BW.sin(), phase_BW.cos()], dim=-1)
