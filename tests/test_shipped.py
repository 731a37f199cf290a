"""The checkpoints that come with the repository: small, whole, found from any folder, and able to run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embodied.checkpoint import load_policy
from embodied.evaluation.world import load_world
from embodied.protocols import Episode
from embodied.schema import IMAGE_KEYS, STATE, TASK

ROOT = Path(__file__).parents[1]
SHIPPED = sorted(
    path.relative_to(ROOT) for part in ("policies", "world_models") for path in ROOT.glob(f"{part}/*/checkpoints/*")
)
LARGEST = 15e6  # bytes


def observation(count: int) -> dict:
    rng = np.random.default_rng(0)
    images = {key: rng.integers(0, 256, (count, 128, 128, 3), dtype=np.uint8) for key in IMAGE_KEYS}
    state = np.tile(np.array([-0.2, 0.0, 1.2, 3.1, 0.0, -0.1, 0.04, -0.04], np.float32), (count, 1))
    return {**images, STATE: state, TASK: ["put the bowl on the stove", "turn on the stove"][:count]}


def test_they_are_there_and_small():
    assert [str(path) for path in SHIPPED] == [
        "policies/bc/checkpoints/libero",
        "policies/prts/checkpoints/nano",
        "world_models/persist/checkpoints/nano",
        "world_models/persist/checkpoints/nano_robosuite",
    ]
    for path in SHIPPED:
        assert sum(file.stat().st_size for file in (ROOT / path).iterdir()) < LARGEST
        assert sorted(file.name for file in (ROOT / path).iterdir()) == [
            "config.json", "model.safetensors", "pipeline.json", "statistics.json",
        ]  # fmt: skip


@pytest.mark.parametrize("path", [path for path in SHIPPED if path.parts[0] == "policies"], ids=str)
def test_policies_act_from_any_folder(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    policy = load_policy(path, replan=5)
    policy.reset([0, 1], [Episode("libero_goal", i, 7, 0) for i in range(2)])
    actions = policy.act(observation(2), [0, 1])
    assert actions.shape == (2, policy.spec.chunk, 7)
    assert np.abs(actions).max() <= 1
    assert not np.allclose(actions[0], actions[1], atol=0.05)  # the same scene under other words


def test_the_shipped_policy_has_a_value_that_depends_on_words_and_actions():
    policy = load_policy("policies/prts/checkpoints/nano")
    seen = observation(2)
    still, moving = np.zeros((2, policy.spec.chunk, 7), np.float32), np.full((2, policy.spec.chunk, 7), 0.5, np.float32)
    values = [policy.value(seen, actions, seen[TASK]) for actions in (still, moving)]
    assert np.isfinite(values).all()
    assert abs(values[0][0] - values[0][1]) > 0.1
    assert np.abs(values[0] - values[1]).max() > 0.01


@pytest.mark.parametrize("name", ["nano", "nano_robosuite"])
def test_the_shipped_world_models_imagine(name):
    world = load_world(f"world_models/persist/checkpoints/{name}", name)
    seen = observation(1)
    history = {key: seen[key][:, None] for key in (*IMAGE_KEYS, STATE)}
    actions = np.zeros((1, world.chunk * world.skip, 7), np.float32)
    first, again = (world.imagine(history, actions, seed=3) for _ in range(2))
    for key in IMAGE_KEYS:
        assert first[key].shape == (1, world.chunk, 64, 64, 3)
        assert np.array_equal(first[key], again[key])
