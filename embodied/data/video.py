"""Frames of a video file by number: only what was asked for is decoded, and what a key frame forces.

PyAV decodes, and finds out which frame is damaged; torchcodec, where it is installed, is two to three times as fast for
scattered frames and gives the same pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np


class VideoError(ValueError):
    """A file that is no whole video. `frame`: the first number that cannot be had, None when nothing can."""

    def __init__(self, message: str, frame: int | None = None) -> None:
        super().__init__(message)
        self.frame = frame


class Video:
    """An open video. Frames are numbered 0, 1, .. in order of presentation. A context manager.

    times: presentation time of each frame, seconds (N,) float64.

    scattered: frames will be asked for here and there. Raises VideoError, naming the file, when it cannot be read
    (truncated, no video stream).
    """

    def __init__(self, path: Path, scattered: bool = False) -> None:
        import av
        from av.video.reformatter import VideoReformatter

        self.path = path
        if not path.is_file():
            raise VideoError(f"{path} should be a video file, there is none: copy the data set again")
        try:
            self._container = av.open(str(path))
            self._stream = self._container.streams.video[0]
            self._stream.codec_context.thread_count = 1
            packets = [(p.pts, p.is_keyframe) for p in self._container.demux(self._stream) if p.pts is not None]
        except (av.error.FFmpegError, IndexError) as error:
            raise VideoError(f"{path} cannot be read as video ({error}): copy or record it again") from error
        if not packets:
            raise VideoError(f"{path} holds no frame: copy or record it again")
        packets.sort()
        self._pts = np.array([pts for pts, _ in packets], np.int64)
        keys = np.array([is_key for _, is_key in packets])
        self._key_of = np.maximum.accumulate(np.where(keys, np.arange(len(packets)), 0))
        self._number = {int(pts): i for i, pts in enumerate(self._pts)}
        self._reformatter = VideoReformatter()
        self._next = len(packets)
        self._frames: Iterator[Any] = iter(())
        self.times = self._pts * float(self._stream.time_base or 0)
        self._decoder = _torchcodec(path) if scattered else None

    def __len__(self) -> int:
        return len(self._pts)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self._stream.height, self._stream.width

    def numbers_at(self, times: np.ndarray, tolerance: float) -> np.ndarray:
        """The frame nearest to each time. ValueError when one is further away than `tolerance` seconds."""
        own = self.times
        times = np.asarray(times, np.float64)
        above = np.clip(np.searchsorted(own, times), 0, len(own) - 1)
        below = np.maximum(above - 1, 0)
        numbers = np.where(np.abs(own[below] - times) <= np.abs(own[above] - times), below, above)
        off = np.abs(own[numbers] - times)
        if len(off) and off.max() > tolerance:
            i = int(off.argmax())
            raise ValueError(
                f"{self.path} should have a frame at {times[i]:.4f} s, the nearest is at {own[numbers[i]]:.4f} s: "
                "the file is short or has another frame rate; run `embodied data validate`"
            )
        return numbers

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """Frames (N, H, W, 3) uint8 RGB, in the order asked for."""
        wanted, inverse = np.unique(np.asarray(numbers, np.int64), return_inverse=True)
        if len(wanted) and (wanted[0] < 0 or wanted[-1] >= len(self)):
            raise ValueError(f"{self.path} has {len(self)} frames, asked for {wanted[0]} to {wanted[-1]}")
        result = self._decode_all(wanted)
        return result if np.array_equal(inverse, np.arange(len(result))) else result[inverse]

    def _decode_all(self, numbers: np.ndarray) -> np.ndarray:
        if self._decoder is not None and len(numbers):
            try:
                return self._decoder.get_frames_at(numbers.tolist()).data.numpy()
            except RuntimeError:
                self._decoder = None  # PyAV says which frame it is
        result = np.empty((len(numbers), *self.size, 3), np.uint8)
        for i, number in enumerate(numbers):
            result[i] = self._decode(int(number))
        return result

    def _decode(self, number: int) -> np.ndarray:
        import av

        key = int(self._key_of[number])
        try:
            if not self._next <= number or key > self._next:
                self._container.seek(int(self._pts[key]), stream=self._stream, backward=True)
                self._frames = self._container.decode(self._stream)
            for frame in self._frames:
                found = self._number.get(frame.pts, -1)
                self._next = found + 1
                if found == number:
                    return self._reformatter.reformat(frame, format="rgb24").to_ndarray()
                if found > number:
                    break
        except av.error.FFmpegError as error:
            raise VideoError(f"{self.path}: frame {number} cannot be decoded ({error})", number) from error
        self._next = len(self)
        raise VideoError(f"{self.path}: frame {number} of {len(self)} cannot be decoded: it is damaged", number)

    def close(self) -> None:
        self._frames = iter(())
        self._container.close()

    def __enter__(self) -> Video:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _torchcodec(path: Path) -> Any:
    """torchcodec's decoder, or None where it is not installed or does not find FFmpeg."""
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError):
        return None
    try:
        return VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
    except (ValueError, RuntimeError):
        return None
