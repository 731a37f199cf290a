"""An episode depends on its seed and nothing else: not on what ran before, not on the process, not on the caller."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sim.base_env import BaseEnv
from sim.make import make_env

CASES = [
    pytest.param("libero_10", 3, None, marks=pytest.mark.libero, id="drawer"),
    pytest.param("libero_spatial", 4, 2, marks=pytest.mark.libero, id="bowl"),
    pytest.param("robosuite", 0, None, id="lift"),
]


def _digest(env: BaseEnv, seed: int, init_state: int | None) -> str:
    """Everything an episode's physics consists of: fixtures, sizes, states of five random steps."""
    env.reset(seed=seed, options={"init_state": init_state, "settle_steps": 2})
    actions = np.random.default_rng(seed).uniform(-1, 1, (5, 7))
    parts = [env.sim.model.body_pos, env.sim.model.body_quat, env.sim.model.geom_size]
    for action in actions:
        env.run_steps(action[None])
        parts += [env.sim.get_state().flatten(), env.observe(images=False)["observation.state"]]
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


@pytest.mark.parametrize(("suite", "task", "init_state"), CASES)
def test_every_episode_is_the_first_of_a_fresh_process(suite: str, task: int, init_state: int | None) -> None:
    env = make_env(suite, task)
    np.random.seed(99)  # noqa: NPY002
    for seed in (11, 12, 13):
        _digest(env, seed, None)
    np.random.rand(5)  # noqa: NPY002
    later = _digest(env, 5, init_state)
    assert later == _digest(env, 5, init_state)
    assert later != _digest(env, 6, init_state) or init_state is not None
    env.close()

    code = (
        "import sys; sys.path.insert(0, 'tests/sim')\n"
        "from test_determinism import _digest, make_env\n"
        f"print(_digest(make_env({suite!r}, {task}), 5, {init_state}))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "4242", "PYTHONPATH": "."}
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == later


def test_the_callers_random_stream_is_left_alone() -> None:
    env = make_env("robosuite", 0)
    np.random.seed(3)  # noqa: NPY002
    expected = np.random.rand(2)  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    first = np.random.rand()  # noqa: NPY002
    env.reset(seed=0, options={"settle_steps": 0})
    assert [first, np.random.rand()] == list(expected)  # noqa: NPY002
    env.close()


def test_scenes_that_cannot_be_placed_end_in_an_error_not_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    from sim.libero_setup import import_robosuite

    import_robosuite()
    from robosuite.utils.errors import RandomizationError

    env = make_env("robosuite", 0)
    env.reset(seed=0, options={"settle_steps": 0})
    attempts = []

    def fail() -> None:
        attempts.append(1)
        raise RandomizationError("Cannot place all objects")

    monkeypatch.setattr(env, "_inner_reset", fail)
    with pytest.raises(ValueError, match="use another seed"):
        env.reset(seed=1)
    assert len(attempts) == 20

    def crash() -> None:
        raise RuntimeError("simulator broke")

    monkeypatch.setattr(env, "_inner_reset", crash)
    with pytest.raises(RuntimeError, match="simulator broke"):
        env.reset(seed=1)
    env.close()


def test_one_failed_placement_is_tried_again_as_stock_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from sim.libero_setup import import_robosuite

    import_robosuite()
    from robosuite.utils.errors import RandomizationError

    env = make_env("robosuite", 0)
    reset, failures = env._inner_reset, [1]

    def fail_once() -> None:
        if failures:
            failures.pop()
            raise RandomizationError("Cannot place all objects")
        reset()

    monkeypatch.setattr(env, "_inner_reset", fail_once)
    _, info = env.reset(seed=1, options={"settle_steps": 0})
    assert info["seed"] == 1
    assert not failures
    env.close()
