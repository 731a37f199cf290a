from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from embodied.checkpoint import list_steps, load_checkpoint, load_policy
from embodied.cli.train import run as train
from embodied.cli.value import run as draw_value
from embodied.data.cache_build import CacheConfig, build_cache
from embodied.data.source import ColumnSpec, EpisodeInfo
from embodied.io import read_lines
from embodied.language import WIDTH
from embodied.schema import ACTION, IMAGE_KEYS, STATE, TASK
from policies.prts.nano import PRTSNano

SIZES = {"image_size": 32, "grid": [2, 2]}
TEXTS = ("put the bowl on the stove", "open the middle drawer of the cabinet")


class Memory:
    """Six episodes of twelve frames of random images and smooth actions."""

    def __init__(self) -> None:
        self.name, self.fps = "small", 20.0
        self.cameras = dict.fromkeys(IMAGE_KEYS, (32, 32))
        self.columns = {STATE: ColumnSpec("float32", (8,)), ACTION: ColumnSpec("float32", (7,))}
        self.episodes = [EpisodeInfo(i, 12, TEXTS[i % 2], suite="small", success=i != 5) for i in range(6)]

    def read_columns(self, episode):
        rng = np.random.default_rng(episode)
        walk = np.tanh(0.3 * rng.normal(size=(12, 7)).cumsum(0))
        return {STATE: rng.uniform(-1, 1, (12, 8)).astype(np.float32), ACTION: walk.astype(np.float32)}

    def read_frames(self, episode, camera):
        return np.random.default_rng([episode, len(camera)]).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def folder(nano, tmp_path_factory) -> Path:
    """A frame cache with made-up feature maps and word features."""
    cache = build_cache(
        Memory(), tmp_path_factory.mktemp("prts") / "small", CacheConfig(size=[32], image_statistics=False)
    )
    model = PRTSNano({**nano.backbone, **SIZES})
    rng = np.random.default_rng(0)
    for name, shape in model.features.columns.items():
        with cache.add_column(name, shape, "float16", model.features.digest) as writer:
            writer.write(0, 8 * rng.normal(size=(cache.frames, *shape)).astype(np.float16))
    generator = torch.Generator().manual_seed(0)
    model.language.table = {text: torch.randn(5 + i, WIDTH, generator=generator).half() for i, text in enumerate(TEXTS)}
    model.language.save(cache.folder / f"language.{model.language.name}.safetensors")
    return cache.folder


@pytest.fixture
def arguments(nano, folder):
    def make(stage: str, run: Path, *more: str) -> list[str]:
        sizes = [f"policy.backbone.{key}={value}" for key, value in {**nano.backbone, **SIZES}.items()]
        for key, value in nano.method.items():
            nested = value.items() if isinstance(value, dict) else None
            sizes += [f"policy.method.{key}.{k}={v}" for k, v in nested] if nested else [f"policy.method.{key}={value}"]
        data = [f"data.sets.libero_demos.path={folder}", "data.sets.libero_demos.source=null", "data.holdout=0"]
        stage_sizes = ["stage.steps=4", "stage.batch_size=6", "stage.warmup=2", "log.every=1"]
        fixed = ["policy=prts_nano", f"stage={stage}", "data=libero_demos", "log.progress=false", "cpu=true"]
        return [*fixed, *sizes, *data, *stage_sizes, f"run={run}", *more]

    AcceleratorState._reset_state(reset_partial_state=True)
    yield make
    AcceleratorState._reset_state(reset_partial_state=True)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(list_steps(run / "checkpoints")[-1] / "model.safetensors")


def test_resume_equals_training_straight(arguments, tmp_path):
    train(arguments("pretrain", tmp_path / "straight"))
    train(arguments("pretrain", tmp_path / "parts", "stop_after=2"))
    half = weights(tmp_path / "parts")
    train(arguments("pretrain", tmp_path / "parts"))
    straight, parts = weights(tmp_path / "straight"), weights(tmp_path / "parts")
    assert all(torch.equal(value, parts[key]) for key, value in straight.items())
    assert not torch.equal(half["phi_token"], parts["phi_token"])
    line = read_lines(tmp_path / "straight/metrics.jsonl")[-1]
    assert {"bc", "action_to_goal", "goal_to_action", "token_accuracy", "scale"} <= set(line)


def test_post_training_starts_from_a_checkpoint_and_keeps_its_tokenizer_and_heads(arguments, tmp_path, folder):
    train(arguments("pretrain", tmp_path / "pre"))
    train(arguments("posttrain", tmp_path / "post", f"stage.init={tmp_path / 'pre'}"))
    before, after = weights(tmp_path / "pre"), weights(tmp_path / "post")
    same = {key for key, value in before.items() if torch.equal(value, after[key])}
    assert {key for key in before if key.startswith("crl.")} <= same
    assert not any(key.startswith("expert.blocks") and "modulate" in key for key in same)
    assert {key for key in before if key.startswith(("backbone.", "phi_token", "psi_token"))} <= same
    moving = ["policy.method.train_backbone=true", f"stage.init={tmp_path / 'pre'}"]
    train(arguments("posttrain", tmp_path / "moving", *moving))
    assert not torch.equal(weights(tmp_path / "moving")["backbone.word.0.weight"], before["backbone.word.0.weight"])
    pre, post = (load_checkpoint(tmp_path / run).config["model"] for run in ("pre", "post"))
    assert pre["fast"] == post["fast"]
    assert (pre["method"]["head"], post["method"]["head"]) == ("fast", "flow")
    for setting in ("crl.gamma=0.5", "positions=paper", "fast_scale=9.0"):
        words = [f"stage.init={tmp_path / 'pre'}", f"policy.method.{setting}"]
        with pytest.raises(ValueError, match=f"learnt under method.{setting.partition('=')[0]}"):
            train(arguments("posttrain", tmp_path / "refused", *words))
    policy = load_policy(tmp_path / "post", replan=2)
    policy.model.language.load(folder / "language.minilm-l6.safetensors")
    maps = {name: np.zeros((1, *shape), np.float16) for name, shape in policy.model.features.columns.items()}
    item = {**maps, STATE: np.zeros((1, 8), np.float32), TASK: [TEXTS[0]]}
    assert policy.act(item, [0]).shape == (1, 4, 7)


def test_the_value_stage_begins_the_heads_anew_and_leaves_the_policy(arguments, tmp_path):
    train(arguments("joint", tmp_path / "joint"))
    wanted = ["cpu=true", "log.progress=false", f"run={tmp_path / 'value'}", "+policy.change.method.crl.gamma=0.9"]
    data = [word for word in arguments("value", tmp_path / "value") if word.startswith("data")]
    sizes = ["stage.steps=4", "stage.batch_size=6"]
    train([f"policy={tmp_path / 'joint'}", "stage=value", *sizes, *data, *wanted])
    before, after = weights(tmp_path / "joint"), weights(tmp_path / "value")
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert {key.split(".")[0] for key in moved} == {"crl"}
    method = load_checkpoint(tmp_path / "value").config["model"]["method"]
    assert (method["head"], method["crl"]["gamma"]) == ("flow", 0.9)
    train(arguments("value", tmp_path / "named", f"stage.init={tmp_path / 'joint'}"))
    assert load_checkpoint(tmp_path / "named").config["model"]["method"]["head"] == "flow"


def test_joint_stage_and_no_contrastive_loss(arguments, tmp_path):
    train(arguments("joint", tmp_path / "joint", "policy.method.contrastive=0"))
    line = read_lines(tmp_path / "joint/metrics.jsonl")[-1]
    assert {"bc", "flow"} <= set(line)
    assert "action_to_goal" not in line


def test_value_command(arguments, tmp_path, folder):
    """The command on a trained checkpoint and the cache it was trained on; towers compute the images' features."""
    train(arguments("pretrain", tmp_path / "pre"))
    assert (
        draw_value([str(tmp_path / "pre"), str(folder), "limit_per_task=1", "stride=2", f"out={tmp_path / 'value'}"])
        == 0
    )
    figures = json.loads((tmp_path / "value/figures.json").read_text())
    assert -1 <= figures["value.spearman_median"]["value"] <= 1
    assert (tmp_path / "value/value.png").is_file()
