"""LeRobot's policies in our evaluation."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from embodied.checkpoint import load_policy
from embodied.protocols import Episode, Policy
from embodied.schema import ACTION, IMAGE, STATE, WRIST_IMAGE

pytestmark = [pytest.mark.slow]
FIRST, SECOND = Episode("libero_object", 0, 7, 0), Episode("libero_object", 1, 8, 1)


def features(state: int = 8, action: int = 7, size: int = 64, cameras: tuple[str, ...] = (IMAGE, WRIST_IMAGE)) -> dict:
    from lerobot.configs import FeatureType, PolicyFeature

    images = {key: PolicyFeature(FeatureType.VISUAL, (3, size, size)) for key in cameras}
    return {
        "input_features": {**images, STATE: PolicyFeature(FeatureType.STATE, (state,))},
        "output_features": {ACTION: PolicyFeature(FeatureType.ACTION, (action,))},
        "device": "cpu",
        "push_to_hub": False,
    }


def save(policy, folder):
    """Weights, config and processors, with statistics that change every number."""
    from lerobot.policies import make_pre_post_processors

    sizes = {key: feature.shape for key, feature in {**policy.config.input_features}.items()}
    stats = {STATE: {"mean": torch.full(sizes[STATE], 0.2), "std": torch.full(sizes[STATE], 0.5)}}
    stats |= {
        key: {"mean": torch.full((3, 1, 1), 0.4), "std": torch.full((3, 1, 1), 0.3)} for key in sizes if key != STATE
    }
    stats[ACTION] = {"mean": torch.full((7,), 0.1), "std": torch.full((7,), 0.3)}
    for entry in stats.values():
        entry |= {"min": entry["mean"] - 1, "max": entry["mean"] + 1}
    policy.save_pretrained(folder)
    for processor in make_pre_post_processors(policy.config, dataset_stats=stats):
        processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def act_folder(lerobot, tmp_path_factory):
    """A random ACT of chunk 6 that looks at 64 x 64 images."""
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy

    torch.manual_seed(0)
    sizes = {"dim_model": 32, "n_heads": 2, "dim_feedforward": 32, "n_encoder_layers": 1, "n_decoder_layers": 1}
    config = ACTConfig(
        **features(), **sizes, use_vae=False, chunk_size=6, n_action_steps=3, pretrained_backbone_weights=None
    )
    folder = save(ACTPolicy(config), tmp_path_factory.mktemp("act") / "policy")
    saved = json.loads((folder / "config.json").read_text())
    saved["pretrained_backbone_weights"] = "ResNet18_Weights.IMAGENET1K_V1"  # as LeRobot saves by default
    (folder / "config.json").write_text(json.dumps(saved))
    return folder


@pytest.fixture(scope="session")
def diffusion_folder(lerobot, tmp_path_factory):
    """A random diffusion policy, which reads two steps."""
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

    torch.manual_seed(0)
    sizes = {"down_dims": (16, 32), "n_groups": 4, "diffusion_step_embed_dim": 16, "num_train_timesteps": 4}
    lengths = {"n_obs_steps": 2, "horizon": 8, "n_action_steps": 2, "num_inference_steps": 2}
    config = DiffusionConfig(
        **features(),
        **sizes,
        **lengths,
        crop_shape=None,
        spatial_softmax_num_keypoints=4,
        pretrained_backbone_weights=None,
    )
    return save(DiffusionPolicy(config), tmp_path_factory.mktemp("diffusion") / "policy")


def make(folder, **settings):
    from policies.lerobot.lerobot_policy import LeRobotPolicy

    return LeRobotPolicy(folder, **settings)


def theirs(adapter, batch, steps: int) -> np.ndarray:
    """LeRobot's own loop on one observation held still: (B, steps, 7)."""
    adapter.policy.reset()
    rows = [adapter.after(adapter.policy.select_action(adapter.before(dict(batch)))) for _ in range(steps)]
    return torch.stack(rows, dim=1).clamp(-1, 1).numpy()


def test_a_chunk_is_what_lerobot_executes(lerobot, act_folder) -> None:
    policy = make(act_folder)
    assert isinstance(policy, Policy)
    spec = policy.spec
    assert (spec.chunk, spec.replan, spec.image_size, spec.name) == (6, 3, 64, "lerobot_act")
    assert spec.image_keys == (IMAGE, WRIST_IMAGE)
    policy.reset([0, 1], [FIRST, SECOND])
    observation = lerobot.observe(2, size=64)
    actions = policy.act(observation, [0, 1])
    assert actions.dtype == np.float32
    assert actions.std() > 0.01
    np.testing.assert_allclose(actions[:, :3], theirs(policy, lerobot.batch(observation), 3), atol=1e-6)
    one = {key: value[1:] for key, value in observation.items()}
    np.testing.assert_allclose(policy.act(one, [1]), actions[1:], atol=1e-5)
    upright = make(act_folder, images="upright")
    upright.reset([0], [FIRST])
    assert np.abs(upright.act(one, [0]) - actions[1:]).max() > 1e-4
    assert upright.spec.digest != spec.digest


def test_memories_of_slots_are_apart(lerobot, diffusion_folder) -> None:
    """Two episodes together give the actions that each gives alone."""
    policy = make(diffusion_folder)
    assert (policy.spec.chunk, policy.spec.replan) == (1, 1)
    seen = [lerobot.observe(2, size=64, seed=step) for step in range(3)]
    policy.reset([0, 1], [FIRST, SECOND])
    together = np.concatenate([policy.act(observation, [0, 1]) for observation in seen], axis=1)
    for slot, episode in ((0, FIRST), (1, SECOND)):
        policy.reset([5], [episode])
        rows = [{key: value[slot : slot + 1] for key, value in observation.items()} for observation in seen]
        alone = np.concatenate([policy.act(row, [5]) for row in rows], axis=1)
        np.testing.assert_allclose(alone, together[slot : slot + 1], atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-3


def test_prts_is_the_same_through_lerobot_and_back(lerobot, checkpoint, exported) -> None:
    observation = lerobot.observe(2)
    ours, through = load_policy(checkpoint("fast"), replan=3), make(exported("fast"))
    for policy in (ours, through):
        policy.reset([0, 1], [FIRST, SECOND])
    assert (through.spec.chunk, through.spec.replan, through.spec.image_size) == (4, 3, 128)
    np.testing.assert_array_equal(through.act(observation, [0, 1]), ours.act(observation, [0, 1]))


def test_noise_depends_on_the_episode_and_not_on_the_caller(lerobot, exported) -> None:
    policy, observation = make(exported("flow")), lerobot.observe(1)
    results = []
    for episode in (FIRST, FIRST, SECOND):
        policy.reset([0], [episode])
        torch.manual_seed(len(results))
        results.append(policy.act(observation, [0]))
    np.testing.assert_array_equal(results[0], results[1])
    assert np.abs(results[0] - results[2]).max() > 1e-4


@pytest.mark.libero
def test_evaluate_counts_an_episode(act_folder, tmp_path) -> None:
    from embodied.config import compose_config, to_dataclass
    from embodied.evaluation.evaluate import evaluate

    settings = ["policy=lerobot", f"policy.path={act_folder}", "env=libero_object", "tasks=[0]", "episodes=1"]
    short = ["workers=1", "max_steps=4", "videos=0", "report=false", f"run={tmp_path / 'run'}"]
    summary = evaluate(to_dataclass(compose_config("evaluate", [*settings, *short])))
    (record,) = summary.records
    assert (summary.all.counted, summary.all.error, record.steps, record.policy) == (1, 0, 4, "lerobot_act")


def test_what_does_not_fit_is_named(act_folder, tmp_path) -> None:
    from lerobot.policies.act.configuration_act import ACTConfig

    from policies.lerobot.lerobot_features import read_features

    with pytest.raises(ValueError, match="should be a LeRobot policy folder"):
        make(tmp_path)
    with pytest.raises(ValueError, match=r"replan should lie in 1..6"):
        make(act_folder, replan=9)
    with pytest.raises(ValueError, match=r"reads observation.state of shape \(14,\)"):
        read_features(ACTConfig(**features(state=14)), "mirrored", {})
    with pytest.raises(ValueError, match=r"should give action of shape \(7,\), got .*\(14,\)"):
        read_features(ACTConfig(**features(action=14)), "mirrored", {})
    other = ACTConfig(**features(cameras=("observation.images.top",)))
    with pytest.raises(ValueError, match=r"policy.cameras=\{observation.images.top: observation.images.image\}"):
        read_features(other, "mirrored", {})
    assert (
        read_features(other, "mirrored", {"observation.images.top": IMAGE}).cameras["observation.images.top"] == IMAGE
    )
    with pytest.raises(ValueError, match="images should be one of mirrored, upright"):
        read_features(other, "rotated", {"observation.images.top": IMAGE})
    policy = make(act_folder)
    with pytest.raises(ValueError, match="slot 3 should be reset"):
        policy.act({}, [3])
