"""Post-training by the command: exact resume in the middle of a round, guards, policies, the state-vector model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from world_parts import tiny_batch, tiny_nano

from embodied.checkpoint import list_steps, load_checkpoint, save_checkpoint
from embodied.cli.export import run as export
from embodied.cli.train import run as train
from embodied.evaluation.world_metrics import FrameMetrics
from embodied.io import read_lines
from embodied.transforms import Pipeline
from world_models.persist.adapters import LoraSettings
from world_models.persist.posttrain import Posttrainer, Round, StopPosttrainingError, informative
from world_models.persist.rewards import ImageScore
from world_models.persist.settings import PosttrainConfig


class Gap:
    name = "lpips"

    def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean((1, 2, 3))


SETTINGS = [
    "stage.batch_size=4", "log.every=1", "log.progress=false", "cpu=true", "data=libero_demos",
    "data.sets.libero_demos.source=null", "data.holdout=0",
]  # fmt: skip
BASE = [
    "world_model=persist_state", "stage=base", "stage.warmup=2", "world_model.state.width=16",
    "world_model.world.action_key=action", "world_model.memory.history=[0,-1]", "world_model.memory.chunk=2",
    "world_model.edm.steps=2",
]  # fmt: skip
ROUND = "candidates:3,contexts:2,own:2,lengths:[1,2],steps:2,round:3,batch:3,old_rate:0.1"


def base(cache: Path, run: Path, *more: str) -> Path:
    train([*BASE, *SETTINGS, f"data.sets.libero_demos.path={cache}", f"run={run}", "stage.steps=3", *more])
    return run


def posttrain(cache: Path, start: Path, run: Path, *more: str, change: str = "") -> Path:
    words = [f"world_model={start}", "stage=posttrain_world", f"+world_model.change.posttrain={{{ROUND}{change}}}"]
    train([*words, *SETTINGS, f"data.sets.libero_demos.path={cache}", f"run={run}", "stage.steps=5", *more])
    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = list_steps(run / "checkpoints")[-1]
    return {**load_file(newest / "model.safetensors"), **load_file(newest / "training/state.safetensors")}


@pytest.fixture(scope="module")
def start(world_cache: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base(world_cache.folder, tmp_path_factory.mktemp("base") / "run")


def test_resume_in_the_middle_of_a_round_is_exact(world_cache: Any, start: Path, tmp_path: Path) -> None:
    straight = posttrain(world_cache.folder, start, tmp_path / "straight")
    parts = posttrain(world_cache.folder, start, tmp_path / "parts", "stop_after=2")
    halfway = weights(parts)
    posttrain(world_cache.folder, start, parts)
    one, other = weights(straight), weights(parts)
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert any(not torch.equal(value, halfway[key]) for key, value in one.items())


def test_only_adapters_and_action_encoder_move(world_cache: Any, start: Path, tmp_path: Path) -> None:
    run = posttrain(world_cache.folder, start, tmp_path / "run")
    before = load_checkpoint(start).model.state_dict()
    after = load_checkpoint(run).model.state_dict()
    base_weights = {key: value for key, value in after.items() if "base_layer" in key}
    assert base_weights
    assert all(torch.equal(value, before[key.replace(".base_layer", "")]) for key, value in base_weights.items())
    assert (after["network.leave.lora_B.new.weight"] != 0).any()
    assert (after["network.leave.lora_B.old.weight"] != 0).any()  # moved after the first round
    assert not torch.equal(after["action_encoder.net.0.weight"], before["action_encoder.net.0.weight"])
    assert torch.equal(after["other_encoders.reference.net.0.weight"], before["action_encoder.net.0.weight"])
    lines = read_lines(run / "metrics.jsonl")
    assert {"contrastive", "kl", "spread_neg_log_error", "teacher_forced_ratio"} <= set(lines[0])


def test_the_guard_stops_a_run_that_forgets(world_cache: Any, start: Path, tmp_path: Path) -> None:
    more = ["stage.lr=0.5", "stage.clip_norm=100", "stage.steps=60"]
    with pytest.raises(StopPosttrainingError, match="times the reference's"):
        posttrain(world_cache.folder, start, tmp_path / "run", *more, change=",watch:10,tolerance:0.2")


def test_a_batch_is_of_whole_groups() -> None:
    with pytest.raises(ValueError, match=r"multiple of posttrain.candidates \(16\)"):
        PosttrainConfig(candidates=16, batch=4)


def test_small_spread_is_warned_about() -> None:
    model = tiny_nano()
    model.add_adapters(LoraSettings(rank=2))
    trainer = Posttrainer(model, windows=object())
    with pytest.warns(UserWarning, match="differ by 0.010 dB"):
        trainer._warn({"psnr": 0.01}, 3)


def test_a_groups_candidates_share_chunk_noise_and_level(world_cache: Any, start: Path, tmp_path: Path) -> None:
    """What the candidates of a chunk have in common cancels: equal candidates give no gradient, whatever their r."""
    model = load_checkpoint(start).model
    model.set_stage("posttrain")
    trainer = Posttrainer(model, windows=object())
    memory, shape = model.memory, model.space.shape
    context, frames = torch.randn(2, 1, memory.context, *shape), torch.randn(2, 1, memory.chunk, *shape)
    actions = torch.randn(2, 1, memory.frames, model.frame_actions.width)
    reward = torch.tensor([[0.2, 0.8, 0.5], [0.9, 0.3, 0.3]])
    same = [value.repeat_interleave(3, 1) for value in (context, actions, frames)]
    torch.manual_seed(0)
    trainer.loss(Round(0, *same, reward, {}))[0].backward()
    largest = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
    assert largest < 1e-6
    model.zero_grad()
    apart = [same[0], same[1], torch.randn(2, 3, memory.chunk, *shape)]
    trainer.loss(Round(0, *apart, reward, {}))[0].backward()
    assert max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None) > 1e-4


def test_groups_that_hardly_differ_have_no_say() -> None:
    psnr = torch.tensor([[[20.0, 30.0], [20.02, 30.0]], [[20.0, 30.0], [21.0, 31.0]]])
    assert informative({"psnr": psnr}, 0.05).tolist() == [False, True]  # type: ignore[union-attr]
    assert informative({"neg_log_error": psnr[..., 0]}, 0.05) is None


def test_rewards_are_the_same_under_bfloat16() -> None:
    model = tiny_nano(nano={"size": [32, 32], "latent": 6, "channels": [32, 32], "attend": [False, True], "heads": 2})
    model.space.fit({key: torch.randint(0, 256, (2, 3, 32, 32, 3)) for key in model.space.keys})
    future = torch.randn(2, 2, *model.space.shape)
    frames = future[:, None] + 0.05 * torch.randn(2, 4, 2, *model.space.shape)
    score = ImageScore(model.space, FrameMetrics(Gap()))
    weights = {"psnr": 1.0, "ssim": 1.0, "lpips": 1.0}
    plain = score(frames, future, weights)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = score(frames, future, weights)
    torch.testing.assert_close(mixed.advantage, plain.advantage)
    torch.testing.assert_close(mixed.scores, plain.scores)


def denoise(model: Any) -> Callable[[Any], torch.Tensor]:
    """What a world of this kind makes of some noise, given random frames."""
    batch = tiny_batch(model)
    model.space.fit(batch)
    latents, actions, _ = model.read(batch)
    x, sigma = torch.randn(3, 2, *model.space.shape), torch.ones(3)

    @torch.no_grad()
    def denoised(world: Any) -> torch.Tensor:
        return world.denoised(x, sigma, world.condition(latents[:, : model.memory.context], actions))

    return denoised


def adapt(model: Any) -> None:
    model.set_stage("posttrain")
    model.eval()
    for name, value in model.network.named_parameters():
        if "lora_B.new" in name:
            value.data.fill_(0.05)


def test_the_reference_is_the_model_before_adapters() -> None:
    model = tiny_nano().eval()
    denoised = denoise(model)
    before = denoised(model)
    adapt(model)
    found = {}
    for policy in ("new", "old", "reference"):
        with model.acting_as(policy):
            found[policy] = denoised(model)
    torch.testing.assert_close(found["reference"], before)
    torch.testing.assert_close(found["old"], before)
    assert not torch.allclose(found["new"], before)
    model.policies.move_old(0.0)
    with model.acting_as("old"):
        torch.testing.assert_close(denoised(model), found["new"])


def test_merged_adapters_are_the_new_policy(tmp_path: Path) -> None:
    model = tiny_nano().eval()
    denoised = denoise(model)
    before = denoised(model)
    sizes = {key: value.shape for key, value in model.state_dict().items()}
    adapt(model)
    model.action_encoder.net[0].bias.data.add_(0.3)
    save_checkpoint(tmp_path / "adapted", model, Pipeline([], {}))
    words = [f"path={tmp_path / 'adapted'}", "dtype=fp32"]
    assert export([*words, f"out={tmp_path / 'merged'}", "merge=true", "change={edm: {steps: 7}}"]) == 0
    merged = load_checkpoint(tmp_path / "merged").model
    assert {key: value.shape for key, value in merged.state_dict().items()} == sizes
    assert (merged.lora, merged.edm.steps) == (None, 7)
    torch.testing.assert_close(denoised(merged), denoised(model))
    assert not torch.allclose(denoised(merged), before, atol=1e-3)
    with pytest.raises(ValueError, match="no adapters to merge"):
        export([f"path={tmp_path / 'merged'}", f"out={tmp_path / 'again'}", "merge=true"])


def test_a_wrong_change_is_named(world_cache: Any, start: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got 'betta'"):
        posttrain(world_cache.folder, start, tmp_path / "run", change=",betta:1")
