"""Reading speed against LeRobot's own reader, and memory against data-set size, on one data set in one run.

Three ways to the same samples (all cameras at t, `chunk` actions from t, random t, `batch_size` at a time):
    LeRobot   LeRobotDataset in a torch DataLoader without workers, its default video backend, uint8 images
    reader    embodied.data.lerobot_reader.BatchReader on the same files; outputs are compared first
    cache     embodied.data.windows.Windows on a frame cache of the same data set
All files are read once before, so that no disk is measured. They take turns `rounds` times; a figure is the median over
the rounds of the ratio within a round. Rates are samples a CPU-second (user and system time of the whole process, all
threads), which other load on the machine disturbs least; the notes give wall-clock rates too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embodied.bench.figures import Figure
from embodied.schema import ACTION

MEMORY = """
import json, sys
from embodied.data.cache import FrameCache
from embodied.data.sampler import EpochSampler
from embodied.data.windows import WindowConfig, Windows
def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
cache = FrameCache(sys.argv[1])
windows = Windows(cache, WindowConfig(observations=[*cache.cameras], actions=["action"]))
sampler = EpochSampler(len(windows), 64)
for _ in range(int(sys.argv[2])):
    windows.get_batch(sampler.next_batch())
print(json.dumps(resident()))
"""


@dataclass(frozen=True)
class Rate:
    """Samples a second, by CPU time and by the clock."""

    cpu: float
    wall: float


@dataclass
class DataBench:
    """path: a LeRobot v3 data set, or its name under EMBODIED_DATA. cache: where its cache is or is built (null: a
    temporary folder). items, batches, gathers: what LeRobot, the reader and the cache read in a round.
    """

    path: str = "libero_demos"
    cache: str | None = None
    batch_size: int = 32
    chunk: int = 16
    rounds: int = 3
    items: int = 192
    batches: int = 30
    gathers: int = 400
    memory_batches: int = 400
    small_share: float = 0.1

    def run(self, say: Callable[[str], None]) -> list[Figure]:
        from embodied.data.open_source import resolve_path

        root = resolve_path(self.path)
        with tempfile.TemporaryDirectory(prefix="embodied-bench-") as temporary:
            folder = Path(self.cache) if self.cache else Path(temporary) / "cache"
            build = self._build(root, folder, None, say)
            speeds = self._speeds(root, folder, say)
            memory = self._memory(root, folder, Path(temporary) / "small", say)
        return [*speeds, *memory, *build]

    def _build(self, root: Path, folder: Path, episodes: int | None, say: Callable[[str], None]) -> list[Figure]:
        from embodied.data.cache_build import CacheConfig, build_cache
        from embodied.data.open_source import open_source
        from embodied.data.source import Selection

        say(f"building {folder}")
        fresh = not (folder / "meta.json").exists()
        started = time.process_time()
        cache = build_cache(open_source(root), folder, CacheConfig(size=[], select=Selection(limit=episodes)))
        rate = cache.frames * len(cache.cameras) / max(time.process_time() - started, 1e-9)
        note = (
            f"images decoded, checked and written per CPU-second; {cache.frames} frames, {len(cache.cameras)} cameras"
        )
        return [Figure("cache_build_rate", rate, "images/s", None, note)] if fresh and episodes is None else []

    def _speeds(self, root: Path, folder: Path, say: Callable[[str], None]) -> list[Figure]:
        lerobot, reader, cache = self._lerobot(root), self._reader(root), self._windows(folder)
        difference = self._difference(root, reader)
        for batches in (lerobot, reader):  # imports and open files
            self._rate(batches, 2)
        self._rate(cache, self._pass(folder))
        rounds = []
        for number in range(self.rounds):
            rates = (
                self._rate(lerobot, self.items // self.batch_size),
                self._rate(reader, self.batches),
                self._rate(cache, self.gathers),
            )
            rounds.append(rates)
            cpu = ", ".join(f"{rate.cpu:.0f}" for rate in rates)
            say(f"round {number + 1} of {self.rounds}: LeRobot, reader, cache {cpu} samples per CPU-second")
        base, read, gather = (self._median([r[i] for r in rounds]) for i in range(3))
        pixels = f"largest pixel difference {difference}"
        return [
            self._ratio("cache_speedup", [(r[0], r[2]) for r in rounds], base, gather, "frame cache"),
            self._ratio("reader_speedup", [(r[0], r[1]) for r in rounds], base, read, f"batched reader, {pixels}"),
            Figure("cache_rate", gather.cpu, "samples/s", base.cpu, f"per CPU-second; {gather.wall:.0f} by the clock"),
            Figure("reader_rate", read.cpu, "samples/s", base.cpu, f"per CPU-second; {read.wall:.0f} by the clock"),
        ]

    def _pass(self, folder: Path) -> int:
        """Batches of one pass over the cache, after which its files are in the system's memory as the videos are."""
        from embodied.data.cache import FrameCache

        return FrameCache(folder).frames // self.batch_size + 1

    def _ratio(self, name: str, pairs: list[tuple[Rate, Rate]], base: Rate, ours: Rate, what: str) -> Figure:
        cpu = float(np.median([b.cpu / a.cpu for a, b in pairs]))
        wall = float(np.median([b.wall / a.wall for a, b in pairs]))
        note = (
            f"{what} against LeRobot's items, samples per CPU-second ({ours.cpu:.0f} against {base.cpu:.0f}); "
            f"by the clock {wall:.3g}x ({ours.wall:.0f} against {base.wall:.0f})"
        )
        return Figure(name, cpu, "x", base.cpu, note)

    def _memory(self, root: Path, folder: Path, small: Path, say: Callable[[str], None]) -> list[Figure]:
        """Peak memory of fresh processes that read the same number of batches from a small and the full set."""
        from embodied.data.cache import FrameCache

        episodes = max(1, round(self.small_share * len(FrameCache(folder).episodes)))
        self._build(root, small, episodes, say)
        sizes = {path: sum(f.stat().st_size for f in path.rglob("*.bin")) / 2**20 for path in (small, folder)}
        peaks = {path: self._peak(path) for path in (small, folder)}
        growth = sizes[folder] - sizes[small]
        note = (
            f"peak resident memory {peaks[small]:.0f} MB reading {sizes[small]:.0f} MB, "
            f"{peaks[folder]:.0f} MB reading {sizes[folder]:.0f} MB; baseline: what the data grew by, MB"
        )
        return [Figure("rss_growth_mb", peaks[folder] - peaks[small], "MB", growth, note)]

    def _peak(self, folder: Path) -> float:
        command = [sys.executable, "-c", MEMORY, str(folder), str(self.memory_batches)]
        return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))

    def _rate(self, batches: Iterator[Any], count: int) -> Rate:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            next(batches)
        samples = count * self.batch_size
        return Rate(samples / (time.process_time() - cpu), samples / (time.perf_counter() - wall))

    def _median(self, rates: list[Rate]) -> Rate:
        return Rate(float(np.median([r.cpu for r in rates])), float(np.median([r.wall for r in rates])))

    def _lerobot(self, root: Path) -> Iterator[Any]:
        from torch.utils.data import DataLoader

        data = self._lerobot_data(root)
        while True:
            yield from DataLoader(data, self.batch_size, shuffle=True, num_workers=0)

    def _lerobot_data(self, root: Path) -> Any:
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        fps = json.loads((root / "meta" / "info.json").read_text())["fps"]
        deltas = {ACTION: [i / fps for i in range(self.chunk)]}
        return LeRobotDataset("local/bench", root=root, delta_timestamps=deltas, return_uint8=True)

    def _reader(self, root: Path) -> Iterator[Any]:
        from embodied.data.lerobot_reader import BatchReader
        from embodied.data.sampler import EpochSampler

        reader = BatchReader(root, {ACTION: list(range(self.chunk))})
        for samples in EpochSampler(len(reader), self.batch_size, seed=1):
            yield reader.get_batch(samples)

    def _windows(self, folder: Path) -> Iterator[Any]:
        from embodied.data.cache import FrameCache
        from embodied.data.sampler import EpochSampler
        from embodied.data.windows import WindowConfig, Windows

        cache = FrameCache(folder)
        columns = [key for key in cache.specs if key != ACTION]
        config = WindowConfig(observations=[*cache.cameras, *columns], actions=[ACTION], chunk=self.chunk)
        windows = Windows(cache, config)
        for samples in EpochSampler(len(windows), self.batch_size, seed=2):
            yield windows.get_batch(samples)

    def _difference(self, root: Path, reader: Iterator[Any]) -> int:
        """The largest difference of a pixel over one batch. ValueError when actions or pad masks differ at all."""
        batch, data = next(reader), self._lerobot_data(root)
        largest = 0
        for row, index in enumerate(batch["index"]):
            item = data[int(index)]
            for key in (ACTION, f"{ACTION}_is_pad"):
                if not np.array_equal(batch[key][row], item[key].numpy()):
                    raise ValueError(f"frame {index}: {key} of the reader and of LeRobot should be equal, they differ")
            for camera in data.meta.video_keys:
                theirs = item[camera].permute(1, 2, 0).numpy().astype(int)
                largest = max(largest, int(np.abs(theirs - batch[camera][row]).max()))
        return largest
