"""Collecting in real simulators with the scripted expert: replay is exact, and LeRobot reads what was recorded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("robosuite")
pytest.importorskip("av")

from embodied.collecting.collect import collect
from embodied.config import compose_config, to_dataclass
from embodied.data.episode_record import RecordFolder, find_records
from embodied.data.lerobot_writer import committed_episodes
from embodied.paths import data_folder
from embodied.schema import ACTION, IMAGE, STATE


def run(out: Path, *overrides: str):
    return collect(to_dataclass(compose_config("collect", [*overrides, "workers=1", f"out={out}"])))


@pytest.mark.slow
def test_lift_end_to_end_as_lerobot_reads_it(tmp_path: Path) -> None:
    done = run(tmp_path / "d", "env=robosuite", "tasks=[0]", "episodes=2", "size=64")
    assert (done.errors, done.episodes) == (0, 2)
    assert all(line.success and 20 < line.steps < 100 for line in done.lines)
    pytest.importorskip("lerobot")
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("local/lift", root=tmp_path / "d", return_uint8=True)
    assert len(dataset) == sum(line.steps for line in done.lines)
    folder = find_records(tmp_path / "d")
    first = next(line for line in folder.lines() if line.key == committed_episodes(tmp_path / "d")[0]["record"])
    record, item = folder.load(first), dataset[12]
    np.testing.assert_array_equal(item[ACTION].numpy(), record.intended[12])
    np.testing.assert_allclose(item[STATE].numpy(), record.states[12], atol=1e-6)
    assert item["task"] == "lift the red cube"
    image = item[IMAGE].float()
    assert image.std() > 20  # a scene, not a blank
    red = (image[0] - image[1] > 60) & (image[0] - image[2] > 60)
    assert 3 < int(red.sum()) < 600  # the cube is in view


@pytest.mark.slow
@pytest.mark.libero
@pytest.mark.data
def test_a_demonstration_at_hand_is_rendered_again_as_it_was(tmp_path: Path) -> None:
    """Replay passes through the recorded states, and the new images are the old video's, compression apart."""
    pytest.importorskip("lerobot")
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = data_folder("libero_demos")
    if root is None:
        pytest.skip("EMBODIED_DATA has no libero_demos")
    origin = find_records(root)
    line = min((line for line in origin.lines() if line.suite == "libero_object"), key=lambda line: line.steps)
    RecordFolder(tmp_path / "one/records").append(origin.load(line))
    done = run(tmp_path / "d", f"render_from={tmp_path / 'one'}")
    assert (done.errors, done.episodes, done.frames) == (0, 1, line.steps)
    old, new = LeRobotDataset("local/old", root=root), LeRobotDataset("local/new", root=tmp_path / "d")
    start = old.meta.episodes[int(Path(line.file).stem)]["dataset_from_index"]
    for step in (0, 40, line.steps - 1):
        before, after = old[start + step], new[step]
        np.testing.assert_array_equal(before[ACTION], after[ACTION])
        np.testing.assert_allclose(before[STATE], after[STATE], atol=1e-6)
        for key in (IMAGE, "observation.images.image2"):
            assert float((before[key] - after[key]).abs().mean()) < 0.01
