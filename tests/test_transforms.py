from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embodied.transforms import (
    GripperConvention,
    GripperLevels,
    ImageConvention,
    Normalize,
    Pipeline,
    RotationTo6D,
    axis_angle_from_6d,
    axis_angle_to_6d,
)

STATISTICS = {
    "action": {"mean": [1.0, 2.0], "std": [2.0, 0.0], "q01": [0.0, 1.0], "q99": [4.0, 1.0]},
    "observation.state": {"mean": [0.0] * 8, "std": [0.5] * 8},
}


def test_normalize_by_hand():
    pipeline = Pipeline([Normalize("action", floor=0.5)], STATISTICS)
    np.testing.assert_allclose(pipeline.forward({"action": np.array([[5.0, 3.0]])})["action"], [[2.0, 2.0]])
    quantile = Pipeline([Normalize("action", "quantile", floor=1.0)], STATISTICS)
    np.testing.assert_allclose(quantile.forward({"action": np.array([4.0, 3.0])})["action"], [1.0, 2.0])
    np.testing.assert_allclose(quantile.inverse_action(np.array([1.0, 2.0])), [4.0, 3.0])


def test_dims_that_are_not_named_pass():
    pipeline = Pipeline([Normalize("action", dims=[0])], STATISTICS)
    np.testing.assert_allclose(pipeline.forward({"action": np.array([3.0, 7.0])})["action"], [1.0, 7.0])


def test_forward_returns_a_new_dict_and_leaves_the_old_one():
    item = {"action": np.array([5.0, 3.0], dtype=np.float32), "task": "x"}
    result = Pipeline([Normalize("action")], STATISTICS).forward(item)
    assert result is not item
    assert item["action"][0] == 5.0
    assert result["task"] == "x"


def full_pipeline() -> Pipeline:
    return Pipeline(
        [
            ImageConvention(["observation.images.image"], "mirrored"),
            Normalize("observation.state", dims=[0, 1, 2, 6, 7]),
            RotationTo6D("observation.state"),
            GripperConvention(open=1.0, closed=0.0),
            Normalize("action", floor=0.5),
        ],
        STATISTICS,
    )


def test_inverse_undoes_forward_for_items_batches_and_history():
    rng = np.random.default_rng(0)
    for lead in ((), (4,), (4, 3)):
        item = {
            "observation.images.image": rng.integers(0, 256, (*lead, 6, 8, 3), dtype=np.uint8),
            "observation.state": rng.uniform(-1, 1, (*lead, 8)).astype(np.float32),
            "action": rng.uniform(-1, 1, (*lead, 2)).astype(np.float32),
        }
        pipeline = full_pipeline()
        forward = pipeline.forward(item)
        assert forward["observation.state"].shape == (*lead, 11)
        back = pipeline.inverse(forward)
        for key, value in item.items():
            np.testing.assert_allclose(back[key], value, atol=2e-6)


def test_mirror_order_matters():
    pipeline = full_pipeline()
    action = np.array([0.0, -1.0])  # open: 1.0 in the other convention, then (1 - 2) / 0.5
    np.testing.assert_allclose(pipeline.forward({"action": action})["action"], [-0.5, -2.0])
    np.testing.assert_allclose(pipeline.inverse_action(np.array([-0.5, -2.0])), action)


def test_image_convention_turns_rows_and_columns():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    mirrored = ImageConvention(["i"], "mirrored").forward({"i": image})["i"]
    assert mirrored.dtype == np.uint8
    assert mirrored[0, 0].tolist() == image[0, 1].tolist()
    raw = ImageConvention(["i"], "bottom_up").forward({"i": image})["i"]
    assert raw[0, 0].tolist() == image[1, 0].tolist()
    np.testing.assert_array_equal(
        np.rot90(raw, 2), mirrored
    )  # what openpi, LeRobot and the hub do to robosuite's arrays


def test_rotation_by_hand():
    quarter_about_z = np.array([0.0, 0.0, np.pi / 2])
    np.testing.assert_allclose(axis_angle_to_6d(quarter_about_z), [0, 1, 0, -1, 0, 0], atol=1e-7)
    np.testing.assert_allclose(axis_angle_to_6d(np.zeros(3)), [1, 0, 0, 0, 1, 0], atol=1e-7)


def test_rotation_is_continuous_where_axis_angle_jumps():
    before, after = np.array([3.14, 0.0, 0.0]), np.array([-3.14, 0.0, 0.0])  # 0.0032 rad apart
    assert np.abs(axis_angle_to_6d(before) - axis_angle_to_6d(after)).max() < 0.004


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=3), st.floats(0, 3.1))
def test_rotation_inverse(direction, angle):
    axis = np.array(direction) + np.array([0, 0, 1e-3])
    vector = axis / max(np.linalg.norm(axis), 1e-6) * angle
    again = axis_angle_to_6d(axis_angle_from_6d(axis_angle_to_6d(vector)))
    np.testing.assert_allclose(again, axis_angle_to_6d(vector), atol=3e-6)
    np.testing.assert_allclose(axis_angle_from_6d(axis_angle_to_6d(vector)), vector, atol=2e-3)


def test_json_round_trip():
    pipeline = full_pipeline()
    text = json.dumps(pipeline.to_json())
    again = Pipeline.from_json(json.loads(text), STATISTICS)
    assert again.to_json() == pipeline.to_json()
    item = {"action": np.array([0.3, -0.2])}
    np.testing.assert_array_equal(again.forward(item)["action"], pipeline.forward(item)["action"])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("no list", "should be a list"),
        ([{"_target_": "os.system", "command": "true"}], "refused"),
        ([{"_target_": "embodied.checkpoint.load_policy", "path": "."}], "should be a transform"),
        ([{"_target_": "embodied.transforms.Normalize", "keys": "action"}], "wrong arguments"),
        ([{"_target_": "embodied.transforms.Normalize", "key": "action", "mode": "none"}], "mode should be"),
        ([{"_target_": "embodied.transforms.Normalize", "key": "velocity"}], "needs statistics"),
    ],
)
def test_bad_pipelines_are_refused(entries, message):
    with pytest.raises(ValueError, match=message):
        Pipeline.from_json(entries, STATISTICS)


def test_gripper_commands_come_back_as_levels():
    transform = GripperLevels()
    predicted = np.array([[0.3, 0.02], [0.3, -0.7], [0.3, 1.4], [0.3, 0.49], [0.3, -2.0]])
    got = transform.inverse({"action": predicted})["action"]
    np.testing.assert_allclose(got, [[0.3, x] for x in (0, -1, 1, 0, -1)], rtol=1e-6)
    assert transform.forward({"action": predicted})["action"] is predicted
