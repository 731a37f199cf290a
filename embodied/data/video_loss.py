"""What a video encoder does to images: a policy trained on decoded video may need to see the same when it acts.

A policy that learnt from strongly compressed images, its vision tower above all, knows edges as the encoder smoothed
them; on the camera's own images it grasps a little beside its thing.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from embodied.data.video_writer import PIXEL_FORMAT, STREAM_NAMES, VideoCodec, VideoSettings, check_frames


def parse_codec(text: str) -> VideoSettings | None:
    """ "libx264:30" -> settings, "" -> None. ValueError for another encoder or crf."""
    if not text:
        return None
    name, _, crf = text.partition(":")
    known = [codec.value for codec in VideoCodec]
    if name not in known or not crf.isdigit() or not 0 <= int(crf) <= 63:
        raise ValueError(f"codec should be ENCODER:CRF with one of {', '.join(known)} and 0..63, got {text!r}")
    return VideoSettings(VideoCodec(name), int(crf))


def through_codec(images_NHWC: np.ndarray, settings: VideoSettings) -> np.ndarray:
    """Each image (H, W, 3), uint8 RGB, encoded on its own as a key frame and decoded: (N, H, W, 3) uint8."""
    check_frames(images_NHWC)
    return np.stack([_one(np.ascontiguousarray(image), settings) for image in images_NHWC])


def _one(image_HWC: np.ndarray, settings: VideoSettings) -> np.ndarray:
    import av

    encoder: Any = av.CodecContext.create(settings.codec.value, "w")
    encoder.height, encoder.width = image_HWC.shape[:2]
    encoder.pix_fmt, encoder.time_base, encoder.options = PIXEL_FORMAT, Fraction(1, 20), settings.options()
    frame = av.VideoFrame.from_ndarray(image_HWC, format="rgb24").reformat(format=PIXEL_FORMAT)
    frame.pts = 0
    packets = [*encoder.encode(frame), *encoder.encode(None)]
    decoder: Any = av.CodecContext.create(STREAM_NAMES[settings.codec.value], "r")
    decoder.thread_count = 1
    decoded = [out for packet in packets for out in decoder.decode(packet)] + list(decoder.decode(None))
    return decoded[0].to_ndarray(format="rgb24")
