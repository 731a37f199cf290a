"""Training from a cache folder needs torch and numpy, not what reads and writes other formats."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

CODE = """
import sys
for name in ("pyarrow", "av", "h5py", "lerobot", "datasets", "pandas", "PIL", "scipy", "jinja2", "torchcodec"):
    sys.modules[name] = None
from embodied.data.cache import FrameCache
from embodied.data.goals import FutureGoal
from embodied.data.loader import BatchLoader
from embodied.data.sampler import MixtureSampler
from embodied.data.windows import Mixture, WindowConfig, Windows
cache = FrameCache(sys.argv[1])
config = WindowConfig(observations=["observation.images.image", "observation.state"], actions=["action"])
mixture = Mixture([Windows(cache, config, relabel=[FutureGoal()]), Windows(cache, config, relabel=[FutureGoal()])])
with BatchLoader(mixture, MixtureSampler(mixture.lengths, None, 4)) as loader:
    assert loader.next()["observation.images.image"].shape == (4, 8, 8, 3)
assert cache.statistics["action"].count == 8
"""


def test_a_copied_cache_is_enough(make_cache, tmp_path: Path) -> None:
    folder = make_cache([3, 5]).folder
    shutil.move(folder, tmp_path / "elsewhere")
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "elsewhere")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
