"""Perturbations do what their names say, by hand-computed amounts, and the same again under the same seed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from embodied import schema
from embodied.protocols import Episode
from sim.base_env import BaseEnv
from sim.make import make_env
from sim.perturbations import parse
from sim.perturbations.apply import Perturbed
from sim.perturbations.images import CORRUPTIONS, corrupt
from sim.perturbations.language import paraphrase, swapped
from sim.tasks import get_task, suites, tasks

CAMERA = '<mujoco><worldbody><camera name="a" pos="1 0 1.3" xyaxes="0 1 0 -0.4 0 0.9"/></worldbody></mujoco>'


def test_names_are_read_and_wrong_ones_answered() -> None:
    assert parse("none") == []
    change, other = parse("camera:orbit=-30,elevation=15+noise:fog=3")
    assert (change.axis, change.values) == ("camera", {"orbit": -30.0, "elevation": 15.0})
    assert (other.axis, other.values) == ("noise", {"fog": 3.0})
    for wrong, message in (
        ("camara:orbit=3", "did you mean 'camera'"),
        ("camera:obit=3", "did you mean 'orbit'"),
        ("camera:orbit=400", "between -180 and 180"),
        ("camera:orbit=far", "should be a number"),
        ("camera", "AXIS:KEY=NUMBER"),
        ("noise:fog=1+noise:fog=2", "once"),
    ):
        with pytest.raises(ValueError, match=message):
            parse(wrong)


def _moved(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Position and viewing direction of the camera after a perturbation."""
    import mujoco

    from sim.perturbations import scene

    model = mujoco.MjModel.from_xml_string(CAMERA)
    scene.camera(model, parse(name)[0], "a")
    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, model.cam_quat[0])
    return model.cam_pos[0].copy(), -matrix.reshape(3, 3)[:, 2]


def test_camera_moves_around_the_point_above_the_table() -> None:
    position, view = _moved("camera:orbit=90")
    np.testing.assert_allclose(position, [0, 1, 1.3], atol=1e-12)
    assert view[1] < -0.8
    assert abs(view[0]) < 1e-12
    position, _ = _moved("camera:distance=2")
    np.testing.assert_allclose(position, [2, 0, 1.8], atol=1e-12)
    # (1, 0, 0.5) from the centre is 26.565 degrees high; 30 more keep the distance of sqrt(1.25)
    position, higher = _moved("camera:elevation=30")
    angle = np.deg2rad(30) + np.arctan(0.5)
    np.testing.assert_allclose(position, [np.sqrt(1.25) * np.cos(angle), 0, 0.8 + np.sqrt(1.25) * np.sin(angle)])
    position, up = _moved("camera:pitch=10")
    np.testing.assert_allclose(position, [1, 0, 1.3])
    assert higher[2] < _moved("camera:roll=0")[1][2] < up[2]


def test_every_rewording_differs() -> None:
    for task in [task for suite in suites() for task in tasks(suite)]:
        words = {task.language, *(paraphrase(task.language, variant) for variant in range(1, 6))}
        assert len(words) == 6, words
    assert paraphrase("pick up the milk and place it in the basket", 1) == "grab the milk and set it down in the basket"
    assert (
        paraphrase("open the top drawer and put the bowl inside", 2)
        == "please open up the top drawer and set the bowl inside"
    )
    assert swapped(get_task("libero_object", 9), 1) == get_task("libero_object", 0).language


@pytest.mark.parametrize("kind", list(CORRUPTIONS))
def test_corruptions_grow_with_severity_and_repeat(kind: str) -> None:
    rows, columns = np.mgrid[:128, :128]
    image = np.stack([255 * ((rows // 6 + columns // 6) % 2), 2 * rows, 2 * columns], axis=-1).astype(np.uint8)
    errors = []
    for severity in (1, 5, 10):
        changed = corrupt(image, kind, severity, np.random.default_rng(0))
        np.testing.assert_array_equal(changed, corrupt(image, kind, severity, np.random.default_rng(0)))
        assert changed.shape == image.shape
        assert changed.dtype == np.uint8
        errors.append(np.abs(changed.astype(float) - image).mean())
    assert 0 < errors[0] < errors[1] < errors[2]


def test_the_seed_decides_and_axes_do_not_disturb_each_other() -> None:
    gray = np.full((16, 16, 3), 128, np.uint8)
    noise = Perturbed("noise:gaussian_noise=5", 3, "a")
    first = noise.image(gray, step=4, camera=0)
    both = Perturbed("light:tint=1+noise:gaussian_noise=5", 3, "a").image(gray, step=4, camera=0)
    np.testing.assert_array_equal(first, both)
    for other in (noise.image(gray, 5, 0), noise.image(gray, 4, 1)):
        assert (other != first).any()
    assert (Perturbed("noise:gaussian_noise=5", 4, "a").image(gray, 4, 0) != first).any()


@pytest.fixture(scope="module")
def env() -> Iterator[BaseEnv]:
    env = make_env("libero_object", 0, image_size=32)
    yield env
    env.close()


def _reset(env: BaseEnv, name: str, init_state: int | None = 2) -> dict:
    options = {"perturbation": name, "settle_steps": 0, "init_state": init_state}
    env.reset(seed=5, options=options)
    return env.observe()


@pytest.mark.libero
def test_looks_change_and_physics_does_not(env: BaseEnv) -> None:
    plain = _reset(env, "none")
    state = env.sim.get_state().flatten()
    for name, both in (
        ("camera:orbit=20", False),
        ("light:intensity=0.5", True),
        ("background:floor=2,wall=3", True),
        ("noise:gaussian_noise=3", True),
        ("object:recolour=1", False),
    ):
        seen = _reset(env, name)
        np.testing.assert_array_equal(env.sim.get_state().flatten(), state)
        assert (seen[schema.IMAGE] != plain[schema.IMAGE]).any(), name
        assert not both or (seen[schema.WRIST_IMAGE] != plain[schema.WRIST_IMAGE]).any(), name
    again = _reset(env, "none")
    np.testing.assert_array_equal(again[schema.IMAGE], plain[schema.IMAGE])
    with pytest.raises(ValueError, match="background:table"):
        _reset(env, "background:table=1")


@pytest.mark.libero
def test_joints_change_by_the_radius_and_compat_gives_them_back(env: BaseEnv) -> None:
    arm = slice(0, 7)
    _reset(env, "none")
    plain = env.sim.data.qpos[arm].copy()
    _reset(env, "robot:r=0.3")
    np.testing.assert_allclose(np.linalg.norm(env.sim.data.qpos[arm] - plain), 0.3, atol=0.02)
    drawn = env.sim.data.qpos[arm].copy()
    _reset(env, "robot:r=0.3,compat=1")
    np.testing.assert_array_equal(env.sim.data.qpos[arm], plain)
    _reset(env, "robot:r=0.3", init_state=None)
    np.testing.assert_array_equal(env.sim.data.qpos[arm], drawn)


@pytest.mark.libero
def test_regions_move_and_exchange(env: BaseEnv) -> None:
    def places() -> dict[str, np.ndarray]:
        inner = env.robosuite_env
        return {name: env.sim.data.body_xpos[inner.obj_body_id[name]][:2].copy() for name in inner.objects_dict}

    _reset(env, "none", None)
    plain = places()
    _reset(env, "layout:shift=0.04", None)
    moves = np.array([place - plain[name] for name, place in places().items()])
    np.testing.assert_allclose(np.linalg.norm(moves, axis=1), 0.04, atol=1e-9)
    np.testing.assert_allclose(moves, moves[:1].repeat(len(moves), 0), atol=1e-9)
    _reset(env, "position:swap=1", None)
    swapped_places = places()
    soup, other = "alphabet_soup_1", "salad_dressing_1"
    assert np.linalg.norm(swapped_places[soup] - plain[other]) < 0.075
    assert np.linalg.norm(swapped_places[other] - plain[soup]) < 0.075
    _reset(env, "none", None)
    for name, place in places().items():
        np.testing.assert_array_equal(place, plain[name])
    with pytest.raises(ValueError, match="drawn from the seed"):
        _reset(env, "position:swap=1", 0)


@pytest.mark.libero
def test_a_snapshot_carries_its_perturbation(env: BaseEnv) -> None:
    env.reset(seed=5, options={"perturbation": "light:tint=1+layout:shift=0.03+language:paraphrase=1"})
    snapshot, seen = env.snapshot(), env.observe()
    assert str(snapshot["perturbation"]).startswith("light:")
    env.reset(seed=1)
    env.reset(options={"snapshot": snapshot})
    for key, value in env.observe().items():
        np.testing.assert_array_equal(value, seen[key])


@pytest.mark.libero
def test_words_reach_the_observation(env: BaseEnv) -> None:
    assert _reset(env, "language:swap=1")[schema.TASK] == get_task("libero_object", 1).language
    env.reset(seed=0, options={"perturbation": "language:swap=1", "instruction": "x", "settle_steps": 0})
    assert env.instruction == "x"
    assert Episode("libero_object", 0, 5, perturbation="language:swap=1").key.endswith("s5/language:swap=1")
