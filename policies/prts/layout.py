"""The token layout of PRTS as one object: blocks, roles, samples and position ids of a batch of rows (paper, Sec. 3).

A sample is five blocks in a fixed order, any of which may be empty. Samples lie one to a row, or several (packing);
rows are padded on the right, and `align` leaves padding between packed samples. Nothing here depends on contents.

Shapes: S samples, B rows, T tokens of a row, R = 5 roles, N tokens of a block (padded to the longest), D channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any

import torch
from torch import Tensor


class Role(IntEnum):
    """What a token is. The order is the order of the blocks in a sample."""

    VISION_STATE = 0  # images, then proprioception (and the prompt's marker after it)
    INSTRUCTION = 1
    ACTION = 2  # FAST tokens, predicted autoregressively
    CRL_ACTION = 3  # the action tokens again and one learnable token: phi(s, a)
    CRL_GOAL = 4  # the instruction again and one learnable token: psi(l)


PAD = -1
MAIN = (Role.VISION_STATE, Role.INSTRUCTION, Role.ACTION)


class CRLPositions(Enum):
    """Where the position ids of CRL_ACTION start."""

    AFTER_STATE = (
        "after_state"  # right after the last VISION_STATE token: phi cannot depend on the instruction's length
    )
    PAPER = "paper"  # repeats ACTION's ids: the instruction's length reaches phi through RoPE


@dataclass(frozen=True)
class Layout:
    """Role, sample, position id and place in its block of every token of a batch of rows.

    Built by `make_layout`. Padding has role and sample `PAD`, position 0. Equal objects are not compared.
    """

    counts_SR: Tensor
    role_BT: Tensor
    sample_BT: Tensor
    position_BT: Tensor
    place_BT: Tensor
    first_S: Tensor  # flat index (row * T + column) of the first token of each sample
    span_S: Tensor  # the first position id after VISION_STATE
    _cache: dict = field(default_factory=dict, repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T)."""
        return self.role_BT.shape[0], self.role_BT.shape[1]

    @property
    def samples(self) -> int:
        return self.counts_SR.shape[0]

    def to(self, device: torch.device | str) -> Layout:
        names = ("counts_SR", "role_BT", "sample_BT", "position_BT", "place_BT", "first_S", "span_S")
        return Layout(**{name: getattr(self, name).to(device) for name in names})

    def block(self, *roles: Role) -> tuple[Tensor, Tensor]:
        """Where the tokens of some roles lie: flat indices (S, N), and which of them are real (S, N), bool.

        The roles are given in block order; their tokens come in row order, padded on the right with a real index.
        """
        if roles not in self._cache:
            self._cache[roles] = self._block(roles)
        return self._cache[roles]

    def _block(self, roles: Sequence[Role]) -> tuple[Tensor, Tensor]:
        start_SR = self.first_S[:, None] + self.counts_SR.cumsum(1) - self.counts_SR
        counts_Sr, start_Sr = self.counts_SR[:, list(roles)], start_SR[:, list(roles)]
        total_S = counts_Sr.sum(1)
        slot_N = torch.arange(int(total_S.max()) if len(total_S) else 0, device=total_S.device)
        before_Sr = counts_Sr.cumsum(1) - counts_Sr
        index_SN = torch.zeros(len(total_S), len(slot_N), dtype=torch.long, device=total_S.device)
        for r in range(len(roles)):
            inside_SN = (slot_N >= before_Sr[:, r : r + 1]) & (slot_N < (before_Sr + counts_Sr)[:, r : r + 1])
            index_SN = torch.where(inside_SN, start_Sr[:, r : r + 1] + slot_N - before_Sr[:, r : r + 1], index_SN)
        return index_SN, slot_N < total_S[:, None]

    def assemble(self, blocks: Mapping[Role, Tensor]) -> Tensor:
        """Blocks (S, N, D), each padded on the right to its own N -> rows (B, T, D); padding becomes zero."""
        self._check_blocks(blocks)
        batch, length = self.shape
        flat_XD = torch.cat([blocks[role].flatten(0, 1) for role in sorted(blocks)])
        source_X = torch.full((batch * length,), len(flat_XD), dtype=torch.long, device=flat_XD.device)
        offset = 0
        for role in sorted(blocks):
            index_SN, real_SN = self.block(role)
            samples, width = blocks[role].shape[:2]
            source_SN = offset + torch.arange(samples * width, device=flat_XD.device).view(samples, width)
            source_X[index_SN[real_SN]] = source_SN[:, : index_SN.shape[1]][real_SN]
            offset += samples * width
        padded_XD = torch.cat([flat_XD, flat_XD.new_zeros(1, flat_XD.shape[1])])
        return padded_XD.index_select(0, source_X).view(batch, length, -1)

    def pick(self, rows_BTD: Tensor, *roles: Role) -> tuple[Tensor, Tensor]:
        """The tokens of some roles out of rows (B, T, D): (S, N, D), and which are real (S, N), bool."""
        index_SN, real_SN = self.block(*roles)
        flat = rows_BTD.reshape(-1, rows_BTD.shape[-1]).index_select(0, index_SN.flatten())
        return flat.view(*index_SN.shape, -1), real_SN

    def last(self, rows_BTD: Tensor, role: Role, samples: Tensor | None = None) -> Tensor:
        """The last token of a role's block in each sample, or in those named: (S, D). ValueError without one."""
        chosen = torch.arange(self.samples, device=rows_BTD.device) if samples is None else samples
        counts_S = self.counts_SR[chosen, role]
        if bool((counts_S == 0).any()):
            raise ValueError(
                f"every sample should have a {role.name} block, some have none: give it at least one token"
            )
        end_S = self.first_S[chosen] + self.counts_SR[chosen, : role + 1].sum(1) - 1
        return rows_BTD.reshape(-1, rows_BTD.shape[-1]).index_select(0, end_S)

    def _check_blocks(self, blocks: Mapping[Role, Tensor]) -> None:
        for role in Role:
            need = int(self.counts_SR[:, role].max()) if self.samples else 0
            got = blocks[role].shape[:2] if role in blocks else (self.samples, 0)
            if got[0] != self.samples or got[1] < need:
                raise ValueError(
                    f"{role.name} embeddings should be (S={self.samples}, N>={need}, D), got {tuple(got)}: "
                    "give every block that the layout's counts name"
                )


def make_layout(
    counts: Tensor | Sequence[Sequence[int]],
    *,
    rows: Tensor | Sequence[int] | None = None,
    positions: CRLPositions = CRLPositions.AFTER_STATE,
    span: Tensor | None = None,
    align: int = 1,
    width: int = 0,
) -> Layout:
    """The layout of samples with token counts (S, 5), in block order.

    `rows` (S,) names each sample's row (samples of a row in the order given); left out, one sample a row. `span` (S,)
    is the first position id after VISION_STATE where that is not its token count (Qwen3-VL's image grids take fewer
    ids than tokens). Samples start at multiples of `align`; rows are at least `width` long. ValueError for bad counts.
    """
    counts_SR = torch.as_tensor(counts, dtype=torch.long)
    if counts_SR.ndim != 2 or counts_SR.shape[1] != len(Role) or bool((counts_SR < 0).any()):
        raise ValueError(
            f"counts should be (S, {len(Role)}) token counts, none negative, got {tuple(counts_SR.shape)}: "
            f"one column for each of {', '.join(role.name for role in Role)}"
        )
    samples = counts_SR.shape[0]
    row_S = torch.arange(samples) if rows is None else torch.as_tensor(rows, dtype=torch.long)
    if row_S.shape != (samples,) or bool((row_S < 0).any()):
        raise ValueError(f"rows should name one row for each of {samples} samples, got {row_S.tolist()}")
    device = counts_SR.device
    row_S = row_S.to(device)
    span_S = counts_SR[:, Role.VISION_STATE] if span is None else span.to(device)
    column_S, needed = _columns(counts_SR.sum(1), row_S, align)
    batch, length = (int(row_S.max()) + 1 if samples else 0), max(needed, width)
    flat = _tokens(counts_SR, span_S, positions)
    place_X = (row_S * length + column_S)[flat["sample"]] + flat["in_sample"]
    filled: dict[str, Any] = {}
    for name, empty in (("role", PAD), ("sample", PAD), ("position", 0), ("place", 0)):
        table = torch.full((batch * length,), empty, dtype=torch.long, device=device)
        table[place_X] = flat[name]
        filled[f"{name}_BT"] = table.view(batch, length)
    return Layout(counts_SR=counts_SR, first_S=row_S * length + column_S, span_S=span_S, **filled)


def _columns(size_S: Tensor, row_S: Tensor, align: int) -> tuple[Tensor, int]:
    """The first column of each sample in its row, and the longest row."""
    step_S = (size_S + align - 1) // align * align
    same_SS = (row_S[:, None] == row_S[None, :]).tril(-1)
    column_S = (same_SS * step_S[None, :]).sum(1)
    return column_S, int((column_S + size_S).max()) if len(size_S) else 0


def _tokens(counts_SR: Tensor, span_S: Tensor, positions: CRLPositions) -> dict[str, Tensor]:
    """Role, sample, place in block, place in sample and position id of every token, samples one after another."""
    samples, device = counts_SR.shape[0], counts_SR.device
    size_X = counts_SR.flatten()
    block_T = torch.repeat_interleave(torch.arange(samples * len(Role), device=device), size_X)
    sample_T = block_T // len(Role)
    token_T = torch.arange(len(block_T), device=device)
    place_T = token_T - (size_X.cumsum(0) - size_X)[block_T]
    total_S = counts_SR.sum(1)
    in_sample_T = token_T - (total_S.cumsum(0) - total_S)[sample_T]
    after_words_S = span_S + counts_SR[:, Role.INSTRUCTION]
    crl_S = after_words_S if positions is CRLPositions.PAPER else span_S
    zero_S = torch.zeros_like(span_S)
    start_SR = torch.stack([zero_S, span_S, after_words_S, crl_S, zero_S], dim=1)
    return {
        "role": block_T % len(Role),
        "sample": sample_T,
        "place": place_T,
        "in_sample": in_sample_T,
        "position": start_SR.flatten()[block_T] + place_T,
    }
