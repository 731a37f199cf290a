"""Copies part of a video without decoding it, so that importing and repairing lose no quality."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np

from embodied.data.video import Video

CODECS = {"av1": "av1", "libdav1d": "av1", "h264": "h264"}


def codec_name(path: Path) -> str | None:
    """The codec as `VideoCodec` names it; None for one that is not copied."""
    import av

    with av.open(str(path)) as source:
        name = source.streams.video[0].codec_context.name
    return CODECS.get(name)


def copy_frames(path: Path, first: int, count: int, out: Path, fps: int) -> bool:
    """Writes frames first .. first + count - 1 of `path` to `out`, frame i at i / fps seconds.

    False, and no file, when that needs decoding: the first frame is no key frame, or one to be left out is needed by
    one that stays.
    """
    import av

    with av.open(str(path)) as source:
        stream = source.streams.video[0]
        packets = [packet for packet in source.demux(stream) if packet.pts is not None]
        rank = {pts: i for i, pts in enumerate(sorted(p.pts for p in packets if p.pts is not None))}
        chosen = packets[first : first + count]
        shown = [rank[packet.pts] - first for packet in chosen if packet.pts is not None]
        if sorted(shown) != list(range(count)) or not chosen[0].is_keyframe or shown[0] != 0:
            return False
        delay = max(i - number for i, number in enumerate(shown))
        out.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(out), "w") as target:
            copy = target.add_stream_from_template(stream, opaque=True)
            for i, (packet, number) in enumerate(zip(chosen, shown, strict=True)):
                packet.time_base = Fraction(1, fps)
                packet.pts, packet.dts, packet.duration = number, i - delay, 1
                packet.stream = copy
                target.mux(packet)
    return _is_whole(out, count, fps)


def _is_whole(path: Path, count: int, fps: int) -> bool:
    """Whether the file has its frames where they should be; removed when not."""
    with Video(path) as video:
        good = len(video) == count and bool(np.abs(video.times - np.arange(count) / fps).max() < 1e-3)
    if not good:
        path.unlink()
    return good
