"""diffusers' spatio-temporal U-Net (Stable Video Diffusion's) with an action a frame.

Spatial cross-attention of frame f attends to the action token of frame f alone. diffusers' own forward gives every
frame all tokens; temporal cross-attention takes the first frame's token, as there.

Shapes: B samples, F frames, C channels, H W latent cells, E width of an action token.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel
from torch import Tensor

from embodied.attention import attend

ADDED = 3  # frames a second, motion bucket, noise augmentation
TIME_IDS = (6.0, 127.0, 0.02)  # SVD's usual ones; constant here


class ActionUNet(UNetSpatioTemporalConditionModel):
    """Same modules and weights as its parent; only `forward` differs."""

    def forward(  # type: ignore[override]
        self, sample_BFCHW: Tensor, c_noise_B: Tensor, actions_BFE: Tensor, time_ids: Tensor | None = None
    ) -> Tensor:
        """Scaled input, ln(s) / 4 and action tokens -> F (B, F, C', H, W)."""
        batch, frames = sample_BFCHW.shape[:2]
        embedding = self._embed(c_noise_B, sample_BFCHW, time_ids).repeat_interleave(frames, dim=0)
        x = self.conv_in(sample_BFCHW.flatten(0, 1))
        common: dict[str, Any] = {
            "temb": embedding,
            "image_only_indicator": torch.zeros(batch, frames, dtype=x.dtype, device=x.device),
        }
        tokens = {"encoder_hidden_states": actions_BFE.flatten(0, 1)[:, None]}
        kept: tuple[Tensor, ...] = (x,)
        for block in self.down_blocks:
            x, states = block(hidden_states=x, **common, **(tokens if _attends(block) else {}))
            kept += states
        x = self.mid_block(hidden_states=x, **common, **tokens)
        for block in self.up_blocks:
            count = len(block.resnets)  # type: ignore[arg-type]
            states, kept = kept[-count:], kept[:-count]
            x = _fit(x, states[-1])
            x = block(hidden_states=x, res_hidden_states_tuple=states, **common, **(tokens if _attends(block) else {}))
        x = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        return x.unflatten(0, (batch, frames))

    def _embed(self, c_noise_B: Tensor, sample: Tensor, time_ids: Tensor | None) -> Tensor:
        """(B, time width): noise level and the constant ids."""
        if time_ids is None:
            time_ids = torch.tensor(TIME_IDS, device=sample.device).expand(len(sample), ADDED)
        level = self.time_embedding(self.time_proj(c_noise_B).to(sample.dtype))
        added = self.add_time_proj(time_ids.flatten()).reshape(len(sample), -1)
        return level + self.add_embedding(added.to(level.dtype))


class AttendProcessor:
    """diffusers' attention of a transformer block, (N, Q, D) over itself or (N, K, E), by `attend`: on a CPU a tenth of
    a training step's time in bfloat16."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        projected = (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        query, key, value = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in projected)
        mixed = attend(query, key, value).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](mixed)) / attn.rescale_output_factor


def _attends(block: Any) -> bool:
    return bool(getattr(block, "has_cross_attention", False))


def _fit(x: Tensor, state: Tensor) -> Tensor:
    """Where a side was odd, upsampling gives one cell too many: cut off."""
    return x[..., : state.shape[-2], : state.shape[-1]]


def make_unet(inside: int, outside: int, width: int, frames: int, sizes: dict[str, Any]) -> ActionUNet:
    """A random U-Net. sizes: channels of each level, which levels attend, layers, heads."""
    channels, attend = list(sizes["channels"]), list(sizes["attend"])
    if len(channels) != len(attend) or any(channel % 32 for channel in channels):
        raise ValueError(f"channels should be multiples of 32, one `attend` each, got {channels} and {attend}")
    down = ["CrossAttnDownBlockSpatioTemporal" if a else "DownBlockSpatioTemporal" for a in attend]
    up = ["CrossAttnUpBlockSpatioTemporal" if a else "UpBlockSpatioTemporal" for a in reversed(attend)]
    unet = ActionUNet(
        sample_size=None,
        in_channels=inside,
        out_channels=outside,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        block_out_channels=tuple(channels),
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=32 * ADDED,
        layers_per_block=sizes.get("layers", 1),
        cross_attention_dim=width,
        num_attention_heads=sizes.get("heads", 4),
        num_frames=frames,
    )
    unet.set_attn_processor(AttendProcessor())
    return unet
