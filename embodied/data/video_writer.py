"""Encodes one episode of one camera into an MP4 file, blocking, and counts what the file holds.

There is no queue: every frame is handed to the encoder before the call returns, so none can be dropped. The settings'
defaults are LeRobot 0.6.1's (libsvtav1, a key frame every 2 frames, crf 30, yuv420p); crf means another quality to each
encoder, and h264 at 30 loses much more than AV1 at 30, so its default is 18.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

PIXEL_FORMAT = "yuv420p"
STREAM_NAMES = {"libsvtav1": "av1", "libx264": "h264"}


class VideoCodec(Enum):
    """Encoders by the name FFmpeg gives them."""

    av1 = "libsvtav1"
    h264 = "libx264"


DEFAULT_CRF = {VideoCodec.av1: 30, VideoCodec.h264: 18}


@dataclass
class VideoSettings:
    """How images are stored. `gop`: frames from one key frame to the next; 2 keeps random access cheap.

    crf: lower is better; None: 30 for AV1, 18 for h264.
    """

    codec: VideoCodec = VideoCodec.av1
    crf: int | None = None
    gop: int = 2
    threads: int = 1

    @property
    def quality(self) -> int:
        return DEFAULT_CRF[self.codec] if self.crf is None else self.crf

    def options(self) -> dict[str, str]:
        """FFmpeg's options for the encoder."""
        common = {"g": str(self.gop), "crf": str(self.quality)}
        if self.codec is VideoCodec.av1:
            return {**common, "preset": "12", "svtav1-params": f"fast-decode=0:lp={self.threads}"}
        return {**common, "preset": "veryfast", "threads": str(self.threads), "bf": "0"}

    def info(self, height: int, width: int, fps: int) -> dict[str, Any]:
        """The `info` block of a video feature in LeRobot's meta/info.json."""
        return {
            "video.height": height,
            "video.width": width,
            "video.codec": STREAM_NAMES[self.codec.value],
            "video.pix_fmt": PIXEL_FORMAT,
            "video.fps": fps,
            "video.channels": 3,
            "has_audio": False,
            "video.g": self.gop,
            "video.crf": self.quality,
            "video.video_backend": "pyav",
            "is_depth_map": False,
        }


def encode_video(frames: np.ndarray, path: Path, fps: int, settings: VideoSettings) -> None:
    """Writes uint8 RGB frames (T, H, W, 3) to `path` and checks that the file holds exactly T of them.

    Raises ValueError on wrong frames, and on a file with another number of frames than were given.
    """
    import av

    check_frames(frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream(settings.codec.value, rate=fps, options=settings.options())
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = PIXEL_FORMAT
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    counted = count_frames(path, fps)
    if counted != len(frames):
        raise ValueError(f"{path} should hold the {len(frames)} frames it was given, it holds {counted}: encode again")


def check_frames(frames: np.ndarray) -> None:
    """ValueError unless frames are uint8 (T >= 1, H, W, 3) of a size both encoders take."""
    good = frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[-1] == 3 and len(frames) > 0
    if not good or any(side < 64 or side % 2 for side in frames.shape[1:3]):
        raise ValueError(
            f"frames should be uint8 (T, H, W, 3) with even H and W of at least 64, got {frames.dtype} {frames.shape}"
        )


def count_frames(path: Path, fps: int) -> int:
    """Frames in a video, from its packets. ValueError when they are not one every 1/fps seconds from zero on."""
    import av

    with av.open(str(path)) as source:
        stream = source.streams.video[0]
        base = stream.time_base or Fraction(0)
        times = sorted(p.pts * base for p in source.demux(stream) if p.pts is not None)
    uneven = next((i for i, time in enumerate(times) if abs(time - Fraction(i, fps)) > Fraction(1, 1000)), None)
    if uneven is not None:
        raise ValueError(
            f"{path}: frame {uneven} should be at {uneven / fps:.3f} s, it is at {float(times[uneven]):.3f} s"
        )
    return len(times)


def pixel_histogram(frames: np.ndarray) -> np.ndarray:
    """Pixels per channel and level of frames (T, H, W, 3) uint8: (3, 256) int64. Needs no torch: simulators use it."""
    return np.stack([np.bincount(frames[..., channel].ravel(), minlength=256) for channel in range(3)])
