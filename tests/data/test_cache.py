from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from embodied.data.cache import FrameCache
from embodied.data.cache_build import CacheConfig, build_cache, verify_checksums
from embodied.data.resize import Fit, resize_frames
from embodied.data.source import Selection
from embodied.schema import ACTION, IMAGE, STATE


def test_content_and_statistics(make_cache) -> None:
    cache = make_cache([3, 5], ["lift", "push"])
    assert (cache.frames, cache.fps, cache.columns) == (8, 10.0, [STATE, ACTION])
    assert cache.images(IMAGE)[:, 0, 0, 0].tolist() == list(range(8))
    assert np.array_equal(cache.column(STATE)[:, 1], -np.arange(8.0))
    assert cache.episodes.start.tolist() == [0, 3]
    assert cache.episodes.languages == ["lift", "push"]
    assert cache.episodes.success.tolist() == [1, 0]
    assert cache.episodes.of_frame(np.array([0, 2, 3, 7])).tolist() == [0, 0, 1, 1]
    assert cache.statistics[STATE].mean.tolist() == [3.5, -3.5]
    assert cache.statistics[IMAGE].max.ravel().tolist() == [7 / 255] * 3
    assert cache.statistics[IMAGE].count == 8
    assert verify_checksums(cache) == []


def test_building_again_reads_nothing(array_source, tmp_path: Path) -> None:
    source = array_source([3, 5])
    build_cache(source, tmp_path / "c", CacheConfig(size=[]))
    reads = source.reads
    build_cache(source, tmp_path / "c", CacheConfig(size=[]))
    assert source.reads == reads


def test_other_settings_in_the_same_folder_are_refused(array_source, tmp_path: Path) -> None:
    build_cache(array_source([3, 5]), tmp_path / "c", CacheConfig(size=[]))
    with pytest.raises(ValueError, match="another cameras"):
        build_cache(array_source([3, 5]), tmp_path / "c", CacheConfig(size=[4]))
    with pytest.raises(ValueError, match="another episodes"):
        build_cache(array_source([3, 6]), tmp_path / "c", CacheConfig(size=[]))


def test_foreign_folder_is_not_written_into(array_source, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("dear reader")
    with pytest.raises(ValueError, match="empty or an unfinished cache"):
        build_cache(array_source([3]), tmp_path, CacheConfig(size=[]))


SLOW = """
import sys, time
sys.path.insert(0, sys.argv[1])
from conftest import ArraySource
from embodied.data.cache_build import CacheConfig, build_cache
class Slow(ArraySource):
    def read_frames(self, episode, camera):
        time.sleep(0.15)
        return super().read_frames(episode, camera)
build_cache(Slow([4] * 12), sys.argv[2], CacheConfig(size=[]))
"""


def test_resumes_after_kill(array_source, tmp_path: Path) -> None:
    out = tmp_path / "c"
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(Path(__file__).parent), str(out)])
    lines = out / "episodes.jsonl"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and (not lines.exists() or lines.read_bytes().count(b"\n") < 3):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with lines.open("ab") as file:
        file.write(b'{"index": 3, "len')  # a torn line
    with pytest.raises(ValueError, match="same `embodied data cache` command again"):
        FrameCache(out)
    source = array_source([4] * 12)
    cache = build_cache(source, out, CacheConfig(size=[]))
    assert 0 < source.reads < 12
    straight = build_cache(array_source([4] * 12), tmp_path / "straight", CacheConfig(size=[]))
    for name in ("meta.json", "episodes.jsonl", f"frames/{IMAGE}.bin", f"columns/{STATE}.bin"):
        assert (cache.folder / name).read_bytes() == (straight.folder / name).read_bytes(), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 9}, "says 2 episodes and 9 frames"),
        ({"episodes": 3}, "says 3 episodes"),
        ({"cameras": {IMAGE: [8, 9]}}, "should have 1728 bytes"),
        ({"cameras": {"../../etc/passwd": [8, 8]}}, "letters, digits"),
        ({"columns": {STATE: {"dtype": "float64", "shape": [2]}}}, "should have 128 bytes"),
        ({"columns": {STATE: {"dtype": "object", "shape": [2]}}}, "numeric"),
        ({"version": 99}, "version 1"),
    ],
)
def test_lying_metadata(make_cache, change: dict, message: str) -> None:
    folder = make_cache([3, 5]).folder
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | change))
    with pytest.raises(ValueError, match=message):
        FrameCache(folder)


def test_truncated_and_damaged_files(make_cache) -> None:
    cache = make_cache([3, 5])
    path = cache.folder / f"frames/{IMAGE}.bin"
    content = bytearray(path.read_bytes())
    content[4 * 8 * 8 * 3] ^= 1
    path.write_bytes(content)
    assert verify_checksums(FrameCache(cache.folder)) == [(1, IMAGE)]
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"should have 1536 bytes by its metadata, got 1535"):
        FrameCache(cache.folder)


def test_wrong_number_of_frames_in_the_source(array_source, tmp_path: Path) -> None:
    class Short(array_source):
        def read_frames(self, episode: int, camera: str) -> np.ndarray:
            return super().read_frames(episode, camera)[: -1 if episode == 1 else None]

    with pytest.raises(ValueError, match=r"episode 1: observation.images.image should be \(5, 8, 8, 3\), got \(4"):
        build_cache(Short([3, 5]), tmp_path / "c", CacheConfig(size=[]))


def test_selection(array_source, tmp_path: Path) -> None:
    config = CacheConfig(size=[], select=Selection(success=True, limit=2))
    cache = build_cache(array_source([3, 5, 2, 4, 6]), tmp_path / "c", config)
    assert [info.index for info in cache.episodes.infos] == [0, 2]
    assert cache.images(IMAGE)[:, 0, 0, 0].tolist() == [0, 1, 2, 8, 9]


class TestAttachedColumn:
    def test_written_in_pieces_and_resumed(self, make_cache) -> None:
        cache = make_cache([3, 5])
        values = np.arange(8 * 6, dtype=np.float16).reshape(8, 2, 3)
        writer = cache.add_column("features.tiny", (2, 3), "float16", digest="weights-1")
        writer.write(0, values[:4])
        writer.sync()
        writer.write(4, values[4:5])  # lost: never synced
        assert "features.tiny" not in cache.columns
        with pytest.raises(ValueError, match="finish attaching"):
            cache.column("features.tiny")
        with cache.add_column("features.tiny", (2, 3), "float16", digest="weights-1") as writer:
            assert writer.done == 4
            writer.write(4, values[4:])
        assert cache.columns == [STATE, ACTION, "features.tiny"]
        assert np.array_equal(cache.column("features.tiny"), values)
        assert np.array_equal(FrameCache(cache.folder).column("features.tiny"), values)

    def test_refuses(self, make_cache) -> None:
        cache = make_cache([3])
        cache.add_column("f", (1,), "float32", digest="a").close()
        with pytest.raises(ValueError, match="another name or delete"):
            cache.add_column("f", (1,), "float32", digest="b")
        with pytest.raises(ValueError, match="built-in"):
            cache.add_column(STATE, (2,), "float32")
        with pytest.raises(ValueError, match="letters, digits"):
            cache.add_column("../f", (2,), "float32")
        writer = cache.add_column("g", (1,), "float32")
        with pytest.raises(ValueError, match="next is 0 of 3, got 1"):
            writer.write(1, np.zeros((1, 1)))

    def test_values_lost_behind_the_count(self, make_cache) -> None:
        cache = make_cache([3])
        with cache.add_column("f", (), "float32") as writer:
            writer.write(0, np.arange(3.0))
        (cache.folder / "columns" / "f.bin").unlink()
        assert cache.add_column("f", (), "float32").done == 0
        assert "f" not in FrameCache(cache.folder).columns


def test_resize() -> None:
    frames = np.zeros((2, 4, 8, 3), np.uint8)
    frames[:, :, :4] = 200
    assert resize_frames(frames, (4, 8)) is frames
    padded = resize_frames(frames, (8, 8), Fit.pad)
    assert padded.shape == (2, 8, 8, 3)
    assert padded[0, :2].max() == padded[0, 6:].max() == 0
    assert padded[0, 3, 0, 0] == 200
    cut = resize_frames(frames, (4, 4), Fit.crop)
    assert cut[0, 0, :, 0].tolist() == [200, 200, 0, 0]
    assert resize_frames(frames, (4, 4), Fit.stretch)[0, 0, 0, 0] == 200
