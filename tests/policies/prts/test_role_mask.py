from __future__ import annotations

import torch

from policies.prts.layout import make_layout
from policies.prts.role_mask import role_mask, role_mask_mod, visible_roles


def test_table_by_hand():
    assert visible_roles().int().tolist() == [
        [1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [0, 0, 0, 0, 1],
    ]


def test_mask_by_hand():
    mask = role_mask(make_layout([[1, 1, 1, 2, 1]], width=7))[0]
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 0, 0, 1, 0, 0, 0],
        [1, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 1],
    ]


def test_packed_samples_do_not_see_each_other():
    packed = role_mask(make_layout([[1, 1, 1, 2, 1], [2, 1, 0, 1, 1]], rows=[0, 0]))[0]
    assert torch.equal(packed[:6, :6], role_mask(make_layout([[1, 1, 1, 2, 1]]))[0])
    assert torch.equal(packed[6:, 6:], role_mask(make_layout([[2, 1, 0, 1, 1]]))[0])
    assert not packed[6:, :6].any()
    assert not packed[:6, 6:].any()


def test_mask_mod_is_the_same_mask():
    layout = make_layout([[1, 2, 1, 2, 1], [2, 1, 0, 1, 1], [3, 0, 2, 1, 2]], rows=[0, 1, 0], align=4)
    seen, (batch, length) = role_mask_mod(layout), layout.shape
    b, q, k = torch.meshgrid(torch.arange(batch), torch.arange(length), torch.arange(length), indexing="ij")
    assert torch.equal(seen(b, torch.zeros_like(b), q, k), role_mask(layout))
