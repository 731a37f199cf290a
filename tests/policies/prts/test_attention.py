from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from transformers import Qwen3Config, Qwen3Model

from policies.prts.attention import ATTENTION, make_plan, real_tokens, role_attention
from policies.prts.layout import CRLPositions, make_layout
from policies.prts.role_mask import role_mask

COUNTS = st.lists(st.lists(st.integers(0, 6), min_size=5, max_size=5), min_size=1, max_size=5)


def dense(query, key, value, layout):
    """The reference: (B, H, T, D) under the dense mask -> (B, T, H, D)."""
    repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    return scaled_dot_product_attention(query, key, value, attn_mask=role_mask(layout)[:, None]).transpose(1, 2)


def some_counts():
    """Random counts, and the same counts for every sample (which take the slices)."""
    same = st.tuples(st.integers(1, 4), st.lists(st.integers(0, 6), min_size=5, max_size=5))
    return st.one_of(COUNTS, same.map(lambda pair: [pair[1]] * pair[0]))


@settings(max_examples=200, deadline=None)
@given(some_counts(), st.data(), st.sampled_from([1, 4]), st.integers(0, 30), st.sampled_from([1, 2]))
def test_three_calls_equal_the_dense_mask(counts, data, align, width, groups):
    rows = data.draw(st.lists(st.integers(0, len(counts) - 1), min_size=len(counts), max_size=len(counts)))
    layout = make_layout(counts, rows=data.draw(st.sampled_from([None, rows])), align=align, width=width)
    batch, length = layout.shape
    if length == 0 or sum(map(sum, counts)) == 0:
        return
    generator = torch.Generator().manual_seed(sum(map(sum, counts)))
    query = torch.randn(batch, 4, length, 8, generator=generator, requires_grad=True)
    key, value = (torch.randn(batch, 4 // groups, length, 8, generator=generator, requires_grad=True) for _ in range(2))
    weight = torch.randn(batch, length, 4, 8, generator=generator) * real_tokens(layout)[:, :, None, None]
    got, _ = role_attention(torch.nn.Identity(), query, key, value, None, role_plan=make_plan(layout))
    expected = dense(query, key, value, layout)
    real = real_tokens(layout)
    torch.testing.assert_close(got[real], expected[real], atol=1e-5, rtol=0)
    assert torch.isfinite(got).all()
    gradients = torch.autograd.grad((got * weight).sum(), (query, key, value), allow_unused=True)
    reference = torch.autograd.grad((expected * weight).sum(), (query, key, value))
    for gradient, wanted in zip(gradients, reference, strict=True):
        torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=0)


def test_unpacked_rows_take_slices_and_equal_lengths_share_one_mask():
    same = make_plan(make_layout([[4, 3, 2, 3, 4]] * 3))
    assert [same.main.columns, same.action_query.columns, same.goal.columns] == [
        (slice(0, 9),),
        (slice(9, 12),),
        (slice(12, 16),),
    ]
    assert same.action_key.columns == (slice(0, 4), slice(9, 12))
    assert same.back_BT is None
    assert same.action_mask.shape == (1, 1, 3, 7)
    ragged = make_plan(make_layout([[4, 3, 2, 3, 4], [4, 1, 2, 3, 2]]))
    assert ragged.main.columns == (slice(0, 9),)
    assert ragged.back_BT is not None
    assert ragged.action_query.columns is None
    assert ragged.action_mask.shape == (1, 1, 3, 7)


def test_a_plan_for_other_rows_is_refused():
    plan = make_plan(make_layout([[4, 3, 2, 3, 4]]))
    states = torch.zeros(1, 2, 5, 8)
    with pytest.raises(ValueError, match=r"role_plan is for rows \(1, 16\)"):
        role_attention(torch.nn.Identity(), states, states, states, None, role_plan=plan)


def tiny_qwen3() -> Qwen3Model:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=11, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, attn_implementation=ATTENTION,
    )  # fmt: skip
    return Qwen3Model(config).eval()


def test_qwen3_through_the_interface_equals_the_dense_mask():
    model, layout = tiny_qwen3(), make_layout([[4, 3, 2, 3, 4], [2, 1, 2, 3, 2], [3, 2, 1, 2, 3]], rows=[0, 1, 1])
    embeds = torch.randn(*layout.shape, 16)
    common = {"inputs_embeds": embeds, "position_ids": layout.position_BT, "use_cache": False}
    with torch.no_grad():
        got = model(**common, attention_mask={"full_attention": None}, role_plan=make_plan(layout))
        mask = role_mask(layout)[:, None]
        model.set_attn_implementation("sdpa")
        expected = model(**common, attention_mask={"full_attention": mask})
        model.set_attn_implementation("eager")
        additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        eager = model(**common, attention_mask={"full_attention": additive})
    real = real_tokens(layout)
    for other in (expected, eager):
        torch.testing.assert_close(got.last_hidden_state[real], other.last_hidden_state[real], atol=1e-5, rtol=0)


def hidden(model, embeds_by_role, counts, positions=CRLPositions.AFTER_STATE):
    layout = make_layout(counts, positions=positions)
    rows = layout.assemble(embeds_by_role)
    out = model(
        inputs_embeds=rows, position_ids=layout.position_BT, attention_mask={"full_attention": None},
        use_cache=False, role_plan=make_plan(layout),
    )  # fmt: skip
    return layout, out.last_hidden_state


def blocks_for(words: int, seed: int = 0, actions: int = 3):
    """Embeddings of one sample; the CRL blocks repeat instruction and action and add a learnable token."""
    generator = torch.Generator().manual_seed(100 + words + seed)
    shared = torch.Generator().manual_seed(7)
    vision, action = torch.randn(1, 5, 16, generator=shared), torch.randn(1, actions, 16, generator=shared)
    learnt = torch.randn(2, 1, 1, 16, generator=shared)
    instruction = torch.randn(1, words, 16, generator=generator)
    blocks = [vision, instruction, action, torch.cat([action, learnt[0]], 1), torch.cat([instruction, learnt[1]], 1)]
    return {role: block.requires_grad_() for role, block in enumerate(blocks)}, [[b.shape[1] for b in blocks]]


def test_leaks_by_gradient():
    model = tiny_qwen3()
    blocks, counts = blocks_for(words=4)
    layout, rows = hidden(model, blocks, counts)
    allowed = {2: {0, 1, 2}, 3: {0, 3}, 4: {4}}  # what each block's last hidden state may depend on
    for role, sources in allowed.items():
        gradients = torch.autograd.grad(
            layout.last(rows, role).square().sum(), list(blocks.values()), retain_graph=True
        )
        moved = {source for source, gradient in enumerate(gradients) if gradient.abs().max() > 0}
        assert moved == sources


def test_leaks_by_value_phi_under_instructions_of_other_lengths():
    model = tiny_qwen3()
    phi = {}
    for positions in CRLPositions:
        for words in (1, 4, 9):
            layout, rows = hidden(model, *blocks_for(words), positions)
            phi[positions, words] = layout.last(rows, 3)
    for words in (4, 9):
        ours = phi[CRLPositions.AFTER_STATE, words] - phi[CRLPositions.AFTER_STATE, 1]
        paper = phi[CRLPositions.PAPER, words] - phi[CRLPositions.PAPER, 1]
        assert ours.abs().max() < 1e-5
        assert paper.abs().max() > 1e-4  # the leak through RoPE that a gradient test cannot see


def test_psi_equals_encoding_the_instruction_alone():
    model = tiny_qwen3()
    blocks, counts = blocks_for(words=4)
    layout, rows = hidden(model, blocks, counts)
    alone_layout, alone = hidden(model, {4: blocks[4]}, [[0, 0, 0, 0, 5]])
    torch.testing.assert_close(layout.last(rows, 4), alone_layout.last(alone, 4), atol=1e-5, rtol=0)


def test_behaviour_cloning_is_the_same_without_the_contrastive_blocks():
    model = tiny_qwen3()
    blocks, counts = blocks_for(words=4)
    layout, rows = hidden(model, blocks, counts)
    short_layout, short = hidden(model, {role: blocks[role] for role in (0, 1, 2)}, [[*counts[0][:3], 0, 0]])
    torch.testing.assert_close(layout.pick(rows, 2)[0], short_layout.pick(short, 2)[0], atol=1e-5, rtol=0)
