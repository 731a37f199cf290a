from __future__ import annotations

import pytest
import torch

from policies.prts.layout import PAD, CRLPositions, Role, make_layout

V, W, A, CA, CG = Role


def test_one_sample_by_hand():
    layout = make_layout([[3, 2, 2, 3, 3]])
    assert layout.role_BT.tolist() == [[V] * 3 + [W] * 2 + [A] * 2 + [CA] * 3 + [CG] * 3]
    assert layout.position_BT.tolist() == [[0, 1, 2, 3, 4, 5, 6, 3, 4, 5, 0, 1, 2]]
    assert layout.place_BT.tolist() == [[0, 1, 2, 0, 1, 0, 1, 0, 1, 2, 0, 1, 2]]


def test_paper_positions_repeat_the_action_block():
    layout = make_layout([[3, 2, 2, 3, 3]], positions=CRLPositions.PAPER)
    assert layout.position_BT.tolist() == [[0, 1, 2, 3, 4, 5, 6, 5, 6, 7, 0, 1, 2]]


def test_span_moves_what_follows_the_images():
    layout = make_layout([[4, 1, 1, 2, 2]], span=torch.tensor([3]))
    assert layout.position_BT.tolist() == [[0, 1, 2, 3, 3, 4, 3, 4, 0, 1]]


def test_padding_and_packing_by_hand():
    layout = make_layout([[1, 1, 0, 0, 0], [0, 0, 0, 0, 2], [2, 0, 1, 0, 0]], rows=[0, 1, 0], align=3, width=7)
    assert layout.shape == (2, 7)
    assert layout.role_BT.tolist() == [[V, W, PAD, V, V, A, PAD], [CG, CG, PAD, PAD, PAD, PAD, PAD]]
    assert layout.sample_BT.tolist() == [[0, 0, PAD, 2, 2, 2, PAD], [1, 1, PAD, PAD, PAD, PAD, PAD]]
    assert layout.position_BT.tolist() == [[0, 1, 0, 0, 1, 2, 0], [0, 1, 0, 0, 0, 0, 0]]
    index, real = layout.block(V, A)
    assert real.tolist() == [[True, False, False], [False] * 3, [True] * 3]
    assert index[real].tolist() == [0, 3, 4, 5]


def test_assemble_and_pick_are_inverse():
    counts = torch.tensor([[2, 3, 1, 2, 4], [1, 1, 3, 4, 2], [2, 0, 0, 0, 1]])
    layout = make_layout(counts, rows=[0, 1, 0])
    blocks = {role: torch.randn(3, int(counts[:, role].max()) + 1, 5) for role in Role}
    rows = layout.assemble(blocks)
    for role in Role:
        picked, real = layout.pick(rows, role)
        assert real.sum(1).tolist() == counts[:, role].tolist()
        assert torch.equal(picked[real], blocks[role][:, :-1][real])
    assert torch.equal(layout.last(rows, CG)[0], blocks[CG][0, 3])
    assert not rows[layout.role_BT == PAD].any()


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="one column for each of VISION_STATE"):
        make_layout([[1, 2]])
    with pytest.raises(ValueError, match="rows should name one row"):
        make_layout([[1, 0, 0, 0, 0]], rows=[0, 1])
    layout = make_layout([[2, 1, 0, 0, 0]])
    with pytest.raises(ValueError, match="INSTRUCTION embeddings"):
        layout.assemble({V: torch.zeros(1, 2, 4)})
    with pytest.raises(ValueError, match="CRL_GOAL block"):
        layout.last(torch.zeros(1, 3, 4), CG)
