"""lerobot_policy_prts: training, evaluation and folders, with LeRobot's own commands."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from embodied.checkpoint import MODEL_FILE, load_checkpoint, load_policy
from embodied.protocols import Episode
from embodied.schema import ACTION, IMAGE, IMAGE_KEYS, STATE
from policies.prts.policy import PRTSPolicy

pytestmark = [pytest.mark.slow]
EPISODE = Episode("libero_object", 0, 7, 0)


def pretrained(run, step: int):
    return run / "checkpoints" / f"{step:06d}" / "pretrained_model"


def read_policy(folder):
    """Policy and processors as lerobot-eval reads them."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies import get_policy_class, make_pre_post_processors

    config = PreTrainedConfig.from_pretrained(folder)
    config.pretrained_path = folder
    policy = get_policy_class("prts").from_pretrained(folder, config=config)
    return policy, *make_pre_post_processors(config, pretrained_path=str(folder))


@pytest.mark.data
def test_lerobot_train_writes_a_checkpoint_that_both_sides_read(trained, outside_data) -> None:
    from embodied.data.lerobot_reader import LeRobotSource

    first, last = (load_checkpoint(pretrained(trained, step)) for step in (1, 2))
    assert last.model.head == "flow"
    assert last.model.tokenizer is not None
    moved = [
        name
        for name, value in last.model.state_dict().items()
        if not torch.equal(value, first.model.state_dict()[name])
    ]
    assert {name.partition(".")[0] for name in moved} >= {"backbone", "expert", "action_head", "crl"}
    source = LeRobotSource(outside_data / "libero_demos")
    columns = [source.read_columns(i) for i in range(len(source.episodes))]
    state = np.concatenate([part[STATE] for part in columns]).astype(np.float64)
    action = np.concatenate([part[ACTION] for part in columns])
    np.testing.assert_allclose(last.pipeline.statistics[STATE]["mean"], state.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(last.pipeline.statistics[STATE]["std"], state.std(0), rtol=1e-4)
    np.testing.assert_allclose(last.pipeline.statistics[ACTION]["max"], action.max(0), rtol=1e-6)


@pytest.mark.data
def test_a_run_is_resumed_from_its_own_folder(trained, lerobot, tmp_path) -> None:
    """Weights, tokenizer and pipeline come from the folder; one step moves them by about the learning rate."""
    import shutil

    run = tmp_path / "run"
    shutil.copytree(trained, run, symlinks=True)
    shutil.rmtree(run / "checkpoints" / "000002")
    settings = pretrained(run, 1) / "train_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"output_dir": str(run)}))
    lerobot.run("lerobot_train", [f"--config_path={settings}", "--resume=true"])
    first, resumed = load_checkpoint(pretrained(run, 1)), load_checkpoint(pretrained(run, 2))
    assert resumed.model.tokenizer.to_json() == first.model.tokenizer.to_json()
    assert resumed.pipeline.statistics == first.pipeline.statistics
    moved = (resumed.model.action_head.weight - first.model.action_head.weight).abs().max()
    assert 1e-6 < moved < 5e-3


@pytest.mark.libero
@pytest.mark.data
def test_lerobot_eval_plays_an_episode_and_its_images_arrive_mirrored(trained, lerobot, tmp_path, monkeypatch) -> None:
    from lerobot_policy_prts import PRTSPolicy as Plugin

    from sim.libero_setup import import_libero
    from sim.make import make_env

    import_libero()
    seen, predict = [], Plugin.predict_action_chunk

    def spy(self, batch, noise=None, **kwargs):
        seen.append({key: batch[key].clone() for key in (IMAGE, STATE)})
        return predict(self, batch, noise, **kwargs)

    monkeypatch.setattr(Plugin, "predict_action_chunk", spy)
    env = ["--env.type=libero", "--env.task=libero_object", "--env.task_ids=[0]", "--env.episode_length=4"]
    size = ["--env.observation_height=128", "--env.observation_width=128"]
    length = ["--eval.n_episodes=1", "--eval.batch_size=1", "--eval.use_async_envs=false"]
    lerobot.run(
        "lerobot_eval",
        [f"--policy.path={pretrained(trained, 2)}", *env, *size, *length, f"--output_dir={tmp_path / 'out'}"],
    )
    assert json.loads((tmp_path / "out" / "eval_info.json").read_text())["overall"]["n_episodes"] == 1
    assert len(seen) == 2  # four steps, n_action_steps=2
    ours = make_env("libero_object", 0, image_size=128)
    ours.reset(seed=7, options={"init_state": 0})
    item = ours.observe(images=True)
    ours.close()
    theirs = (seen[0][IMAGE][0] * 255).round().permute(1, 2, 0).numpy()
    turns = {"as is": item[IMAGE], "mirrored": item[IMAGE][:, ::-1], "rotated": item[IMAGE][::-1, ::-1]}
    away = {name: np.abs(image.astype(float) - theirs).mean() for name, image in turns.items()}
    assert away["mirrored"] < 1 < min(away["as is"], away["rotated"]), away
    np.testing.assert_allclose(seen[0][STATE][0].numpy(), item[STATE], atol=2e-3)


@pytest.mark.parametrize("head", ["fast", "flow"])
def test_actions_are_those_of_our_own_policy(head, lerobot, checkpoint, exported) -> None:
    ours: PRTSPolicy = load_policy(checkpoint(head), replan=3)
    ours.reset([0, 1], [EPISODE, EPISODE])
    observation = lerobot.observe(2)
    wanted = ours.act(observation, [0, 1])
    assert wanted.std() > 0.01
    policy, before, after = read_policy(exported(head))
    ours.reset([0, 1], [EPISODE, EPISODE])
    noise, batch = ours._draw([0, 1]), before(lerobot.batch(observation))
    np.testing.assert_array_equal(policy.predict_action_chunk(batch, noise=noise).numpy(), wanted)
    policy.reset()
    steps = [after(policy.select_action(batch, noise=noise)).numpy() for _ in range(4)]
    np.testing.assert_array_equal(np.stack(steps[:3], axis=1), wanted[:, :3])
    np.testing.assert_array_equal(steps[3], wanted[:, 0])  # n_action_steps=3: the fourth is of a new chunk


def test_an_export_keeps_the_checkpoint(checkpoint, exported) -> None:
    from lerobot_policy_prts.folder import export

    source, folder = checkpoint("flow"), exported("flow")
    assert (folder / MODEL_FILE).read_bytes() == (source / MODEL_FILE).read_bytes()
    assert load_checkpoint(folder).config["info"] == {"note": "flow"}
    with pytest.raises(ValueError, match="exists: choose another folder"):
        export(source, folder)


def test_images_of_another_size_are_resized_and_upright_ones_left(lerobot) -> None:
    from lerobot_policy_prts.modeling_prts import to_frames

    ramp = np.tile(np.arange(8, dtype=np.uint8)[None, :, None] * 16, (8, 1, 3))
    planes = torch.from_numpy(ramp)[None].permute(0, 3, 1, 2)
    np.testing.assert_array_equal(to_frames(planes.float() / 255, 8, mirrored=False)[0], ramp)
    np.testing.assert_array_equal(to_frames(planes, 8, mirrored=True)[0], ramp[:, ::-1])
    halved = to_frames(planes, 4, mirrored=False)[0]
    assert halved.shape == (4, 4, 3)
    assert (np.diff(halved[0, :, 0].astype(int)) > 0).all()
    with pytest.raises(ValueError, match="images should be"):
        to_frames(planes[0], 8, mirrored=False)


def test_features_that_do_not_fit_are_named(exported) -> None:
    from lerobot.configs import FeatureType, PolicyFeature

    config = read_policy(exported("flow"))[0].config
    config.input_features.pop(IMAGE_KEYS[1])
    with pytest.raises(ValueError, match=r"needs the cameras .*rename_map"):
        config.validate_features()
    config.input_features[IMAGE_KEYS[1]] = PolicyFeature(FeatureType.VISUAL, (3, 128, 128))
    config.input_features[STATE] = PolicyFeature(FeatureType.STATE, (14,))
    with pytest.raises(ValueError, match=r"needs observation.state of shape \(8,\), got \(14,\)"):
        config.validate_features()


def test_weights_of_another_model_are_refused(exported, tmp_path) -> None:
    import shutil

    folder = tmp_path / "other"
    shutil.copytree(exported("flow"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["model"]["backbone"]["width"] = 64
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="weights differ from the model"):
        read_policy(folder)


@pytest.mark.data
def test_steps_to_go_are_counted_from_the_metadata(lerobot, outside_data) -> None:
    from lerobot_policy_prts.dataset import Labels

    labels = Labels(outside_data / "libero_demos")
    starts = labels.source.starts
    found = labels.of(np.array([0, starts[1] - 1, starts[1]]), np.array([0, 0, 1]))
    assert found["steps_to_go"].tolist() == [starts[1] - 1, 0, starts[2] - starts[1] - 1]
    with pytest.raises(ValueError, match="should lie in their episodes"):
        labels.of(np.array([0]), np.array([1]))
    chunks = labels.chunks(5)
    assert chunks.shape[1:] == (5, 7)
    np.testing.assert_array_equal(chunks[-1], np.repeat(chunks[-1][:1], 5, axis=0))  # the last frame's, held


@pytest.mark.data
def test_the_large_policy_is_bound_to_exact_quantiles(lerobot, exported, outside_data) -> None:
    """LeRobot's own q01 and q99 are averages over episodes."""
    from types import SimpleNamespace

    from lerobot_policy_prts import PRTSPolicy as Plugin
    from lerobot_policy_prts.configuration_prts import PRTSConfig
    from lerobot_policy_prts.dataset import Labels

    text = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}  # fmt: skip
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4,
              "out_hidden_size": 32, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}  # fmt: skip
    tokens = {"image_token_id": 290, "video_token_id": 291, "vision_start_token_id": 292, "vision_end_token_id": 293}
    architecture = {"text_config": text, "vision_config": vision, **tokens}
    backbone = {"weights": None, "architecture": architecture, "tuning": "full", "image_size": 16, "dtype": "float32"}
    model = {
        "_target_": "policies.prts.qwen3vl.PRTSQwen3VL",
        "backbone": backbone,
        "method": {"chunk": 4, "fast_vocab": 128},
    }
    features = read_policy(exported("flow"))[0].config
    config = PRTSConfig(
        model=model, n_action_steps=2, device="cpu",
        input_features=features.input_features, output_features=features.output_features,
    )  # fmt: skip
    root = outside_data / "libero_demos"
    policy = Plugin(config, dataset_stats=lerobot.statistics, dataset_meta=SimpleNamespace(root=root))
    every = Labels(root).source
    states = np.concatenate([every.read_columns(i)[STATE] for i in range(len(every.episodes))])
    found = policy.pipeline.statistics[STATE]["q99"]
    np.testing.assert_allclose(found, np.quantile(states.astype(np.float64), 0.99, axis=0), rtol=1e-6)
