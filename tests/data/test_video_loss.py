from __future__ import annotations

import numpy as np
import pytest
import torch

from embodied.chunk_policy import ChunkPolicy
from embodied.data.video_loss import parse_codec, through_codec
from embodied.data.video_writer import VideoCodec, VideoSettings
from embodied.schema import IMAGE_KEYS
from embodied.transforms import Pipeline

pytest.importorskip("av")


def scene(count: int = 2) -> np.ndarray:
    """Smooth backgrounds with sharp squares and some grain, as a rendered table has them."""
    rng = np.random.default_rng(0)
    images = np.repeat(np.linspace(60, 180, 64)[None, :, None, None], count, 0) + np.zeros((count, 64, 64, 3))
    images[:, 20:30, 20:30] = (200, 40, 40)
    return np.clip(images + rng.normal(0, 6, images.shape), 0, 255).astype(np.uint8)


def loss(codec: str) -> float:
    settings = parse_codec(codec)
    assert settings is not None
    return float((through_codec(scene(), settings).astype(int) - scene()).std())


def test_it_loses_what_its_crf_says_and_no_more():
    assert 0 < loss("libx264:10") < loss("libx264:24") < loss("libx264:38") < 30


def test_each_image_is_on_its_own_and_the_same_each_time():
    settings = VideoSettings(VideoCodec.h264, 30)
    both = through_codec(scene(), settings)
    assert both.shape == scene().shape
    assert both.dtype == np.uint8
    np.testing.assert_array_equal(through_codec(scene()[1:], settings)[0], both[1])


def test_the_default_quality_is_the_encoders_own():
    assert (VideoSettings().quality, VideoSettings(VideoCodec.h264).quality) == (30, 18)
    assert VideoSettings(VideoCodec.h264, 25).options()["crf"] == "25"


@pytest.mark.parametrize("text", ["h264:30", "libx264", "libx264:99", "libx264:-1"])
def test_another_codec_is_refused(text):
    with pytest.raises(ValueError, match="ENCODER:CRF"):
        parse_codec(text)


class Watching(torch.nn.Module):
    """Keeps the images that it is shown."""

    chunk, image_keys, image_size, codec = 2, IMAGE_KEYS, 64, ""

    def predict(self, batch):
        self.seen = batch[IMAGE_KEYS[0]].numpy()
        return torch.zeros(len(self.seen), 2, 7)


@pytest.mark.parametrize("codec", ["", "libx264:30"])
def test_a_policy_sees_what_its_training_images_went_through(codec):
    model = Watching()
    model.codec = codec
    policy = ChunkPolicy(model, Pipeline([], {}), "p", "d", replan=1)
    observation = dict.fromkeys(IMAGE_KEYS, scene())
    policy.act(observation, [0, 1])
    settings = parse_codec(codec)
    expected = scene() if settings is None else through_codec(scene(), settings)
    np.testing.assert_array_equal(model.seen, expected)
    np.testing.assert_array_equal(observation[IMAGE_KEYS[0]], scene())
