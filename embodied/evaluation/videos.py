"""Rollout videos made afterwards: the recorded actions, run again in a fresh environment with images.

The replay is checked against the record (steps, success, digest of the last state). Files lie in RUN/videos and are
written whole or not at all, so rendering resumes where it was killed.
"""

from __future__ import annotations

import base64
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from embodied.evaluation.records import Outcome, Record, RunFolder, Trajectory, state_digest
from embodied.evaluation.rollout import reset
from embodied.io import append_line, read_lines, write_atomic
from embodied.protocols import Episode, SimEnv
from embodied.schema import IMAGE_KEYS, STATE
from embodied.workers import Reply, WorkerPool

VIDEOS = "videos"
REPLAYER_TARGET = "embodied.evaluation.videos.Replayer"


@dataclass(frozen=True)
class Clip:
    """One video: `file` within the run folder, frames per second, and whether the replay ended as recorded."""

    key: str
    file: str
    frames: int
    fps: float
    exact: bool


class Replayer:
    """Renders recorded episodes of one task. Built in a worker process."""

    def __init__(self, env: SimEnv) -> None:
        self.env = env

    def render(self, episode: Episode, trajectory: Trajectory, path: str, stride: int) -> tuple[int, int, bool, str]:
        """Writes an mp4 of every `stride`-th state, all cameras side by side, at the true speed.

        Returns frames, steps, success, and the digest of the last state.
        """
        reset(self.env, episode, trajectory.snapshot)
        frames, steps, success = [self._frame()], 0, False
        for actions in np.split(trajectory.actions, range(stride, len(trajectory.actions), stride)):
            if len(actions) == 0:
                break
            result = self.env.run_steps(actions)
            steps, success = steps + result.steps, result.success
            frames.append(self._frame())
            if success:
                break
        write_mp4(Path(path), np.stack(frames), self.env.control_hz / stride)
        return len(frames), steps, success, state_digest({STATE: self.env.observe(images=False)[STATE]})

    def watch(self, episode: Episode, trajectory: Trajectory, stride: int, steps: int) -> dict[str, np.ndarray]:
        """The first `steps` actions again: images (T, H, W, 3) by camera and STATE (T, 8), every `stride`-th state."""
        reset(self.env, episode, trajectory.snapshot)
        seen = [self.env.observe(images=True)]
        for first in range(0, steps, stride):
            self.env.run_steps(trajectory.actions[first : first + stride])
            seen.append(self.env.observe(images=True))
        return {key: np.stack([row[key] for row in seen]) for key in (*IMAGE_KEYS, STATE) if key in seen[0]}

    def _frame(self) -> np.ndarray:
        """All cameras side by side (H, W, 3) uint8; sides made even, as the codec needs."""
        observation = self.env.observe(images=True)
        joined = np.concatenate([observation[key] for key in IMAGE_KEYS if key in observation], axis=1)
        return joined[: joined.shape[0] // 2 * 2, : joined.shape[1] // 2 * 2]

    def close(self) -> None:
        self.env.close()


def write_mp4(path: Path, frames: np.ndarray, fps: float) -> None:
    """H.264 with the widest support in browsers. Frames (T, H, W, 3) uint8 with even sides."""
    from embodied.data.video_writer import VideoCodec, VideoSettings, encode_video

    if fps != round(fps):
        raise ValueError(f"frames per second should be a whole number, got {fps}: choose a stride that divides it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp.mp4")
    encode_video(frames, temporary, round(fps), VideoSettings(VideoCodec.h264, crf=25, gop=40))
    write_atomic(path, temporary.read_bytes())
    temporary.unlink()


def embedded(path: Path) -> str:
    """A video as a page holds it within itself."""
    return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()


def choose(records: Sequence[Record], count: int) -> list[Record]:
    """At most `count` episodes to show: failures first, then successes, each from as many tasks as there are."""
    chosen: list[Record] = []
    for outcome in (Outcome.FAILURE, Outcome.SUCCESS):
        queues: dict[Any, deque[Record]] = {}
        for record in records:
            if record.outcome is outcome:
                group = (record.episode.suite, record.episode.perturbation, record.episode.task)
                queues.setdefault(group, deque()).append(record)
        while queues and len(chosen) < count:
            for group in list(queues):
                chosen.append(queues[group].popleft())
                if not queues[group]:
                    del queues[group]
    return chosen[:count]


def render_videos(
    folder: RunFolder,
    env: Mapping[str, Any],
    records: Sequence[Record],
    count: int,
    size: int = 256,
    stride: int = 1,
    pool: WorkerPool | None = None,
) -> list[Clip]:
    """Clips of the chosen episodes; those already rendered are kept. An episode that cannot be rendered has none."""
    index = folder.path / VIDEOS / "clips.jsonl"
    known = {line["key"]: Clip(**line) for line in read_lines(index)}
    chosen = choose(records, count)
    missing = [record for record in chosen if record.key not in known]
    if missing:
        own = pool is None
        pool = pool or WorkerPool(1)
        try:
            _Rendering(pool, folder, {**env, "image_size": size}, stride, known).run(missing)
        finally:
            if own:
                pool.close()
    return [known[record.key] for record in chosen if record.key in known]


class _Rendering:
    """Renders episodes on the pool's workers, an environment a task."""

    def __init__(
        self, pool: WorkerPool, folder: RunFolder, env: Mapping[str, Any], stride: int, known: dict[str, Clip]
    ) -> None:
        self.pool, self.folder, self.env, self.stride, self.known = pool, folder, env, stride, known
        self.under_way: dict[int, tuple[Record, bool]] = {}  # worker -> episode, and whether its render has begun

    def run(self, records: Sequence[Record]) -> None:
        queue = deque(records)
        slow = {} if sys.stderr.isatty() else {"mininterval": 10.0}
        with tqdm(total=len(queue), unit="video", desc="videos", **slow) as bar:
            while queue or self.under_way:
                for worker in range(self.pool.count):
                    if queue and worker not in self.under_way:
                        self._build(worker, queue.popleft())
                for reply in self.pool.wait():
                    bar.update(self._handle(reply))

    def _build(self, worker: int, record: Record) -> None:
        self.under_way[worker] = (record, False)
        env = {**self.env, "task": record.episode.task}
        self.pool.submit_build(worker, "replayer", {"_target_": REPLAYER_TARGET, "env": env})

    def _handle(self, reply: Reply) -> int:
        """Takes in a reply; how many episodes it has finished with."""
        record, rendering = self.under_way.pop(reply.worker)
        if reply.error is not None:
            tqdm.write(f"no video of {record.key}: {reply.error}", file=sys.stderr)
            return 1
        file = f"{VIDEOS}/{record.id}.mp4"
        if not rendering:
            self.under_way[reply.worker] = (record, True)
            trajectory, path = self.folder.trajectory(record.episode), str(self.folder.path / file)
            self.pool.submit(reply.worker, "replayer", "render", record.episode, trajectory, path, self.stride)
            return 0
        frames, steps, success, end = reply.result
        exact = (steps, success, end) == (record.steps, record.success, record.end)
        self._keep(Clip(record.key, file, frames, record.control_hz / self.stride, exact))
        return 1

    def _keep(self, clip: Clip) -> None:
        self.known[clip.key] = clip
        append_line(self.folder.path / VIDEOS / "clips.jsonl", asdict(clip))
