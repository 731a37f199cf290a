from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from embodied.checkpoint import load_parts
from embodied.schema import ACTION, IMAGE_KEYS, STATE, TASK
from policies.bc.model import BehaviourCloning
from policies.prts.layout import Role
from policies.prts.model import ActionTokens
from policies.prts.nano import PRTSNano


@pytest.mark.parametrize("stage", ["pretrain", "posttrain", "joint", "value"])
def test_every_trained_parameter_of_a_stage_gets_a_gradient(nano, stage):
    model = nano.tiny()
    model.set_stage(stage)
    loss, parts = model.training_step(nano.batch_for(model, nano.five))
    loss.backward()
    assert torch.isfinite(loss)
    wrong = [name for name, p in model.named_parameters() if p.requires_grad != (p.grad is not None)]
    assert wrong == []
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    expected = {
        "pretrain": {"backbone", "embed_action", "action_head", "phi_token", "psi_token", "crl"},
        "posttrain": {"backbone", "expert", "focus", "direct"},
        "joint": {
            "backbone",
            "embed_action",
            "action_head",
            "phi_token",
            "psi_token",
            "crl",
            "expert",
            "focus",
            "direct",
        },
        "value": {"crl"},
    }
    assert trained == expected[stage]
    assert ("flow" in parts) == (stage in ("posttrain", "joint"))


def test_behaviour_cloning_is_untouched_by_the_contrastive_blocks(nano):
    losses = []
    for contrastive in (1.0, 0.0):
        model = nano.tiny(contrastive=contrastive)
        model.set_stage("pretrain")
        losses.append(model.training_step(nano.batch_for(model, nano.five))[1])
    assert "action_to_goal" not in losses[1]
    assert losses[0]["bc"].item() == pytest.approx(losses[1]["bc"].item(), abs=1e-5)


def features(model, batch):
    words = model.backbone.words(batch[TASK])
    encoded = model.encode(model.backbone.observe(batch), words, model.tokens(batch[ACTION]), phi=True, psi=True)
    return model.phi(encoded), model.psi(encoded).index_select(0, words.index_B)


@torch.no_grad()
def test_phi_carries_no_instruction_and_psi_nothing_else(nano):
    model = nano.tiny()
    batch = nano.batch_for(model, nano.five)
    phi, psi = features(model, batch)
    swapped_phi, swapped_psi = features(model, {**batch, TASK: [nano.texts[1]] * 5})  # other words, other token counts
    torch.testing.assert_close(phi, swapped_phi, atol=1e-5, rtol=0)
    assert (psi[0] - swapped_psi[0]).abs().max() > 1e-3
    other_phi, other_psi = features(model, {**nano.batch_for(model, nano.five, seed=1), TASK: list(nano.five)})
    torch.testing.assert_close(psi, other_psi, atol=1e-5, rtol=0)
    assert (phi - other_phi).abs().max() > 1e-3
    torch.testing.assert_close(model.goals(model.backbone.words(nano.five))[[0, 1, 0, 2, 1]], psi, atol=1e-5, rtol=0)


@pytest.mark.parametrize("positions", ["after_state", "paper"])
@torch.no_grad()
def test_value_is_the_scaled_inner_product(nano, positions):
    model = nano.tiny(positions=positions)
    batch = nano.batch_for(model, nano.five)
    phi, psi = features(model, batch)
    torch.testing.assert_close(model.value(batch), 5.0 * (phi * psi).sum(-1), atol=1e-4, rtol=0)


def test_joint_training_stops_the_flow_gradient_at_the_backbone(nano):
    model = nano.tiny()
    model.set_stage("joint")
    batch = nano.batch_for(model, nano.five)
    observed, words = model.backbone.observe(batch), model.backbone.words(batch[TASK])
    encoded = model.encode(observed, words, model.tokens(batch[ACTION]))
    model._flow_loss(encoded, batch, stop=True).backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(p.grad is not None for p in model.expert.parameters())
    model._flow_loss(encoded, batch, stop=False).backward()
    assert any(p.grad is not None for p in model.backbone.parameters())


@torch.no_grad()
def test_a_direct_expert_reads_words_and_state_past_the_backbone(nano):
    """The same hidden states, other words or another state: with `direct` the expert's context differs."""
    model = nano.tiny()
    batch = nano.batch_for(model, nano.five)
    through = torch.ones(5, model.backbone.width)
    plain = PRTSNano({**model.config()["backbone"], "direct": False}, {**model.config()["method"]})
    for changed in ({TASK: [nano.texts[2]] * 5}, {STATE: batch[STATE] + 1}):
        first, second = model.look_again(batch, through), model.look_again(batch | changed, through)
        assert first.shape == (5, 6, 32)
        assert (first - second).abs().amax() > 1e-3
        first, second = plain.look_again(batch, through), plain.look_again(batch | changed, through)
        assert first.shape == (5, 4, 32)
        assert torch.equal(first, second)
    assert not any(name.startswith("direct") for name, _ in plain.named_parameters())


def test_a_trunk_lets_each_token_of_the_expert_know_the_others(nano):
    torch.manual_seed(0)
    made = nano.tiny().config()
    model = PRTSNano({**made["backbone"], "trunk": 2}, made["method"])
    model.language.table.update(nano.tiny().language.table)
    batch, through = nano.batch_for(model, nano.five), torch.ones(5, model.backbone.width)
    state = batch[STATE].requires_grad_()
    tokens = model.look_again(batch, through)
    assert tokens.shape == (5, 7, 32)
    for token in range(7):
        (moved,) = torch.autograd.grad(tokens[:, token].square().sum(), state, retain_graph=True)
        assert moved.abs().sum() > 0
    model.set_stage("posttrain")
    model.training_step(nano.batch_for(model, nano.five))[0].backward()
    assert all(p.grad is not None for p in model.direct.parameters())
    for wrong in ({"direct": False}, {"trunk_heads": 3}, {"trunk_heads": 0}, {"trunk": -1}):
        with pytest.raises(ValueError, match="trunk should be"):
            PRTSNano({**made["backbone"], "trunk": 2, **wrong}, made["method"])


@torch.no_grad()
def test_an_expert_begun_as_behaviour_cloning_reads_what_that_read(nano, tmp_path):
    """The trunk's last token, through BC's head, is BC's chunk."""
    torch.manual_seed(0)
    cloned = BehaviourCloning(width=32, depth=2, heads=4, hidden=8, keypoints=4, chunk=4).eval()
    save_file(cloned.state_dict(), tmp_path / "bc.safetensors")
    made = nano.tiny()
    model = PRTSNano({**made.config()["backbone"], "trunk": 2}, made.config()["method"]).eval()
    for policy in (model, cloned):
        policy.language.table.update(made.language.table)
    modules = {"readers": "focus", "words": "direct.words", "state": "direct.state"}
    trunk = {"blocks": "direct.trunk.blocks", "place": "direct.trunk.place", "action": "direct.trunk.gather"}
    load_parts(model, tmp_path / "bc.safetensors", modules | trunk)
    batch = nano.batch_for(model, nano.five)
    chunk = cloned.head(model.look_again(batch, torch.ones(5, 32))[:, -1]).unflatten(-1, (4, 7))
    torch.testing.assert_close(chunk, cloned(batch), atol=1e-5, rtol=0)


@torch.no_grad()
def test_cached_sampling_equals_one_pass_over_what_was_sampled(nano):
    model = nano.tiny().eval()
    batch = nano.batch_for(model, nano.five)
    actions = model.predict(batch)
    assert actions.shape == (5, 4, 7)
    tokens = model.tokens(actions.clamp(-1, 1))  # what decodes to these actions, as byte-pair encoding joins it
    assert (
        model.tokenizer.integers([ids[:n] for ids, n in zip(tokens.ids_BN, tokens.count_B, strict=True)]) != 0
    ).any()
    lists = sampled(model, batch)
    for i, ids in enumerate(lists):
        one = {key: value[i : i + 1] for key, value in batch.items()}
        forced, left = [], 28
        for token in ids:
            allowed = torch.from_numpy(model.tokenizer.lengths) <= left
            scores = next_scores(model, one, forced)[: len(allowed)].masked_fill(~allowed, -torch.inf)
            assert int(scores.argmax()) == token
            forced.append(token)
            left -= int(model.tokenizer.lengths[token])
        assert left == 0


def sampled(model, batch):
    kept = {}
    decode = type(model.tokenizer).decode

    class Spy(type(model.tokenizer)):
        def decode(self, tokens):
            kept["tokens"] = tokens
            return decode(self, tokens)

    plain = model.tokenizer
    model.tokenizer = Spy(plain.chunk, plain.action_dim, plain.scale, plain.bpe)
    model.predict(batch)
    model.tokenizer = plain
    return kept["tokens"]


def next_scores(model, one, forced):
    """Scores of the next action token by one uncached pass over everything before it."""
    actions = ActionTokens(torch.tensor([forced], dtype=torch.long), torch.tensor([len(forced)])) if forced else None
    encoded = model.encode(model.backbone.observe(one), model.backbone.words(one[TASK]), actions)
    return model.action_head(encoded.layout.last(encoded.hidden_BTD, Role.ACTION if forced else Role.INSTRUCTION))[0]


@torch.no_grad()
def test_flow_head_does_not_depend_on_the_rest_of_the_batch(nano):
    model = nano.tiny(head="flow").eval()
    for parameter in model.expert.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    batch, noise = nano.batch_for(model, nano.five), torch.randn(5, 4, 7)
    together = model.predict(batch, noise)
    for i in range(5):
        one = {key: value[i : i + 1] for key, value in batch.items()}
        torch.testing.assert_close(model.predict(one, noise[i : i + 1]), together[i : i + 1], atol=1e-5, rtol=1e-5)


def test_learns_actions_and_goals_of_a_few_samples(nano):
    model = nano.tiny()
    model.set_stage("pretrain")
    batch = nano.batch_for(model, nano.five)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        loss, parts = model.training_step(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert parts["bc"] < 0.3
    assert parts["action_to_goal"] < 0.1
    model.eval()
    assert (model.predict(batch) - batch[ACTION]).abs().max() < 2 * model.tokenizer.error_bound


def test_failures_are_negatives_only(nano):
    model = nano.tiny()
    model.set_stage("pretrain")
    batch = nano.batch_for(model, nano.five)
    failed = {**batch, "success": torch.tensor([0, 0, 0, 0, 0], dtype=torch.int8)}
    parts = model.training_step(failed)[1]
    assert parts["action_to_goal"] == 0
    assert parts["goal_to_action"] == 0
    assert model.training_step(batch)[1]["goal_to_action"] > 0


def test_all_samples_in_one_row_equal_one_sample_a_row(nano):
    model = nano.tiny()
    model.set_stage("joint")
    batch = nano.batch_for(model, nano.five)
    losses = []
    for packs in (True, False):
        model.backbone.packs = packs
        torch.manual_seed(0)  # the flow's noise
        losses.append(torch.stack(list(model.training_step(batch)[1].values())))
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", ["after_state", "paper"])
@torch.no_grad()
def test_the_value_stage_sees_what_pretraining_sees(nano, positions):
    """Leaving INSTRUCTION and ACTION out changes no contrastive loss."""
    model = nano.tiny(positions=positions)
    batch = nano.batch_for(model, nano.five)
    found = []
    for stage in ("pretrain", "value"):
        model.set_stage(stage)
        parts = model.training_step(batch)[1]
        found.append(torch.stack([parts["action_to_goal"], parts["goal_to_action"]]))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


def test_errors_say_what_to_do(nano):
    model = nano.tiny()
    with pytest.raises(ValueError, match="stages pretrain, posttrain, joint, value, got 'bc'"):
        model.set_stage("bc")
    with pytest.raises(ValueError, match="contrastive heads, but"):
        nano.tiny(contrastive=0.0).set_stage("value")
    model.tokenizer = None
    with pytest.raises(ValueError, match="FAST tokenizer should be fitted"):
        model.training_step(nano.batch_for(model, nano.five))
    with pytest.raises(ValueError, match="head should be one of"):
        nano.tiny(head="other")
    with pytest.raises(ValueError, match="grid should divide"):
        PRTSNano({**nano.backbone, "grid": [3, 2]})


@pytest.mark.slow
def test_frozen_towers_give_the_tokens():
    """Images and real words through the packaged weights: the default sizes, one sample."""
    model = PRTSNano()
    images = {key: torch.randint(0, 256, (2, 128, 128, 3), dtype=torch.uint8) for key in IMAGE_KEYS}
    observed = model.backbone.observe({**images, STATE: torch.zeros(2, 11)})
    assert observed.tokens_BND.shape == (2, (16 + 2) + (4 + 2) + 1, 192)
    words = model.backbone.words(["pick up the alphabet soup", "pick up the ketchup", "pick up the alphabet soup"])
    assert words.index_B.tolist() == [0, 1, 0]
    assert words.first().tolist() == [0, 1]
    assert words.count_U[0] > words.count_U[1] - 3
