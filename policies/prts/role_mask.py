"""The role-aware causal mask of PRTS, dense: the reference that the fast path must equal.

Shapes: B rows, T tokens of a row (Q queries, K keys).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from policies.prts.layout import MAIN, PAD, Layout, Role


def visible_roles() -> Tensor:
    """(5, 5) bool: whether a query of role q (row) may look at a key of role k (column) of its own sample's past."""
    table = torch.zeros(len(Role), len(Role), dtype=torch.bool)
    for query in MAIN:
        table[query, list(MAIN)] = True
    table[Role.CRL_ACTION, [Role.VISION_STATE, Role.CRL_ACTION]] = True
    table[Role.CRL_GOAL, Role.CRL_GOAL] = True
    return table


def role_mask(layout: Layout) -> Tensor:
    """(B, T, T) bool, true where query q sees key k: same sample, not later, roles allow. Padding sees itself alone."""
    role_BT, sample_BT = layout.role_BT, layout.sample_BT
    column_T = torch.arange(role_BT.shape[1], device=role_BT.device)
    causal_TT = column_T[:, None] >= column_T[None, :]
    same_BTT = sample_BT[:, :, None] == sample_BT[:, None, :]
    table = visible_roles().to(role_BT.device)
    roles_BTT = table[role_BT.clamp(min=0)[:, :, None], role_BT.clamp(min=0)[:, None, :]]
    real_BT = role_BT != PAD
    seen_BTT = causal_TT & same_BTT & roles_BTT & real_BT[:, :, None] & real_BT[:, None, :]
    return seen_BTT | (torch.eye(len(column_T), dtype=torch.bool, device=role_BT.device) & ~real_BT[:, :, None])


def role_mask_mod(layout: Layout) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The same mask as a `mask_mod` for torch's FlexAttention (`create_block_mask`); used to compare speeds."""
    role_BT, sample_BT = layout.role_BT, layout.sample_BT
    table = visible_roles().to(role_BT.device)

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:  # noqa: ARG001
        role_q, role_k = role_BT[b, q], role_BT[b, k]
        allowed = table[role_q.clamp(min=0), role_k.clamp(min=0)] & (sample_BT[b, q] == sample_BT[b, k]) & (q >= k)
        return torch.where(role_q == PAD, q == k, allowed & (role_k != PAD))

    return seen
