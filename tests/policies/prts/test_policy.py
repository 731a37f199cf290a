from __future__ import annotations

import numpy as np
import pytest
import torch

from embodied.checkpoint import load_checkpoint, load_policy, save_checkpoint
from embodied.deploy.rtc import PrefixAttentionSchedule, PrefixGuidance, PrefixPolicy
from embodied.protocols import Episode, Policy, ValueFunction
from embodied.schema import ACTION, STATE, TASK
from embodied.transforms import Pipeline

STATISTICS = {
    STATE: {"mean": [0.1] * 8, "std": [0.5] * 8},
    ACTION: {"min": [-0.5] * 7, "max": [1.0] * 7},
}


@pytest.fixture
def saved(nano, tmp_path):
    model = nano.tiny(head="flow")
    for parameter in model.expert.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_checkpoint(tmp_path / "prts", model, Pipeline(model.transforms(), STATISTICS))
    return model, tmp_path / "prts"


def observe(nano, model, texts):
    """An observation as the cache gives it: image maps in place of images, so that no tower is loaded."""
    batch = nano.batch_for(model, texts)
    maps = {name: batch[name].numpy() for name in model.features.columns}
    state = np.random.default_rng(0).normal(size=(len(texts), 8)).astype(np.float32)
    return {**maps, STATE: state, TASK: list(texts)}


def policy_of(model, folder):
    policy = load_policy(folder, replan=2)
    policy.model.language.table.update(model.language.table)
    return policy


def test_a_checkpoint_gives_policy_and_value(nano, saved):
    model, folder = saved
    policy = policy_of(model, folder)
    assert isinstance(policy, Policy)
    assert isinstance(policy, ValueFunction)
    assert (policy.spec.chunk, policy.spec.replan, policy.spec.name) == (4, 2, "PRTSNano")
    observation = observe(nano, model, nano.five)
    actions = policy.act(observation, range(5))
    assert actions.shape == (5, 4, 7)
    assert np.abs(actions).max() <= 1
    value = policy.value(observation, actions, nano.five)
    assert value.shape == (5,)
    assert np.abs(value - policy.value(observation, actions, [nano.texts[1]] * 5)).max() > 1e-3


def test_the_loaded_model_is_the_saved_one(nano, saved):
    model, folder = saved
    loaded = load_checkpoint(folder).model
    assert loaded.config() == model.config()
    assert loaded.tokenizer.encode(nano.chunks(5).numpy()) == model.tokenizer.encode(nano.chunks(5).numpy())
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())


def test_noise_belongs_to_the_episode(nano, saved):
    model, folder = saved
    observation = observe(nano, model, nano.texts)
    episodes = [Episode("suite", task, seed=0) for task in range(3)]

    def run(order):
        policy = policy_of(model, folder)
        policy.reset(range(3), [episodes[i] for i in order])
        rows = {key: [v[i] for i in order] for key, v in observation.items()}
        rows = {key: v if key == TASK else np.stack(v) for key, v in rows.items()}
        first, second = policy.act(rows, range(3)), policy.act(rows, range(3))
        return {i: (first[n], second[n]) for n, i in enumerate(order)}

    forward, backward = run([0, 1, 2]), run([2, 1, 0])
    for i in range(3):
        np.testing.assert_allclose(forward[i], backward[i], atol=1e-5)
        assert np.abs(forward[i][0] - forward[i][1]).max() > 1e-3  # new noise at each call


def test_real_time_chunking_holds_on_to_what_is_under_way(nano, saved):
    model, folder = saved
    policy = policy_of(model, folder)
    assert isinstance(policy, PrefixPolicy)
    episodes = [Episode("suite", 0, i, i) for i in range(2)]
    observation = observe(nano, model, nano.five[:2])

    def gap(guidance, prefix):
        policy.reset([0, 1], episodes)
        actions = policy.act_with_prefix(observation, [0, 1], prefix, guidance)
        return actions, np.abs(actions[:, :2] - prefix[:, :2]).mean()

    policy.reset([0, 1], episodes)
    free = policy.act(observation, [0, 1])
    prefix = np.clip(free + 0.2, -0.5, 1.0).astype(np.float32)[:, :3]
    unguided, _ = gap(PrefixGuidance(0, 0, prefix_attention_schedule=PrefixAttentionSchedule.ZEROS), prefix)
    np.testing.assert_allclose(unguided, free, atol=1e-5)
    _, guided = gap(PrefixGuidance(2, 3), prefix)
    assert guided < 0.5 * np.abs(free[:, :2] - prefix[:, :2]).mean()


def test_real_time_chunking_needs_the_flow_head(nano, saved):
    model, folder = saved
    policy = policy_of(model, folder)
    policy.model.head = "fast"
    with pytest.raises(ValueError, match="rtc needs the flow head"):
        policy.act_with_prefix(observe(nano, model, nano.five[:1]), [0], np.zeros((1, 2, 7)), PrefixGuidance(1))
