"""Attention under the role-aware mask as three ordinary attention calls, exact, for any Hugging Face decoder.

The mask splits into three problems that ordinary kernels solve: VISION_STATE, INSTRUCTION and ACTION among themselves
(causal); CRL_ACTION over [VISION_STATE, itself] (causal, aligned at the bottom right); CRL_GOAL over itself (causal).
`is_causal` of torch aligns at the top left when queries and keys differ in number, so the second call has a mask.

Importing this module registers the name `ATTENTION` with transformers. Use: give the text model
`attn_implementation=ATTENTION` and call it with `role_plan=make_plan(layout)`; without a plan it is plain SDPA.

Shapes: B rows, T tokens of a row, S samples, L tokens of a call, H heads, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from embodied.attention import attend
from policies.prts.layout import MAIN, PAD, Layout, Role

ATTENTION = "prts_roles"


@dataclass(frozen=True)
class Take:
    """The tokens of one call out of rows (B, T): plain slices, the same of every row, where possible, else gathered."""

    index_SL: Tensor
    columns: tuple[slice, ...] | None

    def __call__(self, rows_BTHD: Tensor) -> Tensor:
        """(B, T, H, D) -> (S, H, L, D)."""
        if self.columns is not None:
            parts = [rows_BTHD[:, columns] for columns in self.columns]
            return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).transpose(1, 2)
        flat = rows_BTHD.reshape(-1, *rows_BTHD.shape[2:]).index_select(0, self.index_SL.flatten())
        return flat.view(*self.index_SL.shape, *flat.shape[1:]).transpose(1, 2)


@dataclass(frozen=True)
class RolePlan:
    """What the three calls need, worked out once a forward pass and used by every layer."""

    shape: tuple[int, int]
    main: Take
    action_query: Take
    action_key: Take
    action_mask: Tensor  # (S or 1, 1, L, L'), true where seen
    goal: Take
    back_BT: Tensor | None  # where each token's result lies in the three results laid end to end; None: in place


def make_plan(layout: Layout) -> RolePlan:
    """The plan of a layout. Cheap next to one layer; build it once for each batch."""
    batch, length = layout.shape
    main, action, goal = layout.block(*MAIN), layout.block(Role.CRL_ACTION), layout.block(Role.CRL_GOAL)
    takes = [_take(*block, layout) for block in (main, action, goal)]
    keys = _action_keys(takes[1], layout)
    device = layout.role_BT.device
    back_T = torch.zeros(batch * length, dtype=torch.long, device=device)
    offset = 0
    for index_SL, real_SL in (main, action, goal):
        slot_SL = offset + torch.arange(index_SL.numel(), device=device).view(index_SL.shape)
        back_T[index_SL[real_SL]] = slot_SL[real_SL]
        offset += index_SL.numel()
    mask = _bottom_right(layout.counts_SR[:, Role.VISION_STATE], action[0].shape[1], keys.index_SL.shape[1])
    back_BT = None if _in_place(takes, length) else back_T.view(batch, length)
    return RolePlan((batch, length), takes[0], takes[1], keys, mask, takes[2], back_BT)


def _action_keys(query: Take, layout: Layout) -> Take:
    """[VISION_STATE, CRL_ACTION] of every sample; two slices when both blocks are slices and no sample is shorter."""
    index_SL, _ = layout.block(Role.VISION_STATE, Role.CRL_ACTION)
    vision, real_SL = layout.block(Role.VISION_STATE)
    before = _take(vision, real_SL, layout)
    if before.columns is None or query.columns is None or not bool(real_SL.all()):
        return Take(index_SL, None)
    return Take(index_SL, before.columns + query.columns)


def _in_place(takes: Sequence[Take], length: int) -> bool:
    """Whether the three results, side by side, are the rows: every row has the same blocks and no padding."""
    end = 0
    for take in takes:
        if take.index_SL.numel() == 0:
            continue
        if take.columns is None or take.columns[0].start != end:
            return False
        end = take.columns[0].stop
    return end == length


def _take(index_SL: Tensor, real_SL: Tensor, layout: Layout) -> Take:
    """A slice when every row holds one sample and its tokens lie in the same columns as the first row's."""
    batch, length = layout.shape
    samples, size = index_SL.shape
    if samples == 0 or size == 0 or samples != batch:
        return Take(index_SL, None)
    first = int(index_SL[int(real_SL.sum(1).argmax()), 0]) % length
    row_S = torch.arange(batch, device=index_SL.device)[:, None] * length
    wanted_SL = row_S + first + torch.arange(size, device=index_SL.device)
    aligned = first + size <= length and bool(((index_SL == wanted_SL) | ~real_SL).all())
    return Take(index_SL, (slice(first, first + size),) if aligned else None)


def _bottom_right(before_S: Tensor, queries: int, keys: int) -> Tensor:
    """(S, 1, L, L') bool, or (1, 1, L, L') when all samples agree: query i sees key j <= before + i."""
    if len(before_S) and bool((before_S == before_S[0]).all()):
        before_S = before_S[:1]
    query_L = torch.arange(queries, device=before_S.device)
    key_L = torch.arange(keys, device=before_S.device)
    return (key_L[None, None, :] <= before_S[:, None, None] + query_L[None, :, None])[:, None]


def three_calls(
    query_BTHD: Tensor, key_BTHD: Tensor, value_BTHD: Tensor, plan: RolePlan, scaling: float | None, dropout: float
) -> Tensor:
    """Attention (B, T, H, D) under the plan's roles; keys and values may have fewer heads (grouped queries)."""
    grouped = query_BTHD.shape[2] != key_BTHD.shape[2]
    results = []
    for take_q, take_k, mask in (
        (plan.main, plan.main, None),
        (plan.action_query, plan.action_key, plan.action_mask),
        (plan.goal, plan.goal, None),
    ):
        if take_q.index_SL.numel() == 0:
            continue
        out_SHLD = attend(
            take_q(query_BTHD), take_k(key_BTHD), take_k(value_BTHD),
            attn_mask=mask, is_causal=mask is None, dropout_p=dropout, scale=scaling, enable_gqa=grouped,
        )  # fmt: skip
        results.append(out_SHLD.transpose(1, 2))
    if plan.back_BT is None:
        return results[0] if len(results) == 1 else torch.cat(results, dim=1)
    out_XHD = torch.cat([result.flatten(0, 1) for result in results])
    return out_XHD.index_select(0, plan.back_BT.flatten()).view(query_BTHD.shape)


def role_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    role_plan: RolePlan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (B, H, T, D) -> (B, T, H, D). The plan replaces the mask."""
    if role_plan is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if query.shape[2] != role_plan.shape[1] or key.shape[2] != query.shape[2] or query.shape[0] != role_plan.shape[0]:
        raise ValueError(
            f"role_plan is for rows {role_plan.shape}, got queries of {(query.shape[0], query.shape[2])} and "
            f"{key.shape[2]} keys: decode from a cache without a plan, under a 4-D mask"
        )
    rows = (query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return three_calls(*rows, role_plan, scaling, dropout), None


def prefix_mask(real_BK: Tensor, queries: int) -> Tensor:
    """(B, 1, Q, K) bool for decoding from a cache: the last Q of K keys are the queries; causal, padding unseen."""
    keys = real_BK.shape[1]
    column_K = torch.arange(keys, device=real_BK.device)
    causal_QK = column_K[None, :] <= column_K[keys - queries :, None]
    own_QK = column_K[None, :] == column_K[keys - queries :, None]
    return ((causal_QK & real_BK[:, None, :]) | own_QK)[:, None]


def real_tokens(layout: Layout) -> Tensor:
    """(B, T) bool: which tokens are not padding."""
    return layout.role_BT != PAD


AttentionInterface.register(ATTENTION, role_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
