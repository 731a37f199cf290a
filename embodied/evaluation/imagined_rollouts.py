"""Recorded episodes of an evaluation, imagined again: the simulator's frames above the world model's.

The world model gets the episode's first frame and state, then the executed actions alone: every frame it shows goes
back into it, and the arm's state is integrated from the actions.

Shapes: T frames at the model's rate, S control steps, H W pixels.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embodied.data.resize import resize_frames
from embodied.evaluation.records import Record, RunFolder
from embodied.evaluation.report import Section
from embodied.evaluation.videos import REPLAYER_TARGET, choose, embedded, write_mp4
from embodied.evaluation.world_metrics import pixels, psnr
from embodied.schema import STATE
from embodied.workers import WorkerPool

IMAGE_SIZE = 128
FOLDER = "imagined"


@dataclass(frozen=True)
class ImaginedClip:
    """One video. psnr: dB of the imagined frames against the simulator's at the model's size, both cameras; still:
    the same of the first frame, never moved."""

    record: Record
    path: Path
    psnr: float
    still: float


def imagine_episodes(
    folder: RunFolder, env: Mapping[str, Any], records: Sequence[Record], world: Any, count: int, pool: WorkerPool
) -> list[ImaginedClip]:
    """At most `count` episodes, those that the videos show first and that last a whole interaction."""
    stride = world.chunk * world.skip
    long_enough = [record for record in records if record.steps >= stride]
    clips = []
    for record in choose(long_enough, count):
        trajectory = folder.trajectory(record.episode)
        actions = trajectory.actions[: len(trajectory.actions) // stride * stride]
        settings = {**env, "task": record.episode.task, "image_size": IMAGE_SIZE}
        pool.build(0, "replayer", {"_target_": REPLAYER_TARGET, "env": settings})
        seen = pool.call(0, "replayer", "watch", record.episode, trajectory, world.skip, len(actions))
        truth = {key: seen[key] for key in world.keys}
        history = {key: frames[None, :1] for key, frames in truth.items()} | {STATE: seen[STATE][None, :1]}
        imagined = {key: frames[0] for key, frames in world.imagine(history, actions[None], seed=0).items()}
        path = folder.path / FOLDER / f"{record.id}.mp4"
        write_mp4(
            path, side_by_side({key: x[1:] for key, x in truth.items()}, imagined), record.control_hz / world.skip
        )
        clips.append(ImaginedClip(record, path, *_scores(truth, imagined)))
    return clips


def side_by_side(truth: Mapping[str, np.ndarray], imagined: Mapping[str, np.ndarray]) -> np.ndarray:
    """Cameras (T, H, W, 3) beside each other, the simulator's above the imagined, which are enlarged by repeating."""
    rows = []
    for frames in (truth, imagined):
        shown = []
        for key, images in frames.items():
            times = truth[key].shape[1] // images.shape[1]
            shown.append(images.repeat(times, axis=1).repeat(times, axis=2))
        rows.append(np.concatenate(shown, axis=2))
    return np.concatenate(rows, axis=1)


def _scores(truth: Mapping[str, np.ndarray], imagined: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """PSNR (dB) of the imagined frames and of the first frame, means over frames and cameras."""
    found: list[list[float]] = [[], []]
    for key, images in imagined.items():
        true, shown = (torch.from_numpy(x) for x in (resize_frames(truth[key], images.shape[1:3]), np.array(images)))
        for values, frames in zip(found, (shown, true[:1].expand_as(shown)), strict=True):
            values += psnr(pixels(frames), pixels(true[1:])).tolist()
    return float(np.mean(found[0])), float(np.mean(found[1]))


def section(clips: Sequence[ImaginedClip], name: str) -> Section:
    """The part of a report that shows them."""
    figures = "".join(
        f'<figure class="panel"><video style="aspect-ratio:1" controls loop muted playsinline preload="auto" '
        f'src="{embedded(clip.path)}"></video><figcaption>'
        f"{html.escape(clip.record.language)}<div class=meta>PSNR {clip.psnr:.1f} dB; the first frame, held still, "
        f"{clip.still:.1f} dB</div></figcaption></figure>"
        for clip in clips
    )
    note = (
        f"Above: the simulator. Below: what {name} makes of the first frame and the policy's actions, every frame fed "
        "back to it. A still image scores high wherever little moves."
    )
    data = [{"key": clip.record.key, "psnr": clip.psnr, "still_psnr": clip.still} for clip in clips]
    return Section("Imagined", f'<div class="gallery">{figures}</div>', note, {"clips": data})
