"""Teacher forcing on the shared loop: it learns, goes on exactly, and its checkpoint runs itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from world_parts import tiny_nano

from embodied.checkpoint import list_steps, load_checkpoint
from embodied.cli.train import run as train
from embodied.io import read_lines

SIZES = [
    "world_model.nano.size=[16,16]", "world_model.nano.latent=6", "world_model.nano.channels=[32,32]",
    "world_model.nano.attend=[false,true]", "world_model.nano.heads=2", "world_model.world.action_width=32",
    "world_model.world.action_key=action", "world_model.memory.history=[0,-2,-1]", "world_model.memory.chunk=2",
    "world_model.edm.steps=3",
]  # fmt: skip


def arguments(cache: Path, run: Path, *more: str) -> list[str]:
    data = [f"data.sets.libero_demos.path={cache}", "data.sets.libero_demos.source=null", "data.holdout=0"]
    stage = ["stage.steps=4", "stage.batch_size=4", "stage.warmup=2", "log.every=1", "log.progress=false", "cpu=true"]
    return ["world_model=persist_nano", "stage=base", "data=libero_demos", *SIZES, *data, *stage, f"run={run}", *more]


def state(run: Path) -> dict[str, torch.Tensor]:
    newest = list_steps(run / "checkpoints")[-1]
    return {**load_file(newest / "model.safetensors"), **load_file(newest / "training/state.safetensors")}


def test_resume_equals_training_straight(world_cache: Any, tmp_path: Path) -> None:
    train(arguments(world_cache.folder, tmp_path / "straight"))
    train(arguments(world_cache.folder, tmp_path / "parts", "stop_after=2"))
    before = state(tmp_path / "parts")
    train(arguments(world_cache.folder, tmp_path / "parts"))
    straight, parts = state(tmp_path / "straight"), state(tmp_path / "parts")
    assert straight.keys() == parts.keys()
    assert all(torch.equal(value, parts[key]) for key, value in straight.items())
    assert any(not torch.equal(value, before[key]) for key, value in straight.items())


@pytest.mark.slow
def test_the_loss_falls(world_cache: Any, tmp_path: Path) -> None:
    more = ["stage.steps=60", "stage.lr=3e-3", "stage.warmup=5", "log.every=20", "evaluate_every=0"]
    train(arguments(world_cache.folder, tmp_path / "run", *more))
    lines = [line["loss"] for line in read_lines(tmp_path / "run/metrics.jsonl") if "loss" in line]
    assert lines[-1] < 0.97 * lines[0]


def test_the_checkpoint_runs_itself(world_cache: Any, tmp_path: Path) -> None:
    train(arguments(world_cache.folder, tmp_path / "run"))
    loaded = load_checkpoint(tmp_path / "run")
    assert loaded.model.space.codec.basis.abs().sum() > 0  # the fitted codec came along
    assert loaded.model.scale.min() > 0
    assert [type(t).__name__ for t in loaded.pipeline.transforms] == ["FramePoses"]


def test_noise_on_the_current_frame_moves_what_is_predicted_too() -> None:
    """The target starts from the noised frame: a model that copies the present errs by the noise, and only in training.

    With sigma_data 1 and F = 0 the estimate is nearly 0 at low noise levels, so the error is the target's mean square.
    """
    model = tiny_nano(world={"action_width": 32, "current_noise": 0.5}, edm={"log_mean": 5.0, "log_std": 0.0})
    model.network.forward = lambda frames, current, level, tokens: torch.zeros_like(frames)  # type: ignore[method-assign]
    latents = torch.zeros(64, model.memory.frames, *model.space.shape)
    actions, valid = torch.zeros(64, model.memory.frames, model.frame_actions.width), torch.ones(64, model.memory.chunk)
    still = model.teacher_forced(latents, actions, valid)[1]
    noised = model.teacher_forced(latents, actions, valid, training=True)[1]
    assert still.mean().item() < 0.01
    assert noised.mean().item() == pytest.approx(0.25, rel=0.5)
