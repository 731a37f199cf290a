"""Episodes as a rerun recording (.rrd), for the rerun viewer. Needs the optional package rerun-sdk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from embodied.data.source import Source

TIMELINE = "time"


def export_rerun(source: Source, episodes: Sequence[int], out: Path) -> Path:
    """Writes cameras as images, columns as series and instructions as text, episodes side by side on one time axis."""
    try:
        import rerun
    except ImportError:
        raise ValueError("rerun export needs the package rerun-sdk: pip install rerun-sdk") from None

    out.parent.mkdir(parents=True, exist_ok=True)
    recording = rerun.RecordingStream(f"embodied-{source.name}")
    recording.save(str(out))
    for position in episodes:
        info = source.episodes[position]
        place = f"episode_{position:04d}"
        times = np.arange(info.length) / source.fps
        words = info.task or "(no instruction)"
        recording.log(f"{place}/instruction", rerun.TextDocument(words), static=True)
        for key, values in source.read_columns(position).items():
            if values.dtype.kind not in "fiub" or values[0].size > 64:
                continue
            series = rerun.Scalars.columns(scalars=values.reshape(len(values), -1).astype(np.float64))
            recording.send_columns(f"{place}/{key}", [rerun.TimeColumn(TIMELINE, duration=times)], series)
        for camera in source.cameras:
            for time, frame in zip(times, source.read_frames(position, camera), strict=True):
                recording.set_time(TIMELINE, duration=float(time))
                recording.log(f"{place}/{camera}", rerun.Image(frame).compress(jpeg_quality=85))
    recording.disconnect()
    return out
